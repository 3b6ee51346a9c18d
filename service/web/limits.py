"""Bounds that requests share: a rate per key, a pace of refusals, and the memory for bodies. No HTTP; O(1) each."""

import time
from collections.abc import Callable

from service.errors import Overloaded

ROUNDING_S = 1e-6  # far above the rounding of a clock's seconds, without which a full bucket could refuse
Clock = Callable[[], float]  # seconds, never backwards


class TokenBucket:
    """At most `burst` + `rate_per_s` · t tokens leave in any t seconds, to a microsecond.

    The one number kept is the time at which the bucket will be full again (the generic cell rate algorithm), so
    nothing has to be refilled.
    """

    __slots__ = ("_clock", "_full_at_s", "burst", "rate_per_s")

    def __init__(self, rate_per_s: float, burst: float, clock: Clock = time.monotonic) -> None:
        if not rate_per_s > 0 or burst < 1:
            raise ValueError(f"a bucket needs a rate above 0 and room for 1, not {rate_per_s} a second and {burst}")
        self.rate_per_s = rate_per_s
        self.burst = burst
        self._clock = clock
        self._full_at_s = clock()

    def take(self, n: float = 1) -> float:
        """0.0 when `n` tokens were taken; otherwise none is, and the seconds until they could be.

        Raises ValueError when `n` is more than the bucket ever holds.
        """
        if n > self.burst:
            raise ValueError(f"{n} tokens never fit in a bucket of {self.burst}")
        now = self._clock()
        full_at_s = max(self._full_at_s, now) + n / self.rate_per_s
        wait_s = full_at_s - self.burst / self.rate_per_s - now
        if wait_s > ROUNDING_S:
            return wait_s
        self._full_at_s = full_at_s
        return 0.0


class Pacer:
    """Spreads answers over time: `rate_per_s` of them, one second's worth of which may leave at once.

    For refusals: a client that ignores Retry-After and asks again at once gets its next refusal later, instead of
    making refusals the main work of the event loop. Nobody is held for more than `longest_s`, so the rate is kept
    while fewer than `rate_per_s` · `longest_s` answers are held; from there on every connection gets one answer per
    `longest_s`.
    """

    __slots__ = ("_allowance_s", "_apart_s", "_busy_until_s", "_clock", "_longest_s")

    def __init__(self, rate_per_s: float, longest_s: float, clock: Clock = time.monotonic) -> None:
        if not rate_per_s > 0 or longest_s < 0:
            raise ValueError(f"a pacer needs a rate above 0 and a wait from 0, not {rate_per_s} and {longest_s}")
        self._apart_s = 1 / rate_per_s
        self._allowance_s = max(1.0, self._apart_s)
        self._longest_s = longest_s
        self._clock = clock
        self._busy_until_s = clock()

    def delay(self) -> float:
        """Seconds for which this answer is to be held back: from 0 to `longest_s`."""
        now = self._clock()
        busy_until_s = max(self._busy_until_s, now) + self._apart_s
        wait_s = busy_until_s - self._allowance_s - now
        if wait_s <= ROUNDING_S:
            wait_s = 0.0
        if wait_s > self._longest_s:
            return self._longest_s  # takes no turn: a flood must not leave a debt that others pay after it
        self._busy_until_s = busy_until_s
        return wait_s


class BodyBudget:
    """How many bytes of bodies are in memory at once, over all requests; what would pass the limit is refused."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0

    def count(self, received: int) -> bool:
        """Count bytes that have come already, to be given back later; whether they fit."""
        self.held_bytes += received
        return self.held_bytes <= self.limit_bytes

    def give_back(self, count: int) -> None:
        """The inverse of `count`."""
        self.held_bytes -= count

    def exceeded(self) -> Overloaded:
        """The refusal of a body that does not fit."""
        return Overloaded(
            f"bodies of {self.held_bytes} bytes are in memory, the limit of all together is {self.limit_bytes}: "
            "come back after the seconds in Retry-After",
            1.0,
        )

    def share(self) -> "BudgetShare":
        """What one request takes of the budget; all of it is given back at the end of a `with`."""
        return BudgetShare(self)


class BudgetShare:
    """The bytes that one request holds of a BodyBudget."""

    __slots__ = ("_budget", "taken_bytes")

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self.taken_bytes = 0

    def __enter__(self) -> "BudgetShare":
        return self

    def __exit__(self, *_: object) -> None:
        self._budget.held_bytes -= self.taken_bytes

    def take(self, count: int) -> None:
        """Raises Overloaded when `count` more bytes do not fit."""
        budget = self._budget
        if budget.held_bytes + count > budget.limit_bytes:
            raise budget.exceeded()
        budget.held_bytes += count
        self.taken_bytes += count
