"""service/inference/pipeline.py: both of its shapes, bounded memory, an engine that fails, and its end."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.contract import bundle, images
from service.contract.bundle import Manifest
from service.errors import DeadlineExceeded, InvalidImage, NotReady, UnsupportedMedia
from service.inference.engine import Engine, Outputs
from service.inference.health import HealthLimits
from service.inference.pipeline import Dials, Pipeline
from service.inference.rows import Row
from service.inference.wanted import NOTHING, Wanted
from tests.service import tiny
from tests.service.inference.test_batcher import WAIT_S, later, run, turns


class FakeEngine:
    """Answers each image with its own value. Closed, it holds every batch until `gate` is set."""

    def __init__(self) -> None:
        self.manifest = Manifest.model_validate(tiny.manifest() | {"format": 1, "files": bundle.digests(tiny.files())})
        self.batches: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.broken = False

    def run(self, batch: NDArray[np.uint8], wanted: Wanted = NOTHING) -> Outputs:
        values = batch[:, 0, 0, 0].astype(int).tolist()
        self.batches.append(values)
        self.entered.release()
        assert self.gate.wait(WAIT_S)
        if self.broken:
            raise RuntimeError("CUDA error 700")
        column = np.array(values, np.float32)
        return Outputs(np.stack([column, -column], 1), {"energy": column})

    async def busy(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=WAIT_S)


def image(value: int) -> NDArray[np.uint8]:
    return np.full((2, 2, 3), value, np.uint8)


def dials(fused: bool = True, **changes: Any) -> Dials:
    given: dict[str, Any] = {"max_pixels": 10_000, "queue_images": 100, "max_batch_images": 4, "decode_threads": 2,
             "inference_threads": 1} | changes  # fmt: skip
    return Dials(**given, fused=fused)


@asynccontextmanager
async def made(engine: FakeEngine | Engine, chosen: Dials) -> AsyncIterator[Pipeline]:
    pipeline = Pipeline(engine, chosen)
    try:
        yield pipeline
    finally:
        if isinstance(engine, FakeEngine):
            engine.gate.set()
        pipeline.close()


@pytest.mark.parametrize("fused", [True, False])
def test_files_and_pixels_good_and_bad_each_get_their_own(tiny_bundle: Path, fused: bool) -> None:
    async def body() -> None:
        engine = Engine(tiny_bundle, bundle.read(tiny_bundle))
        red, blue = tiny.photo((220, 30, 30), (20, 10)), tiny.photo((10, 20, 200))
        pixels = np.full((tiny.SIDE, tiny.SIDE, 3), (30, 220, 30), np.uint8)
        sent = [red, b"hello", pixels, tiny.photo()[:45], blue, tiny.photo((1, 2, 3), (200, 200))]
        async with made(engine, dials(fused)) as pipeline:
            rows = await asyncio.gather(*(pipeline.submit(x, later()) for x in sent), return_exceptions=True)
        found = [tiny.CLASSES[int(r.probabilities.argmax())] if isinstance(r, Row) else type(r) for r in rows]
        assert found == ["red", UnsupportedMedia, "green", InvalidImage, "blue", InvalidImage]
        assert isinstance(rows[0], Row)
        assert (rows[0].width_px, rows[0].height_px) == (20, 10)
        assert "40000 pixels, the limit is 10000" in str(rows[5])

    run(body)


@given(st.sets(st.integers(1, 11)), st.sets(st.integers(1, 11)), st.integers(1, 5), st.booleans())
@hypothesis_settings(max_examples=25, deadline=None)
def test_cancelled_requests_give_their_slots_back(early: set[int], late: set[int], max_batch: int, fused: bool) -> None:
    """`early` leave while they wait in the queue, `late` when their batch is in the engine already."""

    async def body() -> None:
        engine = FakeEngine()
        async with made(engine, dials(fused, max_batch_images=max_batch)) as pipeline:
            engine.gate.clear()

            async def ask(value: int) -> Row:
                with pipeline.reserve(1):
                    return await pipeline.submit(image(value), later())

            tasks = {0: asyncio.create_task(ask(0))}
            await engine.busy()
            tasks |= {i: asyncio.create_task(ask(i)) for i in range(1, 12)}
            await turns()
            for i in early:
                tasks[i].cancel()
            await turns()
            assert pipeline.held == 12 - len(early)
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
            assert await pipeline.drain(WAIT_S)
            with pipeline.reserve(1):
                assert (await pipeline.submit(image(99), later())).scores["energy"] == 99

    run(body)


def test_image_that_nobody_waits_for_is_not_decoded(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        engine = FakeEngine()
        async with made(engine, dials()) as pipeline:
            engine.gate.clear()
            first = asyncio.create_task(pipeline.submit(image(1), later()))
            await engine.busy()
            monkeypatch.setattr("service.contract.images.load", lambda *_, **__: 1 / 0)
            with pytest.raises(DeadlineExceeded):
                await pipeline.submit(tiny.photo(), asyncio.get_running_loop().time() + 0.01)
            engine.gate.set()
            assert (await first).scores["energy"] == 1
            assert (await pipeline.submit(image(3), later())).scores["energy"] == 3
            assert engine.batches == [[1], [3]]

    run(body)


@pytest.mark.parametrize("fused", [True, False])
def test_drain_waits_for_what_is_held_and_close_refuses_the_rest(fused: bool) -> None:
    async def body() -> None:
        engine = FakeEngine()
        async with made(engine, dials(fused)) as pipeline:
            assert await pipeline.drain(0.01)
            engine.gate.clear()

            async def ask(value: int) -> Row:
                with pipeline.reserve(1):
                    return await pipeline.submit(image(value), later())

            inside = asyncio.create_task(ask(1))
            await engine.busy()
            waiting = asyncio.create_task(ask(2))
            await turns()
            assert not await pipeline.drain(0.01)
            pipeline.close()
            with pytest.raises(NotReady):
                await waiting
            with pytest.raises(NotReady):
                pipeline.reserve(1).__enter__()
            with pytest.raises(NotReady):
                await pipeline.submit(image(3), later())
            engine.gate.set()
            assert (await inside).scores["energy"] == 1
            assert await pipeline.drain(WAIT_S)
            assert engine.batches == [[1]]

    run(body)


@pytest.mark.parametrize("fused", [True, False])
def test_decoded_images_are_bounded_in_bytes(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four threads, images of 40 bytes each, a budget of 100: never more than two are decoded at once."""

    async def body() -> None:
        lock, now, most = threading.Lock(), 0, 0

        def load(data: bytes, *_: Any, **__: Any) -> images.Loaded:
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.002)  # long enough for another thread to come in
            with lock:
                now -= 1
            return images.Loaded(image(data[0]), 2, 2)

        monkeypatch.setattr(images, "load", load)
        monkeypatch.setattr(images, "decoded_bytes", lambda data, target: 40)
        chosen = dials(fused, decode_threads=4, inference_threads=4, max_decoding_bytes=100)
        async with made(FakeEngine(), chosen) as pipeline:
            rows = await asyncio.gather(*(pipeline.submit(bytes([i]), later()) for i in range(40)))
        assert [row.scores["energy"] for row in rows] == list(range(40))
        assert most <= 2

    run(body)


class Counted:
    """What the pipeline reports."""

    def __init__(self) -> None:
        self.images = self.failed = 0

    def count_batch(self, images: int, seconds: float) -> None:
        self.images += images

    def count_failed_run(self) -> None:
        self.failed += 1


@pytest.mark.parametrize("fused", [True, False])
def test_an_engine_that_fails_is_a_fault_until_a_probe_succeeds(fused: bool) -> None:
    async def body() -> None:
        engine, counted = FakeEngine(), Counted()
        pipeline = Pipeline(engine, dials(fused, health=HealthLimits(failed_runs=3)), counted)
        engine.broken = True
        for i in range(3):
            assert pipeline.fault() is None
            with pytest.raises(RuntimeError, match="CUDA error 700"):
                await pipeline.submit(image(i), later())
        assert pipeline.fault() == "the last 3 runs of the graph failed: CUDA error 700"
        assert pipeline._probe is not None
        await pipeline._probe
        assert "the last 4 runs" in str(pipeline.fault())
        await pipeline._probe
        engine.broken = False  # and nobody sends an image: a service that is not ready gets none
        assert pipeline.fault() is not None
        await pipeline._probe
        assert pipeline.fault() is None
        assert (counted.images, counted.failed) == (1, 5)
        pipeline.close()

    run(body)


@pytest.mark.parametrize("fused", [True, False])
def test_a_batch_that_meets_a_closed_engine_is_no_failed_run(fused: bool) -> None:
    """As when the shadow ends on a promotion, with an image on its way: the log said that the graph fails."""

    async def body() -> None:
        engine, counted = FakeEngine(), Counted()
        pipeline = Pipeline(engine, dials(fused, health=HealthLimits(failed_runs=1)), counted)
        engine.gate.clear()
        waiting = asyncio.create_task(pipeline.submit(image(1), later()))
        await engine.busy()
        pipeline.close()
        engine.broken = True  # as one that is closed
        engine.gate.set()
        with pytest.raises(RuntimeError):
            await waiting
        assert (counted.failed, pipeline.fault()) == (0, None)

    run(body)


def test_images_of_a_batch_wait_for_their_slots() -> None:
    async def body() -> None:
        async with made(FakeEngine(), dials(queue_images=4)) as pipeline:
            with pipeline.reserve(2):
                rows = await asyncio.gather(*(pipeline.submit_when_free(image(i), later()) for i in range(64)))
            assert [row.scores["energy"] for row in rows] == list(range(64))
            assert pipeline.held == 0

    run(body)


@pytest.mark.parametrize("fused", [True, False])
def test_each_row_has_its_own_embedding_where_it_was_asked_for(tmp_path: Path, fused: bool) -> None:
    folder = tiny.write_embedding(tmp_path / "1")
    sent = [tiny.photo((200, 0, 0)), b"hello", tiny.photo((0, 0, 90)), tiny.photo((0, 30, 40))]

    async def body() -> None:
        for asked in (False, True):
            engine = Engine(folder, bundle.read(folder), embedding=asked)
            async with made(engine, dials(fused)) as pipeline:
                rows = await asyncio.gather(*(pipeline.submit(x, later()) for x in sent), return_exceptions=True)
            found = [r.embedding for r in rows if isinstance(r, Row)]
            if asked:
                np.testing.assert_allclose(found, [[1, 0, 0], [0, 0, 1], [0, 0.6, 0.8]], atol=1e-6)
            else:
                assert found == [None, None, None]

    run(body)
