"""Notes on the data, on stderr: what was left out, and why. A command of many steps says each of them once."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_said: set[str] | None = None  # within `said_once`


@contextmanager
def said_once(before: Iterable[str] = ()) -> Iterator[None]:
    """Within it each note is said once, and none of those that were said `before`: every step loads the data again."""
    global _said
    outer, _said = _said, {*before, *(_said or ())}
    try:
        yield
    finally:
        _said = outer


def say(notes: Iterable[str]) -> None:
    """A line for each note."""
    for note in notes:
        if _said is None or note not in _said:
            print(note, file=sys.stderr)
        if _said is not None:
            _said.add(note)
