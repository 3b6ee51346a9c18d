"""Handlers of SIGINT (Ctrl-C) and SIGTERM that last for one block of code."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether the process was asked to stop."""

    requested = False


@contextmanager
def on_stop(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """SIGINT and SIGTERM call `handler` inside the block; the previous handlers are restored after it."""
    before = {number: signal.signal(number, handler) for number in STOPS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """The first SIGINT or SIGTERM inside the block is noted, for a loop to read; the second interrupts at once."""
    stop = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        print("\nstopping after this step; once more to stop at once", file=sys.stderr)

    with on_stop(note):
        yield stop
