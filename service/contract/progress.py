"""Progress of long work on stderr: a bar on a terminal, plain lines in a log file."""

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

EVERY = "TQDM_MININTERVAL"  # tqdm's own variable: seconds between two lines
EVERY_S = 30.0  # where it is not set


class Progress(tqdm):  # type: ignore[misc]
    """tqdm with its parameters, which is all of it on a terminal.

    Elsewhere its bar is a line of its own, with the estimate of what is left, every 30 s at most. A bar that would stay
    on the terminal has a first and a last line too; any other, and one for terminals alone (`disable=None`), has lines
    only where the work takes that long.
    """

    def __init__(
        self, iterable: Iterable[Any] | None = None, *, disable: bool | None = False, leave: bool = True,
        delay: float = 0, **more: Any,
    ) -> None:  # fmt: skip
        self._plain = not sys.stderr.isatty()
        if self._plain:
            self._every_s = float(os.environ.get(EVERY) or EVERY_S)
            self._whole = leave and disable is not None
            self._due: float | None = None  # when the next line may be said
            disable, delay = bool(disable), 0
            # one look at the clock each time: tqdm's guess of how many steps go into an interval may be too high
            more |= {"mininterval": self._every_s, "miniters": 1}
        super().__init__(iterable, disable=disable, leave=leave, delay=delay, **more)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """tqdm's: whatever is to be shown comes through here, as often as somebody likes."""
        if not self._plain:
            return bool(super().display(msg, pos))
        if msg is None:
            now = self._time()
            if self._due is None:
                self._due = now if self._whole else now + self._every_s
            if now >= self._due:
                self._due, self._whole = now + self._every_s, True
                self._say()
        return False

    def close(self) -> None:
        """Also where an error ends the work: the last line tells how far it came."""
        if not getattr(self, "disable", True) and self._plain:
            if self._whole:
                self._ema_dt = lambda: None  # as tqdm does: the rate of all of it, not of the last steps
                self._say()
            self.leave = False  # said
        super().close()

    def clear(self, nolock: bool = False) -> None:
        """A line cannot be taken back."""
        if not self._plain:
            super().clear(nolock)

    def _say(self) -> None:
        self.fp.write(f"{self}\n")
        self.fp.flush()
