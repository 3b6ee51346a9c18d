"""Work waits here for a thread. No wait when one is idle; batches form only while all are busy.

    batcher = Batcher(run, workers=2, max_batch=16)     # run: list[Ticket[Item]] -> list[Result | Exception]
    result = await batcher.submit(item, deadline)

Everything but `run` happens in the event loop, so there are no locks. A waiter that is cancelled or late leaves the
queue by itself; nothing else in the batch notices.
"""

import asyncio
import os
import threading
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

    __slots__ = ("_answer", "deadline", "item")

    def __init__(self, item: Item, answer: "asyncio.Future[object]", deadline: float) -> None:
        self.item = item
        self.deadline = deadline  # in the event loop's time
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
        self._workers = self._idle = workers
        self._max_batch = max_batch
        self._niceness = niceness
        self._on_batch = on_batch
        self._pending: dict[Ticket[Item], None] = {}  # in order of arrival; a dict, so that leaving costs no search
        self._work: SimpleQueue[tuple[asyncio.AbstractEventLoop, list[Ticket[Item]]] | None] = SimpleQueue()
        self._closed = False
        # Daemons: a graph that never returns must not keep the process from ending.
        for i in range(workers):
            threading.Thread(target=self._loop, name=f"{name}-{i}", daemon=True).start()

    async def submit(self, item: Item, deadline: float) -> Result:
        """What `run` makes of `item`. `deadline` is in the event loop's time, seconds.

        Raises DeadlineExceeded when it passes first, NotReady when closed, and what `run` gives or raises.
        """
        if self._closed:
            raise NotReady("the service is shutting down: send the request to another replica")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Result] = loop.create_future()
        ticket = Ticket(item, answer, deadline)  # type: ignore[arg-type]  # Future is invariant; only settle writes
        timer = loop.call_at(deadline, self._expire, ticket)
        self._pending[ticket] = None
        self._dispatch(loop)
        try:
            return await answer
        finally:
            timer.cancel()
            self._pending.pop(ticket, None)  # cancelled or late: it never reaches a thread

    def close(self) -> None:
        """Refuse what comes and what waits. Batches already in a thread are left to end; their waiters are answered."""
        if self._closed:
            return
        self._closed = True
        for ticket in self._pending:
            ticket.settle(NotReady("the service shut down before the image was classified: send it to another replica"))
        self._pending.clear()
        for _ in range(self._workers):
            self._work.put(None)

    def _expire(self, ticket: Ticket[Item]) -> None:
        ticket.settle(DeadlineExceeded("no answer at the deadline: try again when there is less load"))

    def _dispatch(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._idle and (batch := self._take(loop.time())):
            self._idle -= 1
            self._work.put((loop, batch))

    def _take(self, now: float) -> list[Ticket[Item]]:
        # An equal share for every worker: a batch of all that waits would leave the next worker idle beside it.
        share = min(self._max_batch, -(-len(self._pending) // self._workers))
        batch: list[Ticket[Item]] = []
        while self._pending and len(batch) < share:
            ticket = next(iter(self._pending))
            del self._pending[ticket]
            if ticket.deadline <= now:
                self._expire(ticket)
            elif not ticket.unwanted:
                batch.append(ticket)
        return batch

    def _loop(self) -> None:  # a worker thread, from here ...
        if self._niceness:
            with suppress(OSError):  # a matter of comfort: the event loop is to be scheduled before this
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._niceness)
        while (work := self._work.get()) is not None:
            loop, batch = work
            started = perf_counter()
            results: list[Result | Exception] | Exception
            try:
                results = self._run(batch)
            except Exception as error:
                results = error
            seconds = perf_counter() - started
            with suppress(RuntimeError):  # the event loop has ended: nobody waits any more
                loop.call_soon_threadsafe(self._finish, loop, batch, results, seconds)
            del work, batch, results  # while it waits for the next batch nothing keeps these images alive

    def _finish(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[Ticket[Item]],
        results: list[Result | Exception] | Exception,
        seconds: float,
    ) -> None:  # ... to here, back in the event loop
        self._idle += 1
        if not self._closed:
            self._dispatch(loop)  # first: the thread works while the waiters are answered
        if isinstance(results, Exception):
            results = [results] * len(batch)
        self._on_batch(len(batch), seconds)
        for ticket, result in zip(batch, results, strict=True):
            ticket.settle(result)
