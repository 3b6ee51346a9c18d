"""Work on many files by several processes: results in order, memory bounded by the tasks in flight."""

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
AHEAD = 3  # tasks for each process that are begun, or done and waiting for the caller


def usable_cpus() -> int:
    """CPUs that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def in_processes(function: Callable[[Task], Result], tasks: Iterable[Task], processes: int) -> Iterator[Result]:
    """function(task) of each task, in order, by `processes` processes; by this one where that is 1.

    `function` is one that pickle finds by its name. Never more than AHEAD results for each process are held.
    """
    if processes <= 1:
        yield from map(function, tasks)
        return
    # fork shares what is imported already; elsewhere than on Linux it is not safe
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    waiting, pending = iter(tasks), deque[Future[Result]]()
    pool = ProcessPoolExecutor(processes, context, initializer=_leave_interrupts_to_the_parent)
    try:
        while True:
            pending.extend(pool.submit(function, task) for task in islice(waiting, AHEAD * processes - len(pending)))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the handler of a trainer that this process was forked from
