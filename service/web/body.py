"""The body of a request: counted while it arrives, unpacked under the same limit, held in memory, never on disk.

Every reader here takes (request, share, model) and is called by web/admission.py, which holds the deadline.
"""

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from service.contract.once import parsed
from service.errors import BodyTooLarge, ClientGone, InvalidParameter, MalformedRequest, UnsupportedMedia
from service.inference.model import Model
from service.web.connection import SCOPE_KEY, Protocol
from service.web.context import context_of
from service.web.forms import MULTIPART, Upload, parse_form
from service.web.limits import BudgetShare
from service.web.problems import sentences

THREADED_BYTES = 2**20  # a larger form is cut in a thread: copying it would hold up the event loop
MAX_JSON_BYTES = 2**14  # of the small bodies that are no image
WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # as zlib counts them: 16 and more stand for gzip's header

Schema = TypeVar("Schema", bound=BaseModel)


async def read_image(request: Request, share: BudgetShare, model: Model) -> Upload:
    """The one image of a request: the multipart field `file`, or the raw body with an image content type.

    Raises what receive_body raises, UnsupportedMedia, MalformedRequest, and InvalidParameter for another field name or
    several files.
    """
    content_type = request.headers.get("content-type", "")
    media = media_type(content_type)
    if media.startswith("image/"):
        return Upload("", await receive_body(request, share))
    if media != MULTIPART:
        raise UnsupportedMedia(
            f"content type {media or 'none'} is not supported: send {MULTIPART} with the field 'file', "
            "or the image itself with a content type such as image/jpeg"
        )
    uploads = await _read_form(request, share, content_type, ("file",))
    if len(uploads) > 1:
        raise InvalidParameter(f"{len(uploads)} files came in the field 'file': send one, or all to /classify/batch")
    return uploads[0]


async def read_images(request: Request, share: BudgetShare, model: Model) -> list[Upload]:
    """The images of a multipart request, fields `files` (or `file`), in the order sent. Raises as read_image."""
    content_type = request.headers.get("content-type", "")
    if (media := media_type(content_type)) != MULTIPART:
        raise UnsupportedMedia(f"content type {media or 'none'} is not supported: send {MULTIPART} with fields 'files'")
    return await _read_form(request, share, content_type, ("files", "file"))


def json_reader(schema: type[Schema]) -> Callable[[Request, BudgetShare, Model], Awaitable[Schema]]:
    """A reader of a small JSON body, which FastAPI would take at any size.

    It raises what receive_body raises, MalformedRequest, and InvalidParameter naming the field.
    """

    async def read(request: Request, share: BudgetShare, model: Model) -> Schema:
        body = await receive_body(request, share, MAX_JSON_BYTES)
        try:
            given = parsed(body)
        except ValueError as error:
            raise MalformedRequest(f"the body is not JSON ({error}): send an object") from error
        if not isinstance(given, dict):
            raise MalformedRequest("the body is not a JSON object: send one")
        try:
            return schema.model_validate(given)
        except ValidationError as error:
            raise InvalidParameter(sentences(error.errors(include_url=False), schema.model_fields)) from None

    return read


async def receive_body(request: Request, share: BudgetShare, max_bytes: int | None = None) -> bytes:
    """The whole body without its content encoding; `max_bytes` counts before and after. None: the setting's.

    Raises BodyTooLarge at the header if it says so, else at the first byte too many; UnsupportedMedia and
    MalformedRequest for its encoding; Overloaded, ClientGone.
    """
    context = context_of(request)
    limit = context.runtime.settings.max_body_bytes if max_bytes is None else max_bytes
    limit = min(limit, context.budget.limit_bytes)  # beyond what all together may have it would be asked to come back
    headers = request.headers
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity", *WINDOW_BITS):
        raise UnsupportedMedia(f"content encoding {encoding[:100]} is not supported: send gzip, deflate or none")
    announced = headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise BodyTooLarge(f"the body has {announced} bytes, the limit is {limit}: send a smaller one")
    connection: Protocol | None = request.scope.get(SCOPE_KEY)
    chunks: list[bytes] = []
    received = 0
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("the client closed the connection while sending")
        more = message.get("more_body", False)
        if chunk := message.get("body", b""):
            received += len(chunk)
            if received > limit:
                context.body_ended = not more
                raise BodyTooLarge(f"the body has more than {limit} bytes, the limit: send a smaller one")
            if connection is None:
                share.take(len(chunk))
            elif connection.over_budget:  # which counts what it receives
                context.body_ended = not more
                raise context.budget.exceeded()
            chunks.append(chunk)
    context.body_ended = True  # a refusal from here on has nothing left to read
    body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    if encoding in WINDOW_BITS:
        body = await asyncio.to_thread(unpacked, body, encoding, limit)  # zlib works beside the event loop
        share.take(len(body))
    return body


def unpacked(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """The body before its content encoding. Raises BodyTooLarge when it has more bytes, MalformedRequest."""
    inflate = zlib.decompressobj(WINDOW_BITS[encoding])
    try:
        plain = inflate.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise MalformedRequest(f"the body is no {encoding}: {error}") from error
    if len(plain) > max_bytes:
        raise BodyTooLarge(f"the body unpacks to more than {max_bytes} bytes, the limit: send a smaller one")
    if not inflate.eof or inflate.unused_data:
        raise MalformedRequest(f"the {encoding} body is cut short, or something comes after its end: send it whole")
    return plain


async def _read_form(request: Request, share: BudgetShare, content_type: str, fields: tuple[str, ...]) -> list[Upload]:
    body = await receive_body(request, share)
    max_parts = context_of(request).runtime.settings.max_form_parts
    if len(body) > THREADED_BYTES:
        return await asyncio.to_thread(parse_form, body, content_type, fields, max_parts)
    return parse_form(body, content_type, fields, max_parts)


def media_type(content_type: str) -> str:
    """The media type in a Content-Type header, in lower case; empty for none."""
    return content_type.partition(";")[0].strip().lower()
