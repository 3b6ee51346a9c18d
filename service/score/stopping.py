"""INT and TERM stop a run in order; a second signal kills the process."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """A signal asked to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Stop:
    """A flag that a signal sets, or the code when it gives up for another reason."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._number: int | None = None

    def set(self, number: int | None = None) -> None:
        if number is not None:
            self._number = number
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    def check(self) -> None:
        """Raises Interrupted when a signal has come."""
        if self._number is not None:
            raise Interrupted(self._number)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """A context in which INT and TERM set the Stop. Only in the main thread."""
    stop = Stop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def asked(number: int, frame: FrameType | None) -> None:
        stop.set(number)
        for each in before:
            signal.signal(each, signal.SIG_DFL)

    for number in before:
        signal.signal(number, asked)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
