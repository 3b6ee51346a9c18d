"""A thread pool that batches items while all workers are busy. An idle worker runs one item at once.

    batcher = Batcher(run, workers=2, max_batch=16)     # run: list[Ticket[Item]] -> list[Result | Exception]
    result = await batcher.submit(item, deadline)

`submit` is called in the event loop and its results are set there. Workers take items from the queue themselves; no
lock is needed, since appending to a deque and popping from it are atomic. An item whose caller is cancelled or past its
deadline is removed from the queue; the rest of its batch is not affected.
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
    """One item and the future of its caller. `unwanted`, read from any thread: nobody waits for the result any more."""

    __slots__ = ("_answer", "item")

    def __init__(self, item: Item, answer: "asyncio.Future[object]") -> None:
        self.item = item
        self._answer = answer

    @property
    def unwanted(self) -> bool:
        return self._answer.done()

    def settle(self, result: object) -> None:
        """Set the caller's result or exception, unless it has one. Only in the event loop."""
        if self._answer.done():
            return
        if isinstance(result, BaseException):
            self._answer.set_exception(result)
        else:
            self._answer.set_result(result)


class Batcher(Generic[Item, Result]):
    """Calls `run` in `workers` threads with batches of at most `max_batch` items.

    `run` gets the tickets of a batch and returns a result or an exception for each; an exception that it raises goes to
    every caller of the batch. `on_batch(items, seconds)` is called in the event loop after each batch.
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
        self._idle: list[SimpleQueue[None]] = []  # the wake-up queues of idle workers, the most recent last
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        # Daemon threads: a graph that never returns must not keep the process from ending.
        for i in range(workers):
            threading.Thread(target=self._work, name=f"{name}-{i}", daemon=True).start()

    async def submit(self, item: Item, deadline: float) -> Result:
        """The result of `run` for `item`. `deadline` is in the event loop's time, seconds.

        Raises DeadlineExceeded when it passes first, NotReady when closed, and what `run` returns or raises for it.
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
                self._pending.remove(ticket)  # cancelled or late: no worker gets it
            raise
        finally:
            timer.cancel()

    def close(self) -> None:
        """Refuse new and queued items. Batches that run already end, and their callers get the results."""
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
        # The worker that became idle last: its core's caches are warm, and workers that are not needed stay idle.
        with suppress(IndexError):
            self._idle.pop().put(None)

    def _work(self) -> None:  # a worker thread, from here ...
        if self._niceness:
            with suppress(OSError, AttributeError):  # only Linux has a priority per thread
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._niceness)
        wakeup: SimpleQueue[None] = SimpleQueue()
        while True:
            if batch := self._take():
                self._run_one(batch)
                del batch  # frees the images while this worker is idle
            elif self._closed:
                return
            else:
                # submit() appends, then wakes; a worker registers as idle, then checks again: no wake-up is lost.
                self._idle.append(wakeup)
                if self._pending or self._closed:
                    with suppress(ValueError):  # already removed by _wake: the wake-up is on its way
                        self._idle.remove(wakeup)
                        continue
                wakeup.get()

    def _take(self) -> list[Ticket[Item]]:
        # An equal share for each worker: a batch of the whole queue would leave the other workers idle.
        share = min(self._max_batch, -(-len(self._pending) // self._workers))
        batch: list[Ticket[Item]] = []
        with suppress(IndexError):  # another worker has emptied the queue
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
        with suppress(RuntimeError):  # the event loop is closed, and its callers are gone
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
