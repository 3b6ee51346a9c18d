"""service/batcher.py with an engine that the test holds open and lets go: no clocks, no sleeps."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.batcher import Batcher, Row
from service.engine import Outputs
from service.errors import DeadlineExceeded, NotReady, Overloaded

WAIT_S = 10  # only reached when something is broken


class FakeEngine:
    """Answers each image with its own value. Closed, it holds every batch until `opened`."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.poison: set[int] = set()

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        values = images[:, 0, 0, 0].astype(int).tolist()
        self.batches.append(values)
        self.entered.release()
        assert self.gate.wait(WAIT_S)
        if self.poison & set(values):
            raise RuntimeError("poisoned")
        column = np.array(values, np.float32)
        return Outputs(np.stack([column, -column], 1), {"energy": column})

    async def busy(self) -> None:
        """Return once one more batch has entered."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=WAIT_S)


def image(value: int) -> NDArray[np.uint8]:
    return np.full((2, 2, 3), value, np.uint8)


@asynccontextmanager
async def made(
    engine: FakeEngine, *, workers: int = 1, max_batch_images: int = 4, queue_images: int = 100
) -> AsyncIterator[Batcher]:
    batcher = Batcher(engine.run, workers=workers, max_batch_images=max_batch_images, queue_images=queue_images)
    try:
        yield batcher
    finally:
        engine.gate.set()
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


def test_idle_engine_runs_at_once_without_waiting_for_a_batch() -> None:
    async def body() -> None:
        engine = FakeEngine()
        async with made(engine, workers=2) as batcher:
            engine.gate.clear()
            first = asyncio.create_task(batcher.submit(image(1), later()))
            await engine.busy()
            second = asyncio.create_task(batcher.submit(image(2), later()))
            await engine.busy()  # the second thread is idle, so the second image does not wait for the first
            assert engine.batches == [[1], [2]]
            engine.gate.set()
            assert ((await first).batch_images, (await second).batch_images) == (1, 1)

    run(body)


def test_batches_form_while_busy_in_order_and_within_the_limit() -> None:
    async def body() -> None:
        engine = FakeEngine()
        async with made(engine, max_batch_images=4) as batcher:
            engine.gate.clear()
            tasks = [asyncio.create_task(batcher.submit(image(0), later()))]
            await engine.busy()
            tasks += [asyncio.create_task(batcher.submit(image(i), later())) for i in range(1, 8)]
            await turns()
            assert engine.batches == [[0]]
            engine.gate.set()
            rows = await asyncio.gather(*tasks)
            assert engine.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]
            assert [row.scores["energy"] for row in rows] == list(range(8))
            assert [row.batch_images for row in rows] == [1, 4, 4, 4, 4, 3, 3, 3]

    run(body)


@given(st.permutations(range(9)), st.integers(1, 5), st.integers(1, 3))
@hypothesis_settings(max_examples=15, deadline=None)
def test_everyone_gets_their_own_answer_in_any_order(order: list[int], max_batch: int, workers: int) -> None:
    async def body() -> None:
        engine = FakeEngine()
        async with made(engine, workers=workers, max_batch_images=max_batch) as batcher:
            rows = await asyncio.gather(*(batcher.submit(image(i), later()) for i in order))
            assert [row.scores["energy"] for row in rows] == order
            assert [row.probabilities.tolist() for row in rows] == [[i, -i] for i in order]

    run(body)


@given(st.sets(st.integers(1, 11)), st.sets(st.integers(1, 11)), st.integers(1, 5))
@hypothesis_settings(max_examples=25, deadline=None)
def test_cancelled_waiters_never_harm_their_neighbours(early: set[int], late: set[int], max_batch: int) -> None:
    """`early` leave while they wait in the queue, `late` when their batch is in the engine already."""

    async def body() -> None:
        engine = FakeEngine()
        async with made(engine, max_batch_images=max_batch) as batcher:
            engine.gate.clear()

            async def ask(value: int) -> Row:
                with batcher.reserve(1):
                    return await batcher.submit(image(value), later())

            tasks = {0: asyncio.create_task(ask(0))}
            await engine.busy()
            tasks |= {i: asyncio.create_task(ask(i)) for i in range(1, 12)}
            await turns()
            for i in early:
                tasks[i].cancel()
            await turns()
            assert batcher.held == 12 - len(early)
            engine.gate.set()
            if len(early) < 11:
                await engine.busy()
            for i in late:
                tasks[i].cancel()
            done = dict(zip(tasks, await asyncio.gather(*tasks.values(), return_exceptions=True), strict=True))
            for i, result in done.items():
                if i not in early | late:
                    assert isinstance(result, Row)
                    assert result.scores["energy"] == i
            assert await batcher.drain(WAIT_S)
            assert not early & {value for batch in engine.batches for value in batch}  # never reached the engine
            with batcher.reserve(1):
                assert (await batcher.submit(image(99), later())).scores["energy"] == 99

    run(body)


def test_queue_counts_images_and_refuses_all_or_nothing() -> None:
    async def body() -> None:
        engine = FakeEngine()
        async with made(engine, queue_images=10) as batcher:
            with batcher.reserve(6):
                with pytest.raises(Overloaded, match=r"6 images are queued and 5 more would pass the limit of 10"):
                    batcher.reserve(5).__enter__()
                with batcher.reserve(4):
                    assert batcher.held == 10
                assert batcher.held == 6
            assert batcher.held == 0

    run(body)


def test_retry_after_comes_from_the_measured_rate() -> None:
    async def body() -> None:
        engine = FakeEngine()
        async with made(engine, workers=2) as batcher:
            assert batcher.retry_after_s == 1  # nothing measured yet
            await batcher.submit(image(1), later())
            batcher._image_s = 0.5  # as if measured: two workers then do four images a second
            with batcher.reserve(40), pytest.raises(Overloaded) as refused:
                batcher.reserve(61).__enter__()
            assert refused.value.retry_after_s == pytest.approx(10)

    run(body)


def test_deadline_in_the_queue_drops_the_image_before_the_engine() -> None:
    async def body() -> None:
        engine = FakeEngine()
        async with made(engine) as batcher:
            engine.gate.clear()
            first = asyncio.create_task(batcher.submit(image(1), later()))
            await engine.busy()
            with pytest.raises(DeadlineExceeded):
                await batcher.submit(image(2), asyncio.get_running_loop().time() + 0.01)
            engine.gate.set()
            assert (await first).scores["energy"] == 1
            assert (await batcher.submit(image(3), later())).scores["energy"] == 3
            assert engine.batches == [[1], [3]]

    run(body)


def test_expired_before_it_comes_is_refused() -> None:
    async def body() -> None:
        engine = FakeEngine()
        async with made(engine) as batcher:
            with pytest.raises(DeadlineExceeded):
                await batcher.submit(image(1), asyncio.get_running_loop().time() - 1)
            assert engine.batches == []

    run(body)


def test_failure_of_a_batch_stays_in_the_batch() -> None:
    async def body() -> None:
        engine = FakeEngine()
        async with made(engine, max_batch_images=2) as batcher:
            engine.gate.clear()
            engine.poison = {2}
            tasks = [asyncio.create_task(batcher.submit(image(0), later()))]
            await engine.busy()
            tasks += [asyncio.create_task(batcher.submit(image(i), later())) for i in (1, 2, 3, 4)]
            await turns()
            engine.gate.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert engine.batches == [[0], [1, 2], [3, 4]]
            assert [type(r) for r in results] == [Row, RuntimeError, RuntimeError, Row, Row]

    run(body)


def test_drain_waits_for_what_is_held_and_close_refuses_the_rest() -> None:
    async def body() -> None:
        engine = FakeEngine()
        async with made(engine) as batcher:
            assert await batcher.drain(0.01)
            engine.gate.clear()

            async def ask(value: int) -> Row:
                with batcher.reserve(1):
                    return await batcher.submit(image(value), later())

            inside, waiting = asyncio.create_task(ask(1)), asyncio.create_task(ask(2))
            await engine.busy()
            await turns()
            assert not await batcher.drain(0.01)
            batcher.close()
            with pytest.raises(NotReady):
                await waiting
            with pytest.raises(NotReady):
                batcher.reserve(1).__enter__()
            with pytest.raises(NotReady):
                await batcher.submit(image(3), later())
            engine.gate.set()
            assert (await inside).scores["energy"] == 1
            assert await batcher.drain(WAIT_S)
            assert engine.batches == [[1]]

    run(body)
