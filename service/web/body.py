"""The body of a request: counted while it arrives, held in memory, never on disk; and whether its client stays."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import Request

from service.errors import BodyTooLarge, ClientGone, InvalidParameter, Overloaded, SlowRequest, UnsupportedMedia
from service.web.connection import SCOPE_KEY, Protocol
from service.web.forms import MULTIPART, Upload, parse_form


class Memory:
    """How many bytes of bodies are held at once, over all requests; a body that would pass the limit is refused."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.held_bytes = 0

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """One request's part of it, given back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            self.held_bytes -= share.taken_bytes


class Share:
    """What one request holds of a Memory."""

    __slots__ = ("_memory", "taken_bytes")

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.taken_bytes = 0

    def take(self, count: int) -> None:
        """Raises Overloaded when `count` more bytes do not fit."""
        memory = self._memory
        if memory.held_bytes + count > memory._limit_bytes:
            raise Overloaded(
                f"bodies of {memory.held_bytes} bytes are being received, the limit of all together is "
                f"{memory._limit_bytes}: come back after the seconds in Retry-After",
                1.0,
            )
        memory.held_bytes += count
        self.taken_bytes += count


async def receive_one(request: Request, max_bytes: int, share: Share) -> Upload:
    """The one image of a request: the multipart field `file`, or the raw body with an image content type.

    Raises BodyTooLarge, Overloaded, UnsupportedMedia, MalformedRequest, InvalidParameter for another field name or
    several files, ClientGone.
    """
    content_type = request.headers.get("content-type", "")
    media = _media_type(content_type)
    if media.startswith("image/"):
        return Upload("", await receive_body(request, max_bytes, share))
    if media != MULTIPART:
        raise UnsupportedMedia(
            f"content type {media or 'none'} is not supported: send {MULTIPART} with the field 'file', "
            "or the image itself with a content type such as image/jpeg"
        )
    uploads = parse_form(await receive_body(request, max_bytes, share), content_type, ("file",))
    if len(uploads) > 1:
        raise InvalidParameter(f"{len(uploads)} files came in the field 'file': send one, or all to /classify/batch")
    return uploads[0]


async def receive_many(request: Request, max_bytes: int, share: Share) -> list[Upload]:
    """The images of a multipart request, fields `files` (or `file`), in the order sent. Raises as receive_one."""
    content_type = request.headers.get("content-type", "")
    if (media := _media_type(content_type)) != MULTIPART:
        raise UnsupportedMedia(f"content type {media or 'none'} is not supported: send {MULTIPART} with fields 'files'")
    return parse_form(await receive_body(request, max_bytes, share), content_type, ("files", "file"))


async def receive_body(request: Request, max_bytes: int, share: Share) -> bytes:
    """The whole body. Raises BodyTooLarge at the header if it says so, else at the first byte too many; ClientGone."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise BodyTooLarge(f"the body has {announced} bytes, the limit is {max_bytes}: send a smaller image")
    chunks: list[bytes] = []
    received = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("the client closed the connection while sending")
        if chunk := message.get("body", b""):
            received += len(chunk)
            if received > max_bytes:
                request.state.body_ended = not message.get("more_body", False)
                raise BodyTooLarge(f"the body has more than {max_bytes} bytes, the limit: send a smaller image")
            share.take(len(chunk))
            chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


@contextmanager
def slow_body_as_problem(timeout_s: float) -> Iterator[None]:
    """Turn the timeout of a receive into SlowRequest."""
    try:
        yield
    except TimeoutError:
        raise SlowRequest(
            f"the body had not arrived after {timeout_s:g} s: send it faster or make it smaller"
        ) from None


class dropped_when_client_leaves:  # used like a function: no generator, which would cost a request more
    """Cancel what runs inside when the client disconnects, and raise ClientGone. Only after the body has been read.

    Under our own server the connection tells (web/connection.py), which costs nothing; under any other, reading the
    request's next message does.
    """

    __slots__ = ("_connection", "_left", "_request", "_task", "_watcher")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._left = False
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._connection: Protocol | None = self._request.scope.get(SCOPE_KEY)
        if self._connection is None:
            self._watcher = asyncio.create_task(self._watch())
        elif self._connection.lost:
            raise ClientGone("the client closed the connection before its answer")
        else:
            self._connection.on_lost = self._cancel

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._connection is not None:
            self._connection.on_lost = None
        elif self._watcher is not None:
            self._watcher.cancel()
        if not self._left:
            return
        others = self._task.uncancel()
        if isinstance(error, asyncio.CancelledError) and others == 0:  # somebody else's cancellation would count
            raise ClientGone("the client closed the connection before its answer") from None

    def _cancel(self) -> None:
        self._left = True
        self._task.cancel()

    async def _watch(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._cancel()


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()
