"""What the header of a TIFF says: the tags of its pages that bear on the pixels, and which page is the full picture."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidImage

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_PAGES = 64  # that are looked through for the full picture
CMYK_INKS = 1  # value of InkSet
TYPES = {  # of the values of a tag, as numpy names them; rationals are left as bytes
    1: "u1", 2: "u1", 3: "u2", 4: "u4", 5: "V8", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 11: "f4", 12: "f8", 13: "u4",
    16: "u8", 17: "i8", 18: "u8",
}  # fmt: skip
Order = Literal["<", ">"]


@dataclass(frozen=True)
class Page:
    """The tags of one image of a TIFF that bear on its pixels, defaults filled in. `order` is "<" or ">"."""

    at: int
    order: Order
    width: int
    height: int
    bits: tuple[int, ...]
    compression: int
    photometric: int
    samples: int
    planar: int
    formats: tuple[int, ...]
    extras: tuple[int, ...] | None
    predictor: int
    fill_order: int
    orientation: int  # 0: no tag says one
    reduced: bool
    rows: int
    tile: tuple[int, int] | None  # width, height
    offsets: NDArray[Any]
    counts: NDArray[Any]
    colormap: NDArray[Any]
    subsampling: tuple[int, ...]
    inks: int
    white: tuple[float, float] | None  # WhitePoint, x and y
    profile: bytes
    xmp: bytes

    @property
    def pixel_bytes(self) -> float:
        """Bytes of one pixel as they are stored, before compression."""
        return sum(self.bits) / 8


def full_page(data: bytes) -> Page:
    """The picture of the file: its first page, or where that is a reduced one or a mask the first full page after it.

    Looks in the pages of the chain and in the first page's SubIFDs. Raises InvalidImage for a header that is damaged.
    """
    first: Page | None = None
    for page in _pages(data):
        if not page.reduced:
            return page
        first = first or page
    if first is None:
        raise InvalidImage("the header of the image is damaged or gives it no pixels: send an intact file")
    return first


def opened_at(data: bytes, page: Page) -> bytes:
    """`data` with `page` as its first: what a reader that knows only first pages must be given."""
    big = data[2:4] in (b"+\0", b"\0+")
    at, form = (8, "Q") if big else (4, "I")
    if struct.unpack_from(page.order + form, data, at)[0] == page.at:
        return data
    return data[:at] + struct.pack(page.order + form, page.at) + data[at + struct.calcsize(form) :]


def _pages(data: bytes) -> Iterator[Page]:
    order: Order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    waiting, seen = [_number(data, 8 if big else 4, order + ("Q" if big else "I"))], set[int]()
    while waiting and len(seen) < MAX_PAGES:
        at = waiting.pop(0)
        if at in seen or not 0 < at < len(data):
            continue
        seen.add(at)
        tags, following = _directory(data, at, order, big)
        page = _page(data, at, order, tags)
        if page is not None:
            yield page
        nested = [int(v) for v in _values(data, order, tags.get(330))[:MAX_PAGES]] if len(seen) == 1 else []
        waiting = [*nested, *waiting, following]


def _number(data: bytes, at: int, form: str) -> int:
    try:
        return int(struct.unpack_from(form, data, at)[0])
    except struct.error:
        raise InvalidImage("the image is cut short inside its header: send an intact file") from None


def _directory(data: bytes, at: int, order: Order, big: bool) -> tuple[dict[int, tuple[int, int, int]], int]:
    """Entries of one image file directory, by tag: type, count, where the values begin; and where the next one is."""
    entries = _number(data, at, order + ("Q" if big else "H"))
    at += 8 if big else 2
    size, inline = (20, 8) if big else (12, 4)
    tags: dict[int, tuple[int, int, int]] = {}
    if entries * size > len(data):
        raise InvalidImage("the image is cut short inside its header: send an intact file")
    for _ in range(entries):
        if at + size > len(data):
            raise InvalidImage("the image is cut short inside its header: send an intact file")
        tag, kind, count = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, at)
        width = np.dtype(TYPES[kind]).itemsize if kind in TYPES else 0
        where = at + size - inline
        if width * count > inline:
            where = _number(data, where, order + ("Q" if big else "I"))
        if width:
            tags[tag] = (kind, count, where)
        at += size
    try:
        return tags, _number(data, at, order + ("Q" if big else "I"))
    except InvalidImage:
        return tags, 0


def _values(data: bytes, order: Order, entry: tuple[int, int, int] | None) -> NDArray[Any]:
    if entry is None:
        return np.zeros(0, np.int64)
    kind, count, at = entry
    dtype = np.dtype(TYPES[kind]).newbyteorder(order)
    if at + count * dtype.itemsize > len(data):
        raise InvalidImage("the image is cut short inside its header: send an intact file")
    return np.frombuffer(data, dtype, count, at)


def _page(data: bytes, at: int, order: Order, tags: dict[int, tuple[int, int, int]]) -> Page | None:
    def numbers(tag: int) -> tuple[int, ...]:
        values = _values(data, order, tags.get(tag))[:64]
        if values.dtype.kind == "V":
            return ()
        return tuple(int(v) for v in values if np.isfinite(v))

    def one(tag: int, default: int) -> int:
        return (numbers(tag) or (default,))[0]

    def content(tag: int) -> bytes:
        return _values(data, order, tags.get(tag)).tobytes() if tag in tags else b""

    width, height = one(256, 0), one(257, 0)
    if width <= 0 or height <= 0:
        return None
    photometric, compression = one(262, 0), one(259, 1)
    samples = one(277, 3 if compression == 6 else 1)
    if not 0 < samples <= 64:
        return None
    bits, formats = numbers(258) or (1,), numbers(339) or (1,)
    white = None
    if len(corner := content(318)) == 16:
        x, x_whole, y, y_whole = struct.unpack(order + "4I", corner)
        white = x / max(x_whole, 1), y / max(y_whole, 1)
    tile = (one(322, 0), one(323, 0)) if 322 in tags or 323 in tags else None
    return Page(
        at=at, order=order, width=width, height=height, compression=compression, photometric=photometric,
        samples=samples, bits=bits * samples if len(bits) == 1 else bits[:samples],
        formats=formats * samples if len(formats) == 1 else formats[:samples],
        planar=one(284, 1), extras=numbers(338) if 338 in tags else None,
        predictor=one(317, 1), fill_order=one(266, 1), orientation=one(274, 0),
        reduced=bool(one(254, 0) & 5) or (254 not in tags and one(255, 1) == 2),
        rows=min(one(278, height) or height, height), tile=tile,
        offsets=_values(data, order, tags.get(324 if tile else 273)),
        counts=_values(data, order, tags.get(325 if tile else 279)),
        colormap=_values(data, order, tags.get(320)), subsampling=numbers(530) or (2, 2), inks=one(332, CMYK_INKS),
        white=white, profile=content(34675), xmp=content(700),
    )  # fmt: skip
