"""The size of the pictures that an AVIF's coded data hold: the container may tell a smaller one than is decoded."""

import struct
from collections.abc import Iterator

SEQUENCE_HEADER = 1  # type of an open bitstream unit
MOST_UNITS = 1_000


def sizes(coded: bytes) -> Iterator[tuple[int, int]]:
    """Width and height that each sequence header in AV1 data permits a picture."""
    at = units = 0
    while at < len(coded) and units < MOST_UNITS:
        units += 1
        head = coded[at]
        at += 2 if head & 4 else 1
        length = len(coded) - at
        if head & 2:
            length, at = _leb128(coded, at)
        if head >> 3 & 15 == SEQUENCE_HEADER:
            yield _size(_Bits(coded[at : at + min(length, 128)]))
        at += length


def coded_pieces(data: bytes, boxes: list[tuple[bytes, int, int]]) -> Iterator[bytes]:
    """The coded bytes of each item that the container locates. `boxes`: name, begin and end of their contents."""
    inner = next((at for name, at, _ in boxes if name == b"idat"), 0)
    for name, at, end in boxes:
        if name == b"iloc":
            yield from _items(data, at, end, inner)
        elif name in (b"stco", b"co64") and end - at >= 16:  # a sequence: its first sample
            start = struct.unpack_from(">I" if name == b"stco" else ">Q", data, at + 8)[0]
            yield data[start : start + 4096]


def _items(whole: bytes, at: int, end: int, inner: int) -> Iterator[bytes]:
    """The joined extents of each item of an `iloc` box from `at` to `end`. `inner`: where `idat` begins."""
    data = whole[:end]
    if end - at < 8:
        return
    version, sizes_of, more = data[at], data[at + 4], data[at + 5]
    offset_size, length_size, base_size = sizes_of >> 4, sizes_of & 15, more >> 4
    index_size = more & 15 if version in (1, 2) else 0
    at += 6
    wide = 4 if version == 2 else 2

    def number(size: int) -> int:
        nonlocal at
        at += size
        return int.from_bytes(data[at - size : at], "big")

    for _ in range(number(wide)):
        if at >= len(data):
            return
        number(wide)
        method = number(2) & 15 if version in (1, 2) else 0
        number(2)
        base = number(base_size) + (inner if method == 1 else 0)
        extents = []
        for _ in range(number(2)):
            if at >= len(data):
                return
            number(index_size)
            extents.append((base + number(offset_size), number(length_size)))
        yield b"".join(whole[start : start + (length or len(whole))] for start, length in extents[:MOST_UNITS])


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i, byte in enumerate(data[at : at + 8]):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, at + i + 1
    return len(data), len(data)


class _Bits:
    """Reads numbers of some bits, highest bit first; zeros after the end."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data.ljust(128, b"\0"), "big"), 1024

    def read(self, count: int) -> int:
        self._left -= count
        return (self._value >> max(self._left, 0)) & ((1 << count) - 1)

    def exp_golomb(self) -> None:
        zeros = 0
        while zeros < 32 and not self.read(1):
            zeros += 1
        self.read(zeros)


def _size(bits: _Bits) -> tuple[int, int]:
    """Of a sequence header (AV1 specification, 5.5): the largest picture, in pixels, that frames may have."""
    bits.read(4)  # profile, still picture
    reduced = bits.read(1)
    if reduced:
        bits.read(5)
    else:
        _operating_points(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    width, height = bits.read(width_bits) + 1, bits.read(height_bits) + 1
    if not reduced:  # a frame may name a size of its own, of so many bits
        width = width if width.bit_length() >= width_bits else 1 << width_bits
        height = height if height.bit_length() >= height_bits else 1 << height_bits
    return width, height


def _operating_points(bits: _Bits) -> None:
    """Skip what a sequence header says of timing and operating points."""
    delay_bits = 0
    if bits.read(1):  # timing
        bits.read(64)
        if bits.read(1):
            bits.exp_golomb()
        if bits.read(1):  # decoder model
            delay_bits = bits.read(5) + 1
            bits.read(42)
    display_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:
            bits.read(1)
        if delay_bits and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if display_delay and bits.read(1):
            bits.read(4)
