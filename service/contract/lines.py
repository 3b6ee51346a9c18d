"""Errors of libraries in one line of a message."""


def one_line(error: BaseException) -> str:
    """What an error says, perhaps pages long, as at most 300 characters on one line; its kind where it says nothing."""
    return shortened(str(error)) or type(error).__name__


def shortened(text: str) -> str:
    """At most 300 characters of a text, on one line."""
    return " ".join(text.split())[:300]
