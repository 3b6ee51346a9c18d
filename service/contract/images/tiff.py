"""Pixels of a TIFF of one of the kinds in `tiff_kinds.by_us`: any depth, planes together or apart, strips or tiles.

Compressed bytes are unpacked by libtiff, which is given them as a grey picture of 8 bits whose rows are the bytes of
the real rows: what the bytes mean is settled here. Values are read band by band, so a deep image is never held twice.
"""

import struct
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.contract.images.tiff_header import Page
from service.contract.images.tiff_kinds import ASSOCIATED, COLOURS, alpha_of
from service.errors import InvalidImage

BAND_VALUES = 2**20  # that are unpacked at a time
REVERSED = np.array([int(f"{i:08b}"[::-1], 2) for i in range(256)], np.uint8)  # a byte's bits the other way round
FLOAT_RANGES = (1.0, 255.0, 65535.0)
INTEGER_RANGES = (255.0, 65535.0, 2.0**31 - 1, 2.0**32 - 1)


def decode(data: bytes, page: Page) -> Image.Image:
    """The picture as L, LA, La, RGB, RGBA, RGBa or CMYK, 8 bits, not yet turned upright.

    Raises InvalidImage where strips are missing, cut short or larger than the file can hold, or values of 32 bits or
    floats are outside every usual range.
    """
    bands = _Bands(data, page)
    colours, alpha = COLOURS[page.photometric], alpha_of(page)
    wanted = [*range(colours), *([] if alpha is None else [alpha])]
    full = 2.0 ** page.bits[0] - 1 if page.formats[0] == 1 and page.bits[0] <= 16 else _range(bands, wanted)
    table = _table(page)
    channels = 3 if page.photometric == 3 else colours
    pixels = np.empty((page.height, page.width, channels + (alpha is not None)), np.uint8)
    for samples, top, left, values in bands.all():
        bottom, right = top + values.shape[0], left + values.shape[1]
        for position, sample in enumerate(wanted):
            if sample not in samples:
                continue
            found = values[..., samples.index(sample)]
            place = pixels[top:bottom, left:right]
            if page.photometric == 3 and sample == 0:
                place[..., :3] = table[found]
            elif sample == alpha:
                place[..., -1] = _eight_bits(found, full)
            else:
                small = _eight_bits(found, full)
                place[..., position] = 255 - small if page.photometric == 0 else small
    return _image(pixels, page, alpha)


def _image(pixels: NDArray[np.uint8], page: Page, alpha: int | None) -> Image.Image:
    if pixels.shape[2] == 1:
        return Image.fromarray(pixels[..., 0])
    mode = "CMYK" if page.photometric == 5 else {2: "LA", 3: "RGB", 4: "RGBA"}[pixels.shape[2]]
    if alpha is not None and page.extras is not None and page.extras[alpha - COLOURS[page.photometric]] == ASSOCIATED:
        if page.photometric == 0:  # the inverted colour is premultiplied too
            pixels[..., 0] = np.maximum(pixels[..., 0].astype(np.int16) - (255 - pixels[..., 1]), 0)
        mode = mode[:-1] + "a"
    return Image.frombytes(mode, (page.width, page.height), pixels)


def _table(page: Page) -> NDArray[np.uint8]:
    """The colours [2^bits, 3] of a palette; of one whose values all fit in 8 bits, these are its range."""
    colours = page.colormap.reshape(3, -1).T
    return (colours if colours.max(initial=0) < 256 else colours // 256).astype(np.uint8)


def _eight_bits(values: NDArray[Any], full: float) -> NDArray[np.uint8]:
    """0 to `full` as 0 to 255, rounded."""
    if full == 255 and values.dtype == np.uint8:
        return values
    if values.dtype.kind == "u" and full <= 65535:
        return ((values.astype(np.uint32) * 255 + int(full) // 2) // int(full)).astype(np.uint8)
    return np.rint(values.astype(np.float64) * (255.0 / full)).astype(np.uint8)


def _range(bands: "_Bands", wanted: list[int]) -> float:
    """The narrowest usual range that holds all values: 32 bits and floats do not say theirs."""
    low, high = np.inf, -np.inf
    for samples, _, _, values in bands.all():
        used = values[..., [i for i, s in enumerate(samples) if s in wanted]]
        if used.size:
            low, high = float(np.minimum(low, used.min())), float(np.maximum(high, used.max()))  # NaN stays
    floats = bands.page.formats[0] == 3
    ranges = FLOAT_RANGES if floats else INTEGER_RANGES
    full = next((r for r in ranges if high <= r), None)
    if full is None or not low >= 0:  # NaN is neither
        raise InvalidImage(
            f"the {bands.page.bits[0]}-bit image holds values from {low:g} to {high:g}, the ranges known are 0 to "
            f"{', '.join(f'{r:g}' for r in ranges)}: convert it to 8 or 16 bits"
        )
    return full


class _Bands:
    """The values of a page in pieces, in any order of rows and planes."""

    def __init__(self, data: bytes, page: Page) -> None:
        self._data, self.page = data, page
        self._width, self._height = page.tile or (page.width, page.rows)
        if self._width <= 0 or self._height <= 0:
            raise InvalidImage("the tiles of the TIFF have no size: send an intact file")
        self._across, self._down = -(-page.width // self._width), -(-page.height // self._height)
        self._planes = page.samples if page.planar == 2 else 1
        self._each = 1 if page.planar == 2 else page.samples  # samples in a pixel of a piece
        self._row_bytes = (self._width * self._each * page.bits[0] + 7) // 8
        self._check()

    def _check(self) -> None:
        page = self.page
        pieces = self._across * self._down * self._planes
        counts = page.counts.astype(np.int64)[:pieces]
        if len(page.offsets) < pieces or (len(counts) < pieces and (page.compression != 1 and pieces > 1)):
            raise InvalidImage(f"the TIFF names {len(page.offsets)} of its {pieces} pieces: send an intact file")
        if page.tile and self._row_bytes * self._height * pieces > 16 * (page.width * page.height + 2**20) * 8:
            raise InvalidImage("the tiles of the TIFF are far larger than its picture: send an intact file")
        if page.compression != 1 and counts.sum() > 4 * len(self._data) + 2**20:
            raise InvalidImage("the pieces of the TIFF are larger than the file: send an intact file")

    def all(self) -> Iterator[tuple[list[int], int, int, NDArray[Any]]]:
        """The samples that a piece holds, its first row and column, its values [rows, columns, samples]."""
        page = self.page
        for plane in range(self._planes):
            samples = [plane] if page.planar == 2 else list(range(page.samples))
            for down in range(self._down):
                top = down * self._height
                rows = self._height if page.tile else min(self._height, page.height - top)
                kept = min(rows, page.height - top)
                for across in range(self._across):
                    left = across * self._width
                    piece = (plane * self._down + down) * self._across + across
                    for first, values in self._piece(piece, rows, kept):
                        yield samples, top + first, left, values[:, : page.width - left]

    def _piece(self, piece: int, rows: int, kept: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """Values of one strip or tile, some rows at a time, each with its first row; only `kept` of its `rows`."""
        at = int(self.page.offsets[piece])
        step = max(1, BAND_VALUES // max(1, self._width * self._each))
        if self.page.compression == 1:
            size = rows * self._row_bytes
            if at < 0 or at + kept * self._row_bytes > len(self._data):
                raise InvalidImage("the image is damaged or cut short (a strip lies outside it): send an intact file")
            held = np.frombuffer(self._data, np.uint8, min(size, len(self._data) - at), at)
            for first in range(0, kept, step):
                end = min(first + step, kept)
                raw = held[first * self._row_bytes : end * self._row_bytes].reshape(end - first, self._row_bytes)
                yield first, self._unpacked(REVERSED[raw] if self.page.fill_order == 2 else raw)
            return
        count = int(self.page.counts[piece]) if piece < len(self.page.counts) else len(self._data) - at
        packed = self._data[at : at + count] if at >= 0 and count > 0 else b""
        image = _unpack_bytes(packed, self.page, self._row_bytes, rows)
        for first in range(0, kept, step):
            end = min(first + step, kept)
            yield first, self._unpacked(np.asarray(image.crop((0, first, self._row_bytes, end))))
        image.close()

    def _unpacked(self, raw: NDArray[np.uint8]) -> NDArray[Any]:
        """Bytes [rows, row bytes] to values [rows, columns, samples]."""
        bits, each = self.page.bits[0], self._each
        rows, count = raw.shape[0], self._width * each
        predictor = self.page.predictor if self.page.compression not in (1, 32773) else 1
        if predictor == 3:
            summed = np.add.accumulate(raw.reshape(rows, -1, each), axis=1, dtype=np.uint8)
            planes = summed.reshape(rows, bits // 8, count)
            values = np.ascontiguousarray(planes.transpose(0, 2, 1)).view(f">f{bits // 8}")
            return values.reshape(rows, self._width, each)
        if bits in (8, 16, 32, 64):
            kind = {1: "u", 2: "i", 3: "f"}[self.page.formats[0]]
            dtype = np.dtype(f"{kind}{bits // 8}").newbyteorder(self.page.order)
            values = np.ascontiguousarray(raw).view(dtype).reshape(rows, self._width, each)
            if predictor == 2:
                native = values.astype(dtype.newbyteorder("="))
                values = np.add.accumulate(native, axis=1, dtype=native.dtype)
            return values
        places = np.unpackbits(raw, axis=1, count=count * bits).reshape(rows, self._width, each, bits)
        weights = (1 << np.arange(bits - 1, -1, -1)).astype(np.uint16)
        return np.asarray(places @ weights) if bits > 1 else places[..., 0]


def _unpack_bytes(packed: bytes, page: Page, row_bytes: int, rows: int) -> Image.Image:
    """Grey [rows, row_bytes]: what libtiff makes of compressed bytes that are called a picture of 8 bits."""
    short, long = 3, 4
    entries = [
        (256, long, row_bytes), (257, long, rows), (258, short, 8), (259, short, page.compression), (262, short, 1),
        (266, short, page.fill_order), (273, long, 150), (277, short, 1), (278, long, rows), (279, long, len(packed)),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + directory + bytes(4)
    image = Image.open(BytesIO(head.ljust(150, b"\0") + packed), formats=("TIFF",))
    image.load()
    return image
