"""A multipart form in memory to the files in it (RFC 7578 and RFC 2046), and where its parts begin and end.

The body is searched for its delimiter lines and cut there: a preamble, blanks after a delimiter, folded headers and an
epilogue are read as RFC 2046 has them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from service.errors import InvalidParameter, MalformedRequest
from service.web.schemas import ClassifyQuery

MULTIPART = "multipart/form-data"
MAX_PART_HEAD_BYTES = 8192
BLANKS = b" \t"
MAX_BLANKS = 256  # after a boundary
FOLD = re.compile(rb"\r\n[ \t]+")
# name=token or name="quoted", where a backslash quotes the sign after it
PARAMETER = re.compile(rb""";[ \t]*([\w!#$%&'*+.^`|~-]+)[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))""", re.DOTALL)
ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
PLAIN_ENCODINGS = (b"", b"binary", b"8bit", b"7bit")


@dataclass(frozen=True, slots=True)
class Upload:
    """One file: the name its client gave it, and its content."""

    filename: str
    data: bytes


def parse_form(body: bytes, content_type: str, fields: tuple[str, ...], max_parts: int) -> list[Upload]:
    """The files of a multipart body in the fields named. Other parts are passed over, unless they ask for something.

    Raises MalformedRequest, InvalidParameter.
    """
    boundary = parameters(content_type.encode("latin-1", "replace")).get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:  # RFC 2046
        raise MalformedRequest(
            f"the content type {MULTIPART} names no boundary of 1 to 70 signs: let the client set it"
        )
    uploads: list[Upload] = []
    others: list[tuple[str, str]] = []  # field and name of the file
    for start, end in _parts(body, b"\r\n--" + boundary):
        if len(uploads) + len(others) >= max_parts:
            raise InvalidParameter(f"the form has more than {max_parts} parts, the limit: send fewer at once")
        head_end = body.find(b"\r\n\r\n", start - 2, min(end, start + MAX_PART_HEAD_BYTES) + 2)
        if head_end < 0:
            raise MalformedRequest(
                f"a part of the form has no blank line after its headers, at most {MAX_PART_HEAD_BYTES} bytes of them"
            )
        disposition = _disposition(body[start:head_end])
        name = disposition.get(b"name", b"").decode("utf-8", "replace")
        if name in fields:
            uploads.append(Upload(_filename(disposition), body[head_end + 4 : end]))
        else:
            others.append((name[:100], _filename(disposition)))
    if not uploads:
        found = f"found {', '.join(repr(name) for name, _ in others[:5])}" if others else "the form is empty"
        raise InvalidParameter(f"the form has no field {' or '.join(map(repr, fields))}: {found}")
    _require_idle(others, fields)
    return uploads


def _require_idle(others: list[tuple[str, str]], fields: tuple[str, ...]) -> None:
    """Raises InvalidParameter for a part whose sender would take it for heard: a file, or a parameter of the query."""
    for name, filename in others:
        if filename:
            shown = " or ".join(map(repr, fields))
            raise InvalidParameter(f"the file {filename[:100]!a} came in the field {name!a}: send it in {shown}")
        if name in ClassifyQuery.model_fields:
            raise InvalidParameter(f"{name} came as a field of the form: send it in the address, as ?{name}=")


def parameters(header: bytes) -> dict[bytes, bytes]:
    """The parameters of a header such as `form-data; name="file"`, names in lower case."""
    return {
        name.lower(): ESCAPED.sub(rb"\1", quoted) if b"\\" in quoted else quoted or token
        for name, quoted, token in PARAMETER.findall(header)
    }


def _parts(body: bytes, mark: bytes) -> Iterator[tuple[int, int]]:
    """Where each part starts, behind its delimiter line, and ends. Raises MalformedRequest unless the form is closed.

    `mark`: a line break, two hyphens and the boundary. The first delimiter may stand at the very beginning.
    """
    begun: int | None = None
    at = -2 if body.startswith(mark[2:]) else body.find(mark)
    while at != -1:
        after = at + len(mark)
        if begun is not None:
            yield begun, at
        if body.startswith(b"--", after):
            return
        begun = _line_end(body, after)
        at = body.find(mark, begun - 2)
    if begun is None:
        raise MalformedRequest("the multipart body is malformed: its boundary does not occur in it")
    raise MalformedRequest("the multipart body ends before its closing boundary: send it whole")


def _line_end(body: bytes, at: int) -> int:
    """Behind the line break at `at`, which blanks may precede. Raises MalformedRequest when something else does."""
    rest = body[at : at + MAX_BLANKS]
    at += len(rest) - len(rest.lstrip(BLANKS))
    if not body.startswith(b"\r\n", at):
        if at + 2 > len(body):
            raise MalformedRequest("the multipart body ends before its closing boundary: send it whole")
        raise MalformedRequest("the multipart body is malformed: something follows a boundary on its line")
    return at + 2


def _disposition(head: bytes) -> dict[bytes, bytes]:
    """The parameters of a part's Content-Disposition. Raises MalformedRequest for a content that is encoded again."""
    found: dict[bytes, bytes] = {}
    for line in FOLD.sub(b" ", head).split(b"\r\n"):
        name, _, value = line.partition(b":")
        name = name.strip(BLANKS).lower()
        if name == b"content-disposition":
            found = parameters(value)
        elif name == b"content-transfer-encoding" and value.strip(BLANKS).lower() not in PLAIN_ENCODINGS:
            shown = value.strip(BLANKS)[:50].decode("latin-1")
            raise MalformedRequest(f"a part has the Content-Transfer-Encoding {shown}: send the bytes as they are")
    return found


def _filename(disposition: dict[bytes, bytes]) -> str:
    extended = disposition.get(b"filename*", b"")  # RFC 5987: charset'language'percent-encoded
    charset, _, rest = extended.partition(b"'")
    if b"filename" not in disposition and charset.lower() == b"utf-8":
        return unquote_to_bytes(rest.partition(b"'")[2]).decode("utf-8", "replace")
    return disposition.get(b"filename", b"").decode("utf-8", "replace")
