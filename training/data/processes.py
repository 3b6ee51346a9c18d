"""Work on many files by several processes: results in order, memory bounded by the tasks in flight."""

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context, parent_process
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
AHEAD = 3  # tasks for each process that are begun, or done and waiting for the caller


def usable_cpus() -> int:
    """CPUs that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def forks() -> bool:
    """Whether processes begin as copies of this one, so that they share its memory maps; elsewhere that is not safe."""
    return sys.platform == "linux"


def in_processes(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    processes: int,
    *,
    start: Callable[[], None] | None = None,
) -> Iterator[Result]:
    """function(task) of each task, in order, by `processes` processes; by this one where that is 1.

    `function` is one that pickle finds by its name, and so is `start`, which each process calls first. Never more than
    AHEAD tasks for each process are begun whose results have not been taken.
    """
    if processes <= 1:
        yield from map(function, tasks)
        return
    context = get_context("fork" if forks() else "spawn")
    waiting, pending = iter(tasks), deque[Future[Result]]()
    pool = ProcessPoolExecutor(processes, context, initializer=_start, initargs=(start,))
    try:
        while True:
            pending.extend(pool.submit(function, task) for task in islice(waiting, AHEAD * processes - len(pending)))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start(start: Callable[[], None] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the handler of a trainer that this process was forked from
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if start is not None:
        start()


def _end_with_parent() -> None:
    """Where the parent is killed nobody ends its processes: they waited for ever, with its memory and its locks."""
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)
