"""service/inference/batcher.py with a function that the test holds open and lets go: no clocks, no sleeps."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.errors import DeadlineExceeded, NotReady
from service.inference.batcher import Batcher, Ticket

WAIT_S = 10  # only reached when something is broken


class FakeRun:
    """Answers each item with its tenfold. Closed, it holds every batch until `gate` is set."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.poison: set[int] = set()
        self.bad: set[int] = set()

    def __call__(self, batch: list[Ticket[int]]) -> list[int | Exception]:
        values = [ticket.item for ticket in batch]
        self.batches.append(values)
        self.entered.release()
        assert self.gate.wait(WAIT_S)
        if self.poison & set(values):
            raise RuntimeError("poisoned")
        return [ValueError(v) if v in self.bad else 10 * v for v in values]

    async def busy(self) -> None:
        """Return once one more batch has entered."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=WAIT_S)


@asynccontextmanager
async def made(run: FakeRun, *, workers: int = 1, max_batch: int = 4) -> AsyncIterator[Batcher[int, int]]:
    batcher: Batcher[int, int] = Batcher(run, workers=workers, max_batch=max_batch)
    try:
        yield batcher
    finally:
        run.gate.set()
        batcher.close()


def later() -> float:
    return asyncio.get_running_loop().time() + WAIT_S


async def turns() -> None:
    """Let every task that can run reach its next wait."""
    for _ in range(10):
        await asyncio.sleep(0)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(3 * WAIT_S):
            await test()

    asyncio.run(bounded())


def test_idle_thread_runs_at_once_without_waiting_for_a_batch() -> None:
    async def body() -> None:
        work = FakeRun()
        async with made(work, workers=2) as batcher:
            work.gate.clear()
            first = asyncio.create_task(batcher.submit(1, later()))
            await work.busy()
            second = asyncio.create_task(batcher.submit(2, later()))
            await work.busy()  # the second thread is idle, so the second item does not wait for the first
            assert work.batches == [[1], [2]]
            work.gate.set()
            assert (await first, await second) == (10, 20)

    run(body)


def test_batches_form_while_busy_in_order_and_within_the_limit() -> None:
    async def body() -> None:
        work = FakeRun()
        async with made(work, max_batch=4) as batcher:
            work.gate.clear()
            tasks = [asyncio.create_task(batcher.submit(0, later()))]
            await work.busy()
            tasks += [asyncio.create_task(batcher.submit(i, later())) for i in range(1, 8)]
            await turns()
            assert work.batches == [[0]]
            work.gate.set()
            assert await asyncio.gather(*tasks) == [10 * i for i in range(8)]
            assert work.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]

    run(body)


def test_what_waits_is_shared_out_between_the_threads() -> None:
    async def body() -> None:
        work = FakeRun()
        async with made(work, workers=2, max_batch=16) as batcher:
            work.gate.clear()
            tasks = [asyncio.create_task(batcher.submit(i, later())) for i in range(2)]
            await work.busy()
            await work.busy()
            tasks += [asyncio.create_task(batcher.submit(i, later())) for i in range(2, 10)]
            await turns()
            work.gate.set()
            await asyncio.gather(*tasks)
            assert sorted(map(tuple, work.batches))[:3] == [(0,), (1,), (2, 3, 4, 5)]  # half of the eight, not all

    run(body)


@given(st.permutations(range(9)), st.integers(1, 5), st.integers(1, 3))
@hypothesis_settings(max_examples=15, deadline=None)
def test_everyone_gets_their_own_answer_in_any_order(order: list[int], max_batch: int, workers: int) -> None:
    async def body() -> None:
        work = FakeRun()
        work.bad = {4}
        async with made(work, workers=workers, max_batch=max_batch) as batcher:
            found = await asyncio.gather(*(batcher.submit(i, later()) for i in order), return_exceptions=True)
            assert [str(f) if isinstance(f, ValueError) else f for f in found] == [
                "4" if i == 4 else 10 * i for i in order
            ]

    run(body)


@given(st.sets(st.integers(1, 11)), st.sets(st.integers(1, 11)), st.integers(1, 5))
@hypothesis_settings(max_examples=25, deadline=None)
def test_cancelled_waiters_never_harm_their_neighbours(early: set[int], late: set[int], max_batch: int) -> None:
    """`early` leave while they wait in the queue, `late` when their batch is in a thread already."""

    async def body() -> None:
        work = FakeRun()
        async with made(work, max_batch=max_batch) as batcher:
            work.gate.clear()
            tasks = {0: asyncio.create_task(batcher.submit(0, later()))}
            await work.busy()
            tasks |= {i: asyncio.create_task(batcher.submit(i, later())) for i in range(1, 12)}
            await turns()
            for i in early:
                tasks[i].cancel()
            await turns()
            work.gate.set()
            if len(early) < 11:
                await work.busy()
            for i in late:
                tasks[i].cancel()
            done = dict(zip(tasks, await asyncio.gather(*tasks.values(), return_exceptions=True), strict=True))
            assert all(result == 10 * i for i, result in done.items() if i not in early | late)
            assert not early & {value for batch in work.batches for value in batch}  # never reached a thread
            assert await batcher.submit(99, later()) == 990

    run(body)


def test_deadline_in_the_queue_drops_the_item_before_a_thread() -> None:
    async def body() -> None:
        work = FakeRun()
        async with made(work) as batcher:
            work.gate.clear()
            first = asyncio.create_task(batcher.submit(1, later()))
            await work.busy()
            with pytest.raises(DeadlineExceeded):
                await batcher.submit(2, asyncio.get_running_loop().time() + 0.01)
            work.gate.set()
            assert await first == 10
            assert await batcher.submit(3, later()) == 30
            assert work.batches == [[1], [3]]

    run(body)


def test_expired_before_it_comes_is_refused() -> None:
    async def body() -> None:
        work = FakeRun()
        async with made(work) as batcher:
            with pytest.raises(DeadlineExceeded):
                await batcher.submit(1, asyncio.get_running_loop().time() - 1)
            assert work.batches == []

    run(body)


def test_deadline_while_in_a_thread_is_told_and_the_thread_goes_on() -> None:
    async def body() -> None:
        work = FakeRun()
        async with made(work) as batcher:
            work.gate.clear()
            with pytest.raises(DeadlineExceeded):
                await batcher.submit(1, asyncio.get_running_loop().time() + 0.05)
            work.gate.set()
            assert await batcher.submit(2, later()) == 20

    run(body)


def test_failure_of_a_batch_stays_in_the_batch() -> None:
    async def body() -> None:
        work = FakeRun()
        async with made(work, max_batch=2) as batcher:
            work.gate.clear()
            work.poison = {2}
            tasks = [asyncio.create_task(batcher.submit(0, later()))]
            await work.busy()
            tasks += [asyncio.create_task(batcher.submit(i, later())) for i in (1, 2, 3, 4)]
            await turns()
            work.gate.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert work.batches == [[0], [1, 2], [3, 4]]
            assert [type(r) for r in results] == [int, RuntimeError, RuntimeError, int, int]

    run(body)


def test_close_refuses_what_waits_answers_what_runs_and_ends_the_threads() -> None:
    async def body() -> None:
        work = FakeRun()
        before = threading.enumerate()
        async with made(work, workers=2, max_batch=1) as batcher:
            threads = [t for t in threading.enumerate() if t.name.startswith("worker-") and t not in before]
            assert len(threads) == 2
            work.gate.clear()
            tasks = [asyncio.create_task(batcher.submit(i, later())) for i in range(3)]
            await work.busy()
            await work.busy()
            await turns()
            batcher.close()
            with pytest.raises(NotReady):
                await tasks[2]
            with pytest.raises(NotReady):
                await batcher.submit(3, later())
            work.gate.set()
            assert (await tasks[0], await tasks[1]) == (0, 10)
            for thread in threads:
                await asyncio.to_thread(thread.join, WAIT_S)
                assert not thread.is_alive()

    run(body)
