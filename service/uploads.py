"""The body of a request to the files in it: counted while it arrives, parsed in memory, never spooled to disk."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from service.errors import (
    BodyTooLarge,
    ClientGone,
    InvalidParameter,
    MalformedRequest,
    SlowRequest,
    TailGuardError,
    UnsupportedMedia,
)

MULTIPART = "multipart/form-data"


@dataclass(frozen=True)
class Upload:
    """One file: the name its client gave it, and its content."""

    filename: str
    data: bytes


async def receive_one(request: Request, max_bytes: int) -> Upload:
    """The one image of a request: the multipart field `file`, or the raw body with an image content type.

    Raises BodyTooLarge, UnsupportedMedia, MalformedRequest, InvalidParameter for another field name or several files,
    ClientGone.
    """
    media = _media_type(request)
    if media.startswith("image/"):
        return Upload("", b"".join([chunk async for chunk in _counted(request, max_bytes)]))
    if media != MULTIPART:
        raise UnsupportedMedia(
            f"content type {media or 'none'} is not supported: send {MULTIPART} with the field 'file', "
            "or the image itself with a content type such as image/jpeg"
        )
    uploads = await _receive_form(request, max_bytes, ("file",))
    if len(uploads) > 1:
        raise InvalidParameter(f"{len(uploads)} files came in the field 'file': send one, or all to /classify/batch")
    return uploads[0]


async def receive_many(request: Request, max_bytes: int) -> list[Upload]:
    """The images of a multipart request, fields `files` (or `file`), in the order sent. Raises as receive_one."""
    media = _media_type(request)
    if media != MULTIPART:
        raise UnsupportedMedia(f"content type {media or 'none'} is not supported: send {MULTIPART} with fields 'files'")
    return await _receive_form(request, max_bytes, ("files", "file"))


@contextmanager
def slow_body_as_problem(timeout_s: float) -> Iterator[None]:
    """Turn the timeout of a receive into SlowRequest."""
    try:
        yield
    except TimeoutError:
        raise SlowRequest(
            f"the body had not arrived after {timeout_s:g} s: send it faster or make it smaller"
        ) from None


@asynccontextmanager
async def dropped_when_client_leaves(request: Request) -> AsyncIterator[None]:
    """Cancel what runs inside when the client disconnects, and raise ClientGone. Only after the body has been read."""
    task = asyncio.current_task()
    assert task is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not left or task.uncancel() > 0:  # somebody else cancelled too: theirs counts
            raise
        raise ClientGone("the client closed the connection before its answer") from None
    finally:
        watcher.cancel()


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _counted(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """The chunks of the body. Raises BodyTooLarge at the header if it says so, else at the first byte too many."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise BodyTooLarge(f"the body has {announced} bytes, the limit is {max_bytes}: send a smaller image")
    received = 0
    try:
        async for chunk in request.stream():
            received += len(chunk)
            if received > max_bytes:
                raise BodyTooLarge(f"the body has more than {max_bytes} bytes, the limit: send a smaller image")
            yield chunk
    except ClientDisconnect:
        raise ClientGone("the client closed the connection while sending") from None


async def _receive_form(request: Request, max_bytes: int, fields: tuple[str, ...]) -> list[Upload]:
    _, options = parse_options_header(request.headers["content-type"])
    if not (boundary := options.get(b"boundary")):
        raise MalformedRequest(f"the content type {MULTIPART} names no boundary: let the HTTP client set it")
    form = _Form(boundary, fields)
    async for chunk in _counted(request, max_bytes):
        form.feed(chunk)
    return form.uploads()


class _Form:
    """Collects the parts named in `fields`; the content of other parts is passed over."""

    def __init__(self, boundary: bytes, fields: tuple[str, ...]) -> None:
        self._fields = fields
        self._uploads: list[Upload] = []
        self._others: list[str] = []
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._filename = ""
        self._data: bytearray | None = None
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begin,
                    "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._part_data,
                    "on_part_end": self._part_end,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise MalformedRequest(f"the multipart boundary is not valid: {error}") from error

    def feed(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise MalformedRequest(f"the multipart body is malformed: {error}") from error

    def uploads(self) -> list[Upload]:
        wanted = " or ".join(repr(f) for f in self._fields)
        if not self._ended:
            raise self._unfinished()
        if not self._uploads:
            found = f"found {', '.join(map(repr, self._others[:5]))}" if self._others else "the form is empty"
            raise InvalidParameter(f"the form has no field {wanted}: {found}")
        return self._uploads

    def _unfinished(self) -> TailGuardError:
        return MalformedRequest("the multipart body ends before its closing boundary: send it whole")

    def _part_begin(self) -> None:
        self._disposition, self._data = b"", None

    def _header_end(self) -> None:
        name, value = bytes(self._header[0]).lower(), bytes(self._header[1])
        self._header[0].clear()
        self._header[1].clear()
        if name == b"content-disposition":
            self._disposition = value

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name in self._fields:
            self._filename = options.get(b"filename", b"").decode("utf-8", "replace")
            self._data = bytearray()
        else:
            self._others.append(name[:100])

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._data is not None:
            self._data += data[start:end]

    def _part_end(self) -> None:
        if self._data is not None:
            self._uploads.append(Upload(self._filename, bytes(self._data)))
            self._data = None

    def _end(self) -> None:
        self._ended = True
