"""Work waits here for a thread. No wait when one is idle; batches form only while all are busy.

    batcher = Batcher(run, workers=2, max_batch=16)     # run: list[Ticket[Item]] -> list[Result | Exception]
    result = await batcher.submit(item, deadline)

Answers are given in the event loop; threads take what waits by themselves, so none sleeps while there is work, and no
lock is needed: appending to a deque and taking from it are atomic. A waiter that is cancelled or late leaves the queue
by itself; nothing else in the batch notices.
"""

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from time import perf_counter
from typing import Generic, TypeVar

from service.errors import DeadlineExceeded, NotReady

Item = TypeVar("Item")
Result = TypeVar("Result")


class Ticket(Generic[Item]):
    """One item and who waits for it. `unwanted` may be read from any thread: work on such an item is wasted."""

    __slots__ = ("_answer", "item")

    def __init__(self, item: Item, answer: "asyncio.Future[object]") -> None:
        self.item = item
        self._answer = answer

    @property
    def unwanted(self) -> bool:
        return self._answer.done()

    def settle(self, result: object) -> None:
        """Give the waiter its result, or raise it there; nothing when it has left. Only in the event loop."""
        if self._answer.done():
            return
        if isinstance(result, BaseException):
            self._answer.set_exception(result)
        else:
            self._answer.set_result(result)


class Batcher(Generic[Item, Result]):
    """Feeds `run` from `workers` threads with batches of at most `max_batch` items.

    `run` gets the tickets of a batch and returns one result for each, or the exception that its waiter shall see; what
    it raises, every waiter of the batch sees. `on_batch(items, seconds)` is told of every batch that has run.
    """

    def __init__(
        self,
        run: Callable[[list[Ticket[Item]]], list[Result | Exception]],
        *,
        workers: int,
        max_batch: int,
        name: str = "worker",
        niceness: int = 0,
        on_batch: Callable[[int, float], None] = lambda items, seconds: None,
    ) -> None:
        self._run = run
        self._workers = workers
        self._max_batch = max_batch
        self._niceness = niceness
        self._on_batch = on_batch
        self._pending: deque[Ticket[Item]] = deque()  # in order of arrival
        self._idle: list[SimpleQueue[None]] = []  # what the sleeping threads wait at, the last to fall asleep last
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        # Daemons: a graph that never returns must not keep the process from ending.
        for i in range(workers):
            threading.Thread(target=self._work, name=f"{name}-{i}", daemon=True).start()

    async def submit(self, item: Item, deadline: float) -> Result:
        """What `run` makes of `item`. `deadline` is in the event loop's time, seconds.

        Raises DeadlineExceeded when it passes first, NotReady when closed, and what `run` gives or raises.
        """
        if self._closed:
            raise NotReady("the service is shutting down: send the request to another replica")
        self._loop = loop = asyncio.get_running_loop()
        if deadline <= loop.time():
            raise _late()
        answer: asyncio.Future[Result] = loop.create_future()
        ticket = Ticket(item, answer)  # type: ignore[arg-type]  # Future is invariant; only settle writes
        timer = loop.call_at(deadline, ticket.settle, _late())
        self._pending.append(ticket)
        self._wake()
        try:
            return await answer
        except BaseException:
            with suppress(ValueError):  # taken already
                self._pending.remove(ticket)  # cancelled or late: it never reaches a thread
            raise
        finally:
            timer.cancel()

    def close(self) -> None:
        """Refuse what comes and what waits. Batches already in a thread are left to end; their waiters are answered."""
        self._closed = True
        with suppress(IndexError):
            while True:
                self._pending.popleft().settle(
                    NotReady("the service shut down before the image was classified: send it to another replica")
                )
        with suppress(IndexError):
            while True:
                self._idle.pop().put(None)

    def _wake(self) -> None:
        # The last to fall asleep: its core still knows this work, and threads beyond the need sleep on.
        with suppress(IndexError):
            self._idle.pop().put(None)

    def _work(self) -> None:  # a worker thread, from here ...
        if self._niceness:
            with suppress(OSError):  # a matter of comfort: the event loop is to be scheduled before this
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._niceness)
        bed: SimpleQueue[None] = SimpleQueue()
        while True:
            if batch := self._take():
                self._run_one(batch)
                del batch  # while it sleeps nothing keeps these images alive
            elif self._closed:
                return
            else:
                # Whoever submits appends first and looks for sleepers then; whoever falls asleep does it the other way
                # round: nobody sleeps while something waits.
                self._idle.append(bed)
                if self._pending or self._closed:
                    with suppress(ValueError):  # else somebody is waking it already
                        self._idle.remove(bed)
                        continue
                bed.get()

    def _take(self) -> list[Ticket[Item]]:
        # An equal share for every worker: a batch of all that waits would leave the next worker idle beside it.
        share = min(self._max_batch, -(-len(self._pending) // self._workers))
        batch: list[Ticket[Item]] = []
        with suppress(IndexError):  # another thread was quicker
            while len(batch) < share:
                ticket = self._pending.popleft()
                if not ticket.unwanted:
                    batch.append(ticket)
        return batch

    def _run_one(self, batch: list[Ticket[Item]]) -> None:
        started = perf_counter()
        results: list[Result | Exception] | Exception
        try:
            results = self._run(batch)
        except Exception as error:
            results = error
        seconds = perf_counter() - started
        assert self._loop is not None  # set before the first ticket was queued
        with suppress(RuntimeError):  # the event loop has ended: nobody waits any more
            self._loop.call_soon_threadsafe(self._finish, batch, results, seconds)

    def _finish(
        self, batch: list[Ticket[Item]], results: list[Result | Exception] | Exception, seconds: float
    ) -> None:  # ... to here, back in the event loop
        if isinstance(results, Exception):
            results = [results] * len(batch)
        self._on_batch(len(batch), seconds)
        for ticket, result in zip(batch, results, strict=True):
            ticket.settle(result)


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("no answer at the deadline: try again when there is less load")
