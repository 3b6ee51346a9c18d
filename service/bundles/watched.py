"""A fetch that is watched: a place that has stalled is given up, one that is slow is waited for, and the log tells."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import structlog

POLL_S = 0.25
STALLED_S = 30.0  # without a byte
SAY_S = 10.0  # between two lines of the log

T = TypeVar("T")

log = structlog.get_logger()


class Stalled(TimeoutError):
    """A place sends nothing more."""


def watched(work: Callable[[], T], folder: Path, what: str) -> T:
    """What `work`() returns, or raises; Stalled once `folder`, below which it writes, has not grown for STALLED_S.

    `what` is fetched, for the log. The thread of work that is given up ends when its own library gives up.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # raised where it is waited for
            done.set_exception(error)

    threading.Thread(target=run, name="fetch", daemon=True).start()
    size = size_bytes(folder)
    grown_at = said_at = time.monotonic()
    while not wait([done], POLL_S).done:
        was, size, now = size, size_bytes(folder), time.monotonic()
        if size != was:
            grown_at = now
        if now - grown_at >= STALLED_S:
            raise Stalled(f"nothing came for {STALLED_S:g} s, after {size} bytes of the bundle: see whether the place "
                          "answers, and try again")  # fmt: skip
        if now - said_at >= SAY_S:
            said_at = now
            log.info("a bundle is being fetched", file=what, bytes=size, last_byte_s_ago=round(now - grown_at))
    return done.result()


def size_bytes(folder: Path) -> int:
    """Of all files below it; 0 where there is none."""
    size = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # it has just been moved
            size += path.stat().st_size
    return size
