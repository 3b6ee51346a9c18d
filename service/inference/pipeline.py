"""An image's way through the model: a slot, a decode, a batch, a row. Bounded in images and in decoded bytes.

    with pipeline.reserve(1):                     # Overloaded when there is no room
        row = await pipeline.submit(data, deadline)

    row = await pipeline.submit_when_free(data, deadline)    # waits for room: for the images of a batch

On the CPU one thread per core decodes and infers, so an image changes threads once. With an accelerator the decode
threads work ahead while the device runs the batch before.
"""

import asyncio
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from time import perf_counter
from typing import Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from service.contract import images
from service.contract.bundle import Manifest
from service.errors import NotReady
from service.inference.batcher import Batcher, Ticket
from service.inference.budget import ByteBudget
from service.inference.engine import Outputs
from service.inference.health import EngineHealth, HealthLimits
from service.inference.rows import DecodedImage, Image, Row, Task
from service.inference.slots import Slots
from service.inference.wanted import NOTHING, Wanted

NICENESS = 5  # of the threads that compute: the event loop is scheduled first when cores are short
PROBE_S = 10.0  # deadline of a probe of a failing engine

log = structlog.get_logger()


class GraphRunner(Protocol):
    """What a pipeline needs of an engine."""

    manifest: Manifest

    def run(self, batch: NDArray[np.uint8], wanted: Wanted = NOTHING) -> Outputs: ...


class RunCounter(Protocol):
    """What a pipeline reports, from its worker threads; service.observe.metrics.Metrics counts it."""

    def count_batch(self, images: int, seconds: float) -> None: ...
    def count_failed_run(self) -> None: ...


@dataclass(frozen=True)
class Dials:
    """Threads and bounds of a pipeline; see Settings."""

    max_pixels: int
    queue_images: int
    max_batch_images: int
    decode_threads: int
    inference_threads: int
    fused: bool  # one thread decodes and infers: for the CPU
    niceness: int = NICENESS
    max_decoding_bytes: int = 256 * 2**20
    health: HealthLimits = field(default_factory=HealthLimits)


class Pipeline:
    """`dials.queue_images` bounds the images admitted and not yet answered, wherever they are."""

    def __init__(self, engine: GraphRunner, dials: Dials, counts: RunCounter | None = None) -> None:
        self._engine = engine
        self._dials = dials
        self._counts = counts
        self._closed = False
        self._health = EngineHealth(dials.health)
        self._probe: asyncio.Task[None] | None = None
        self._budget = ByteBudget(dials.max_decoding_bytes)
        self._slots = Slots(dials.queue_images, dials.inference_threads)
        workers, niceness = dials.inference_threads, dials.niceness
        self._front: Batcher[Task, Row] | Batcher[Task, DecodedImage]
        self._back: Batcher[DecodedImage, Row] | None = None
        if dials.fused:
            self._front = Batcher(
                self._decode_and_infer, workers=workers, max_batch=dials.max_batch_images, name="infer",
                niceness=niceness, on_batch=self._slots.measured,
            )  # fmt: skip
        else:
            self._front = Batcher(
                self._decode, workers=dials.decode_threads, max_batch=1, name="decode", niceness=niceness
            )
            self._back = Batcher(
                self._infer, workers=workers, max_batch=dials.max_batch_images, name="infer",
                on_batch=self._slots.measured,
            )  # fmt: skip

    # In the event loop ------------------------------------------------------------------------------------------------

    @property
    def held(self) -> int:
        return self._slots.held

    @property
    def queue_images(self) -> int:
        return self._dials.queue_images

    def check_room(self, count: int = 1) -> None:
        """Raises Overloaded when there is not room for `count` images now, NotReady when closed."""
        self._slots.check(count)

    def reserve(self, count: int) -> AbstractContextManager[None]:
        """Hold room for `count` images. Raises as `check_room`."""
        return self._slots.reserve(count)

    def visit(self) -> AbstractContextManager[None]:
        return self._slots.visit()

    async def submit(self, image: Image, deadline: float, wanted: Wanted = NOTHING) -> Row:
        """The row of one image; `deadline` is in the event loop's time. The caller holds a slot.

        Raises what images.load raises, EngineError, DeadlineExceeded, NotReady when the pipeline closes.
        """
        result = await self._front.submit(Task(image, wanted), deadline)
        if isinstance(result, DecodedImage):
            assert self._back is not None
            return await self._back.submit(result, deadline)
        return result

    async def submit_when_free(self, image: Image, deadline: float, wanted: Wanted = NOTHING) -> Row:
        """As `submit`, once there is a slot: the images of a batch enter one by one as room comes."""
        async with self._slots.when_free(deadline):
            return await self.submit(image, deadline, wanted)

    def fault(self) -> str | None:
        """Why the engine cannot be relied on now, None while it can. One that fails is probed, to see it recover."""
        fault = self._health.fault()
        if self._health.failing and not self._closed and (self._probe is None or self._probe.done()):
            self._probe = asyncio.get_running_loop().create_task(self._run_probe())
        return fault

    def dead(self) -> bool:
        return self._health.dead()

    async def drain(self, timeout_s: float) -> bool:
        return await self._slots.drain(timeout_s)

    def close(self) -> None:
        """Refuse what comes and what waits; the threads end after the batch they are at."""
        self._closed = True
        self._slots.close()
        self._front.close()
        if self._back is not None:
            self._back.close()

    async def _run_probe(self) -> None:
        target = self._engine.manifest.input
        with suppress(Exception):  # the health knows it already
            pixels = np.zeros((target.height_px, target.width_px, 3), np.uint8)
            await self.submit(pixels, asyncio.get_running_loop().time() + PROBE_S)

    # In the worker threads --------------------------------------------------------------------------------------------

    def _decode_and_infer(self, batch: list[Ticket[Task]]) -> list[Row | Exception]:
        with self._health.running():
            decoded = [self._decode_one(ticket) for ticket in batch]
            good = [d for d in decoded if isinstance(d, DecodedImage)]
            rows = iter(self._rows(good))
            return [next(rows) if isinstance(d, DecodedImage) else d for d in decoded]

    def _decode(self, batch: list[Ticket[Task]]) -> list[DecodedImage | Exception]:
        return [self._decode_one(ticket) for ticket in batch]

    def _infer(self, batch: list[Ticket[DecodedImage]]) -> list[Row | Exception]:
        with self._health.running():
            return self._rows([ticket.item for ticket in batch])

    def _decode_one(self, ticket: Ticket[Task]) -> DecodedImage | Exception:
        image, wanted = ticket.item
        if ticket.unwanted:
            return NotReady("nobody waits for this image any more")  # and so nobody is told
        if not isinstance(image, bytes):
            return DecodedImage(images.Loaded(image, image.shape[1], image.shape[0]), 0.0, wanted)
        target = self._engine.manifest.input
        with self._budget.hold(images.decoded_bytes(image, target)):
            started = perf_counter()
            try:
                loaded = images.load(image, target, max_pixels=self._dials.max_pixels)
            except Exception as error:
                return error
            return DecodedImage(loaded, perf_counter() - started, wanted)

    def _rows(self, batch: list[DecodedImage]) -> list[Row | Exception]:
        if not batch:
            return []
        started = perf_counter()
        try:
            outputs = self._run([d.loaded.pixels for d in batch], reduce(or_, (d.wanted for d in batch)))
        except Exception as error:  # only theirs: images of the batch that were refused keep their own error
            return [error] * len(batch)
        seconds = perf_counter() - started
        columns = {name: values.tolist() for name, values in outputs.scores.items()}
        if self._counts is not None:
            self._counts.count_batch(len(batch), seconds)
        return [
            Row(
                outputs.probabilities[i],
                {name: column[i] for name, column in columns.items()},
                *(d.loaded.width_px, d.loaded.height_px, d.seconds, seconds, len(batch)),
                None if outputs.embedding is None else outputs.embedding[i],
                None if outputs.heat_map is None else outputs.heat_map[i],
                None if outputs.quality is None else outputs.quality[i],
            )
            for i, d in enumerate(batch)
        ]

    def _run(self, pixels: list[NDArray[np.uint8]], wanted: Wanted) -> Outputs:
        try:
            outputs = self._engine.run(pixels[0][None] if len(pixels) == 1 else np.stack(pixels), wanted)
        except Exception as error:
            if self._closed:  # with its engine, while this batch was on its way: nothing is broken
                raise
            if self._health.failed(error) == 1:  # in a row: an engine that stays broken must not flood the log
                log.error("a run of the graph failed", images=len(pixels), error=str(error))
            if self._counts is not None:
                self._counts.count_failed_run()
            raise
        self._health.succeeded()
        return outputs
