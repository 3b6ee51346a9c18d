"""Images wait here for an inference thread. No wait when one is idle; batches form only while all are busy.

    with batcher.reserve(1):                    # a slot, before decoding; Overloaded when there is none
        row = await batcher.submit(pixels, deadline)

Everything but the engine runs in the event loop, so there are no locks. A waiter that is cancelled or late leaves the
queue by itself; nothing else in the batch notices.
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from service.engine import Outputs
from service.errors import DeadlineExceeded, NotReady, Overloaded

SMOOTHING = 0.2  # weight of the newest batch in the measured seconds per image
LONGEST_RETRY_S = 60.0


@dataclass(frozen=True)
class Row:
    """The answer for one image: `probabilities` float32 [C], scores by name, and how it was come by."""

    probabilities: NDArray[np.float32]
    scores: dict[str, float]
    inference_s: float
    batch_images: int


@dataclass(eq=False)
class _Waiting:
    image: NDArray[np.uint8]
    answer: asyncio.Future[Row]
    deadline: float


class Batcher:
    """Feeds `run` from `workers` threads with batches of at most `max_batch_images`.

    `queue_images` bounds the images admitted and not yet answered: being decoded, waiting, or in the engine.
    `on_batch(images, seconds)` is told of every batch that has run.
    """

    def __init__(
        self,
        run: Callable[[NDArray[np.uint8]], Outputs],
        *,
        workers: int,
        max_batch_images: int,
        queue_images: int,
        on_batch: Callable[[int, float], None] = lambda images, seconds: None,
    ) -> None:
        self._run = run
        self._workers = workers
        self._max_batch_images = max_batch_images
        self._on_batch = on_batch
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="inference")
        self._idle = workers
        self._pending: dict[_Waiting, None] = {}  # in order of arrival; a dict, so that leaving costs no search
        self._empty = asyncio.Event()
        self._empty.set()
        self._closed = False
        self._image_s: float | None = None  # seconds of one worker per image, measured
        self.queue_images = queue_images
        self.held = 0

    @property
    def retry_after_s(self) -> float:
        """Seconds until what is held now will be done, at the measured rate."""
        if self._image_s is None:
            return 1.0
        return min(LONGEST_RETRY_S, self.held * self._image_s / self._workers)

    @contextmanager
    def reserve(self, images: int) -> Iterator[None]:
        """Hold room for `images` images. Raises Overloaded when there is not room for all, NotReady when closed."""
        if self._closed:
            raise NotReady("the service is shutting down: send the request to another replica")
        if self.held + images > self.queue_images:
            raise Overloaded(
                f"{self.held} images are queued and {images} more would pass the limit of {self.queue_images}: "
                "come back after the seconds in Retry-After",
                self.retry_after_s,
            )
        self.held += images
        self._empty.clear()
        try:
            yield
        finally:
            self.held -= images
            if self.held == 0:
                self._empty.set()

    async def submit(self, image: NDArray[np.uint8], deadline: float) -> Row:
        """The answer for `image` uint8 [H, W, 3]. `deadline` is in the event loop's time, seconds.

        Raises DeadlineExceeded when it passes first, NotReady when the batcher closes, and whatever `run` raises.
        """
        if self._closed:
            raise NotReady("the service is shutting down: send the request to another replica")
        waiting = _Waiting(image, asyncio.get_running_loop().create_future(), deadline)
        self._pending[waiting] = None
        self._dispatch()
        try:
            async with asyncio.timeout_at(deadline):
                return await waiting.answer
        except TimeoutError:
            raise DeadlineExceeded(
                "the image was still waiting at its deadline: try again when there is less load"
            ) from None
        finally:
            self._pending.pop(waiting, None)  # cancelled or late: it never reaches the engine

    async def drain(self, timeout_s: float) -> bool:
        """Wait until nothing is held. False when `timeout_s` passes first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Refuse what comes and what waits. A batch in the engine is left to end; its waiters are answered."""
        self._closed = True
        for waiting in list(self._pending):
            _fail(
                waiting, NotReady("the service shut down before the image was classified: send it to another replica")
            )
        self._pending.clear()
        self._pool.shutdown(wait=False)

    def _dispatch(self) -> None:
        loop = asyncio.get_running_loop()
        while self._idle and (batch := self._take(loop.time())):
            self._idle -= 1
            work = loop.run_in_executor(self._pool, self._infer, [w.image for w in batch])
            work.add_done_callback(partial(self._finish, batch))

    def _take(self, now: float) -> list[_Waiting]:
        batch: list[_Waiting] = []
        while self._pending and len(batch) < self._max_batch_images:
            waiting = next(iter(self._pending))
            del self._pending[waiting]
            if waiting.deadline <= now:
                _fail(waiting, DeadlineExceeded("the image was still waiting at its deadline: try again later"))
            elif not waiting.answer.done():
                batch.append(waiting)
        return batch

    def _infer(self, images: list[NDArray[np.uint8]]) -> tuple[Outputs, float]:  # in an inference thread
        started = perf_counter()
        outputs = self._run(np.stack(images))
        return outputs, perf_counter() - started

    def _finish(self, batch: list[_Waiting], work: asyncio.Future[tuple[Outputs, float]]) -> None:
        self._idle += 1
        if error := work.exception():
            for waiting in batch:
                _fail(waiting, error)
        else:
            outputs, seconds = work.result()
            each_s = seconds / len(batch)
            self._image_s = each_s if self._image_s is None else self._image_s + SMOOTHING * (each_s - self._image_s)
            self._on_batch(len(batch), seconds)
            for i, waiting in enumerate(batch):
                if not waiting.answer.done():
                    scores = {name: float(values[i]) for name, values in outputs.scores.items()}
                    waiting.answer.set_result(Row(outputs.probabilities[i], scores, seconds, len(batch)))
        if not self._closed:
            self._dispatch()


def _fail(waiting: _Waiting, error: BaseException) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)
