"""An image's way through the model: a slot, a decode, a batch, a row. Bounded in images, ahead of decoding.

    with pipeline.reserve(1):                     # Overloaded when there is no room
        row = await pipeline.submit(data, deadline)

On the CPU one thread per core decodes and infers, so an image changes threads once. With an accelerator the decode
threads work ahead while the device runs the batch before.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.contract import images
from service.contract.bundle import Manifest
from service.errors import NotReady, Overloaded
from service.inference.batcher import Batcher, Ticket
from service.inference.engine import Outputs

SMOOTHING = 0.2  # weight of the newest batch in the measured seconds per image
LONGEST_RETRY_S = 60.0
NICENESS = 5  # of the threads that compute: health and refusals come first when cores are short

Image = bytes | NDArray[np.uint8]  # a file's content, or pixels uint8 [height_px, width_px, 3] as the model takes them


class Runs(Protocol):
    """What a pipeline needs of an engine."""

    manifest: Manifest

    def run(self, batch: NDArray[np.uint8]) -> Outputs: ...


@dataclass(frozen=True, slots=True)
class Row:
    """The answer for one image: `probabilities` float32 [C], scores by name, its size, and how it was come by."""

    probabilities: NDArray[np.float32]
    scores: dict[str, float]
    width_px: int
    height_px: int
    decode_s: float
    inference_s: float  # of the whole batch
    batch_images: int


@dataclass(frozen=True, slots=True)
class Decoded:
    loaded: images.Loaded
    seconds: float


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


class Pipeline:
    """`dials.queue_images` bounds the images admitted and not yet answered, wherever they are.

    `on_batch(images, seconds)` is told of every run of the graph, in the thread that ran it.
    """

    def __init__(self, engine: Runs, dials: Dials, on_batch: Callable[[int, float], None] = lambda n, s: None) -> None:
        self._engine = engine
        self._dials = dials
        self._on_batch = on_batch
        self._closed = False
        self._image_s: float | None = None  # seconds of one worker per image, measured
        self._empty = asyncio.Event()
        self._empty.set()
        self._visitors = 0
        self.held = 0
        workers, niceness = dials.inference_threads, dials.niceness
        self._front: Batcher[Image, Row] | Batcher[Image, Decoded]
        self._back: Batcher[Decoded, Row] | None = None
        if dials.fused:
            self._front = Batcher(
                self._decode_and_infer, workers=workers, max_batch=dials.max_batch_images, name="infer",
                niceness=niceness, on_batch=self._measured,
            )  # fmt: skip
        else:
            self._front = Batcher(
                self._decode, workers=dials.decode_threads, max_batch=1, name="decode", niceness=niceness
            )
            self._back = Batcher(
                self._infer, workers=workers, max_batch=dials.max_batch_images, name="infer", on_batch=self._measured
            )

    @property
    def queue_images(self) -> int:
        return self._dials.queue_images

    @property
    def retry_after_s(self) -> float:
        """Seconds until what is held now will be done, at the measured rate."""
        if self._image_s is None:
            return 1.0
        return min(LONGEST_RETRY_S, self.held * self._image_s / self._dials.inference_threads)

    def check_room(self, count: int = 1) -> None:
        """Raises Overloaded when there is not room for `count` images now, NotReady when closed."""
        if self._closed:
            raise NotReady("the service is shutting down: send the request to another replica")
        if self.held + count > self._dials.queue_images:
            raise Overloaded(
                f"{self.held} images are queued and {count} more would pass the limit of {self._dials.queue_images}: "
                "come back after the seconds in Retry-After",
                self.retry_after_s,
            )

    @contextmanager
    def reserve(self, count: int) -> Iterator[None]:
        """Hold room for `count` images. Raises as `check_room`."""
        self.check_room(count)
        self.held += count
        self._empty.clear()
        try:
            yield
        finally:
            self.held -= count
            self._perhaps_empty()

    @contextmanager
    def visit(self) -> Iterator[None]:
        """While a request is under way that may yet submit images: a pipeline that is to be closed waits for it."""
        self._visitors += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._visitors -= 1
            self._perhaps_empty()

    async def submit(self, image: Image, deadline: float) -> Row:
        """The row of one image; `deadline` is in the event loop's time. The caller holds a slot.

        Raises what images.load raises, EngineError, DeadlineExceeded, NotReady when the pipeline closes.
        """
        found = await self._front.submit(image, deadline)
        if isinstance(found, Decoded):
            assert self._back is not None
            return await self._back.submit(found, deadline)
        return found

    async def drain(self, timeout_s: float) -> bool:
        """Wait until nothing is held and nobody visits. False when `timeout_s` passes first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Refuse what comes and what waits; the threads end after the batch they are at."""
        self._closed = True
        self._front.close()
        if self._back is not None:
            self._back.close()

    def _perhaps_empty(self) -> None:
        if not self.held and not self._visitors:
            self._empty.set()

    def _measured(self, count: int, seconds: float) -> None:
        each_s = seconds / count
        self._image_s = each_s if self._image_s is None else self._image_s + SMOOTHING * (each_s - self._image_s)

    # In the worker threads -------------------------------------------------------------------------------------------

    def _decode_and_infer(self, batch: list[Ticket[Image]]) -> list[Row | Exception]:
        found: list[Row | Exception | Decoded] = [self._decode_one(ticket) for ticket in batch]
        good = [d for d in found if isinstance(d, Decoded)]
        rows = iter(self._rows(good) if good else ())
        return [next(rows) if isinstance(f, Decoded) else f for f in found]

    def _decode(self, batch: list[Ticket[Image]]) -> list[Decoded | Exception]:
        return [self._decode_one(ticket) for ticket in batch]

    def _infer(self, batch: list[Ticket[Decoded]]) -> list[Row | Exception]:
        return [*self._rows([ticket.item for ticket in batch])]

    def _decode_one(self, ticket: Ticket[Image]) -> Decoded | Exception:
        image = ticket.item
        if ticket.unwanted:
            return NotReady("nobody waits for this image any more")  # and so nobody is told
        if not isinstance(image, bytes):
            return Decoded(images.Loaded(image, image.shape[1], image.shape[0]), 0.0)
        started = perf_counter()
        try:
            loaded = images.load(image, self._engine.manifest.input, max_pixels=self._dials.max_pixels)
        except Exception as error:
            return error
        return Decoded(loaded, perf_counter() - started)

    def _rows(self, batch: list[Decoded]) -> list[Row]:
        started = perf_counter()
        pixels = [d.loaded.pixels for d in batch]
        outputs = self._engine.run(pixels[0][None] if len(pixels) == 1 else np.stack(pixels))
        seconds = perf_counter() - started
        columns = {name: values.tolist() for name, values in outputs.scores.items()}
        self._on_batch(len(batch), seconds)
        return [
            Row(
                outputs.probabilities[i],
                {name: column[i] for name, column in columns.items()},
                d.loaded.width_px,
                d.loaded.height_px,
                d.seconds,
                seconds,
                len(batch),
            )
            for i, d in enumerate(batch)
        ]
