"""Room for a bounded number of images in the pipeline. Everything here runs in the event loop.

    with slots.reserve(1): ...                  # raises Overloaded when there is no room
    async with slots.when_free(deadline): ...   # waits for room: for the images of a batch

Waiting images hold at most half of the room and get it in the order in which they came, so that neither a batch nor a
stream of single images can keep the other out.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from service.errors import NotReady, Overloaded

SMOOTHING = 0.2  # weight of the newest batch in the measured seconds per image
LONGEST_RETRY_S = 60.0
CLOSED = "the service is shutting down: send the request to another replica"


class Slots:
    """`limit` bounds the images that are admitted and not yet answered, `held` counts them."""

    def __init__(self, limit: int, workers: int) -> None:
        """`workers`: batches that run at the same time, for the estimate of when there will be room."""
        self.limit = limit
        self.held = 0
        self._workers = workers
        self._image_s: float | None = None  # seconds of one worker per image, measured
        self._held_by_waiting = 0
        self._limit_of_waiting = max(1, limit // 2)
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._visitors = 0
        self._closed = False
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def retry_after_s(self) -> float:
        """Seconds until what is held now will be done, at the measured rate; 1 while nothing was measured."""
        if self._image_s is None:
            return 1.0
        return min(LONGEST_RETRY_S, self.held * self._image_s / self._workers)

    def measured(self, images: int, seconds: float) -> None:
        """Take one batch into the measured rate."""
        each_s = seconds / images
        self._image_s = each_s if self._image_s is None else self._image_s + SMOOTHING * (each_s - self._image_s)

    def check(self, count: int = 1) -> None:
        """Raises Overloaded when there is no room for `count` images now, NotReady when closed."""
        if self._closed:
            raise NotReady(CLOSED)
        if self.held + count > self.limit:
            raise Overloaded(
                f"{self.held} images are queued and {count} more would pass the limit of {self.limit}: "
                "come back after the seconds in Retry-After",
                self.retry_after_s,
            )

    @contextmanager
    def reserve(self, count: int) -> Iterator[None]:
        """Hold room for `count` images. Raises as `check`."""
        self.check(count)
        self._take(count)
        try:
            yield
        finally:
            self._give_back(count)

    @asynccontextmanager
    async def when_free(self, deadline: float) -> AsyncIterator[None]:
        """Hold room for one image once there is some; `deadline` in the event loop's time.

        Raises Overloaded when it passes first, NotReady when closed.
        """
        await self._wait(deadline)
        try:
            yield
        finally:
            self._held_by_waiting -= 1
            self._give_back(1)

    @contextmanager
    def visit(self) -> Iterator[None]:
        """While a request may still bring images: `drain` waits for it."""
        self._visitors += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._visitors -= 1
            self._set_if_empty()

    async def drain(self, timeout_s: float) -> bool:
        """Wait until nothing is held and nobody visits. False when `timeout_s` passes first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Refuse what comes and what waits for room."""
        self._closed = True
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(NotReady(CLOSED))

    async def _wait(self, deadline: float) -> None:
        """Take one slot as a waiting image."""
        if self._closed:
            raise NotReady(CLOSED)
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(granted)
        self._admit_waiting()
        try:
            async with asyncio.timeout_at(deadline):
                await granted
        except BaseException as error:
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self._held_by_waiting -= 1  # granted in the same turn of the loop in which the caller left
                self._give_back(1)
            if isinstance(error, TimeoutError):
                raise Overloaded(
                    f"no room came in the queue of {self.limit} images before the deadline: "
                    "send fewer at once, or come back after the seconds in Retry-After",
                    self.retry_after_s,
                ) from None
            raise

    def _admit_waiting(self) -> None:
        while self._waiting and self.held < self.limit and self._held_by_waiting < self._limit_of_waiting:
            future = self._waiting.popleft()
            if not future.done():
                self._held_by_waiting += 1
                self._take(1)
                future.set_result(None)

    def _take(self, count: int) -> None:
        self.held += count
        self._empty.clear()

    def _give_back(self, count: int) -> None:
        self.held -= count
        self._admit_waiting()
        self._set_if_empty()

    def _set_if_empty(self) -> None:
        if not self.held and not self._visitors:
            self._empty.set()
