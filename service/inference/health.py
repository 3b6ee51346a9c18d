"""Does the graph still run? Failures in a row, and runs that do not end, as the worker threads report them."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """When an engine counts as faulty, and after how long as dead; see Settings."""

    failed_runs: int = 5
    stalled_s: float = 30.0
    dead_s: float = 120.0


class EngineHealth:
    """`running` surrounds each batch, in the thread that runs it; the rest is read from any thread."""

    def __init__(self, limits: HealthLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._begun: dict[int, float] = {}  # by thread: when the run under way began
        self._last_end = clock()
        self._failed = 0  # in a row
        self._failing_since = 0.0
        self._last_error = ""

    @contextmanager
    def running(self) -> Iterator[None]:
        """One batch: decoding where that is done in the same thread, and the graph."""
        thread = threading.get_ident()
        self._begun[thread] = self._clock()
        try:
            yield
        finally:
            del self._begun[thread]
            self._last_end = self._clock()

    def succeeded(self) -> None:
        """A run of the graph gave its answers."""
        self._failed = 0

    def failed(self, error: Exception) -> int:
        """A run of the graph failed; how many in a row now."""
        self._failed += 1
        self._last_error = str(error)
        if self._failed == self._limits.failed_runs:
            self._failing_since = self._clock()
        return self._failed

    @property
    def failing(self) -> bool:
        """The last runs failed, as many as the limit says or more."""
        return self._failed >= self._limits.failed_runs

    def fault(self) -> str | None:
        """Why the engine cannot be relied on now; None while it can."""
        if self.failing:
            return f"the last {self._failed} runs of the graph failed: {self._last_error}"
        since = self._stalled_since()
        if since is not None:
            return f"no run of the graph has ended for {self._clock() - since + self._limits.stalled_s:.0f} s"
        return None

    def dead(self) -> bool:
        """Whether the fault has lasted so long that the process should be started anew."""
        since = self._failing_since if self.failing else self._stalled_since()
        return since is not None and self._clock() - since >= self._limits.dead_s

    def _stalled_since(self) -> float | None:
        """When the runs under way passed the limit; None while they have not, or while others end."""
        begun = list(self._begun.values())
        if not begun:
            return None
        since = max(min(begun), self._last_end) + self._limits.stalled_s
        return since if self._clock() >= since else None
