"""A multipart form in memory to the files in it (RFC 7578). The form of one file is cut out, any other is parsed."""

import re
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import InvalidParameter, MalformedRequest, TailGuardError

MULTIPART = "multipart/form-data"
PLAIN_BOUNDARY = re.compile(r'multipart/form-data; ?boundary=("?)([0-9A-Za-z\'()+_,./:=?-]{1,70})\1', re.IGNORECASE)
MAX_PART_HEAD_BYTES = 1024
# The headers of a part as curl, browsers, httpx and requests write them; names with escapes are the parser's.
ONLY_DISPOSITION = re.compile(
    rb'content-disposition: *form-data; *name="([a-z]+)"(?:; *filename="([ !#$&-Z^_`a-z~]*)")?'
    rb"(?:\r\ncontent-type: *[!-~]+(?:; *[!-~]+)?)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Upload:
    """One file: the name its client gave it, and its content."""

    filename: str
    data: bytes


def parse_form(body: bytes, content_type: str, fields: tuple[str, ...]) -> list[Upload]:
    """The files of a multipart body in the fields named. Raises MalformedRequest, InvalidParameter."""
    if (plain := PLAIN_BOUNDARY.fullmatch(content_type)) is not None:
        boundary = plain[2].encode()
    else:
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
    if not boundary:
        raise MalformedRequest(f"the content type {MULTIPART} names no boundary: let the HTTP client set it")
    if (only := _only_part(body, boundary, fields)) is not None:
        return [only]
    form = _Form(boundary, fields)
    form.feed(body)
    return form.uploads()


def _only_part(body: bytes, boundary: bytes, fields: tuple[str, ...]) -> Upload | None:
    """The one file of the form that nearly every client sends, cut out without a parser; None for any other form.

    Nothing is judged here: what does not look exactly so is left to the parser.
    """
    start, end = b"--" + boundary + b"\r\n", b"\r\n--" + boundary + b"--\r\n"
    head = body.find(b"\r\n\r\n", len(start), len(start) + MAX_PART_HEAD_BYTES)
    if head < 0 or not body.startswith(start) or not body.endswith(end) or len(body) - len(end) < head + 4:
        return None
    if body.rfind(b"\r\n--" + boundary, head + 2, len(body) - 5) >= 0:  # another before the last, whose end is cut off
        return None
    found = ONLY_DISPOSITION.fullmatch(body, len(start), head)
    if found is None or found[1].decode() not in fields:
        return None
    return Upload(found[2].decode() if found[2] is not None else "", body[head + 4 : len(body) - len(end)])


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
