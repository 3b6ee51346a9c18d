"""Errors of libraries in one line of a message."""


def one_line(error: BaseException) -> str:
    """What an error says, perhaps pages long, as at most 300 characters on one line; its kind where it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__
