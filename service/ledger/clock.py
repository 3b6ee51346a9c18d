"""The time by which old rows and images are deleted: the wall clock, but not one that has just been set forward.

    clock = Clock()
    clock.begin(newest)     # newest(t): the time of the newest row from before t
    clock.now()             # seconds since 1970

A clock that someone sets, or that a small computer without a battery has from the network minutes after it started,
would make everything old at once. What is deleted too late by a day harms less than what is deleted too soon. A clock
that is wrong when the process starts is known by the ledger: its newest rows are of long ago.
"""

import time
from collections.abc import Callable

import structlog

DAY_S = 86_400.0
LONG_S = 30 * DAY_S  # without any row: a service that stood still, or a wrong clock

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
        self._begun = False

    def begin(self, newest: Callable[[float], float | None]) -> None:
        """Once, before `now`: where the newest row that is older than a day is older than a month, the wall clock has
        been set forward since. Younger rows may be by the same clock."""
        if self._begun:
            return
        wall = self._wall()
        then = newest(wall - DAY_S)
        self._begun = True
        if then is not None and wall - then > LONG_S:
            self._offset = then - self._steady()

    def now(self) -> float:
        """The wall clock, unless it has been set forward by more than a day: then, for a day, as if it had not."""
        wall, passed = self._wall(), self._steady()
        ahead = wall - passed - self._offset
        if ahead <= DAY_S:
            self._ahead_since = None
        elif self._ahead_since is None:
            self._ahead_since = passed
            log.warning(
                "the clock is far ahead of what it was: nothing is deleted for its age by the new time within a day; "
                "set it right if it is wrong", days=round(ahead / DAY_S),
            )  # fmt: skip
        if self._ahead_since is None or passed - self._ahead_since >= DAY_S:
            self._offset, self._ahead_since = wall - passed, None
        return passed + self._offset
