"""The batches of a run: which are done, which are to be scored, and their rows in order."""

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from service.contract.progress import Progress
from service.score.journal import Journal, State, state_of
from service.score.rows import ResultRow, Scorer
from service.score.stopping import Stop

AHEAD_BATCHES = 4  # of each thread: rows are kept in order, and one slow file must not stop the others

# Run: batches of paths → the rows of each, in order; closing it gives up what is under way
Run = Callable[[Iterable[list[str]]], Generator[list[ResultRow], None, None]]


class Plan:
    """The batches to score, and which of them the journal has already.

    Batches are cut from the whole of `paths`, whatever is done: a run in pieces then meets the same batches as one in
    one piece, and its floats are the same to the last bit.
    """

    def __init__(self, journal: Journal, paths: list[str], batch_images: int) -> None:
        self.journal = journal
        self.batches = [paths[i : i + batch_images] for i in range(0, len(paths), batch_images)]
        self.done = [all(path in journal for path in batch) for batch in self.batches]
        self.images = len(paths)
        self.count = sum(len(b) for b, done in zip(self.batches, self.done, strict=True) if not done)


def rows_of(plan: Plan, run: Run, stop: Stop) -> Generator[ResultRow, None, None]:
    """The rows of all paths in their order, read from the journal, or scored and appended to it."""
    kept = plan.images - plan.count
    if kept:
        print(f"tailguard: {kept} of {plan.images} images are in {plan.journal.path} already", file=sys.stderr)
    states: deque[list[State]] = deque()  # of the files of each batch, from just before it is read
    fresh = run(_noted((batch for batch, done in zip(plan.batches, plan.done, strict=True) if not done), states))
    bar = Progress(total=plan.images, initial=kept, unit="image", disable=None)
    try:
        for batch, done in zip(plan.batches, plan.done, strict=True):
            stop.check()
            if done:
                yield from map(plan.journal.row, batch)
            else:
                rows = next(fresh)
                stop.check()  # then the batch may have been given up
                plan.journal.append(rows, states.popleft())
                bar.update(len(rows))
                yield from rows
    finally:
        stop.set()  # when this ends early, the threads need not finish their batches first
        fresh.close()
        bar.close()


def _noted(batches: Iterable[list[str]], states: deque[list[State]]) -> Iterator[list[str]]:
    """The batches, as they are asked for; the states of their files go to `states`."""
    for batch in batches:
        states.append([state_of(path) for path in batch])
        yield batch


def on_threads(
    scorer: Scorer, threads: int, stop: Stop, batches: Iterable[list[str]]
) -> Generator[list[ResultRow], None, None]:
    """The rows of each batch in order; a few batches of each thread are submitted at once."""
    pool = ThreadPoolExecutor(threads, "score")
    pending: deque[Future[list[ResultRow]]] = deque()
    waiting = iter(batches)
    try:
        while True:
            more = islice(waiting, AHEAD_BATCHES * threads - len(pending))
            pending.extend(pool.submit(scorer.score, batch, stop.is_set) for batch in more)
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
