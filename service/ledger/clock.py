"""The time by which old rows and images are deleted: the wall clock, but not one that has just been set forward.

    Clock().now()           # seconds since 1970

A clock that someone sets, or that a small computer without a battery has from the network minutes after it started,
would make everything old at once. What is deleted too late by a day harms less than what is deleted too soon.
"""

import time
from collections.abc import Callable

import structlog

DAY_S = 86_400.0

log = structlog.get_logger()


def steady() -> float:
    """Seconds that nobody sets; those asleep count too, where the system can tell."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Clock:
    """Not for several threads at once."""

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = steady) -> None:
        self._wall, self._steady = wall, steady
        self._offset = wall() - steady()
        self._ahead_since: float | None = None

    def now(self) -> float:
        """The wall clock, unless it has been set forward by more than a day: then, for a day, as if it had not."""
        wall, passed = self._wall(), self._steady()
        ahead = wall - passed - self._offset
        if ahead <= DAY_S:
            self._ahead_since = None
        elif self._ahead_since is None:
            self._ahead_since = passed
            log.warning(
                "the clock has been set forward: nothing is deleted for its age by the new time within a day; set it "
                "right if it is wrong", days=round(ahead / DAY_S),
            )  # fmt: skip
        if self._ahead_since is None or passed - self._ahead_since >= DAY_S:
            self._offset, self._ahead_since = wall - passed, None
        return passed + self._offset
