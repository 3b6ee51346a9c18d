"""Small files of huge one-coloured images, six formats, written by hand so that their pixels are never held.

    giants.png(40_000, 40_000)      # 1.6 gigapixels, a valid file

Every builder takes width and height in pixels and returns a file that a decoder reads to its end.
"""

import math
import struct
import zlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from service.contract.images import DIVISORS

ROWS_BYTES = 1 << 22  # of zeros that are compressed at a time


def _deflated(count: int) -> bytes:
    """A zlib stream of `count` zero bytes."""
    packer = zlib.compressobj(9)
    packed = [packer.compress(bytes(min(ROWS_BYTES, count - at))) for at in range(0, count, ROWS_BYTES)]
    return b"".join([*packed, packer.flush()])


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, channels: int = 0) -> bytes:
    """`channels`: 0 one bit a pixel, 3 RGB, 4 RGBA."""
    depth, colour, row_bytes = {0: (1, 0, -(-width // 8)), 3: (8, 2, 3 * width), 4: (8, 6, 4 * width)}[channels]
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = _deflated((1 + row_bytes) * height)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def png_rgb(width: int, height: int) -> bytes:
    return png(width, height, 3)


def png_rgba(width: int, height: int) -> bytes:
    return png(width, height, 4)


def tiff(width: int, height: int, channels: int = 0) -> bytes:
    """One strip, deflated; `channels`: 0 one bit a pixel, 3 RGB."""
    data = _deflated((-(-width // 8) if channels == 0 else channels * width) * height)
    photometric, samples = (1, 1) if channels == 0 else (2, channels)
    short, long = 3, 4
    entries = [
        (256, long, 1, width), (257, long, 1, height), (258, short, 1, 1), (259, short, 1, 8),
        (262, short, 1, photometric), (273, long, 1, 8), (277, short, 1, samples), (278, long, 1, height),
        (279, long, 1, len(data)),
    ]  # fmt: skip
    data += bytes(len(data) % 2)
    directory_at = 8 + len(data)
    tail = b""
    if channels:
        entries[2] = (258, short, channels, directory_at + 2 + 12 * len(entries) + 4)
        tail = struct.pack(f"<{channels}H", *[8] * channels)
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = struct.pack("<2sHI", b"II", 42, directory_at)
    return head + data + struct.pack("<H", len(entries)) + directory + bytes(4) + tail


def tiff_rgb(width: int, height: int) -> bytes:
    return tiff(width, height, 3)


def gif(width: int, height: int) -> bytes:
    """All white. LZW codes for runs that grow by one pixel a code, over and over: 4,092 codes hold 8.4 million."""
    clear, end, first, full = 4, 5, 6, 4096
    head = struct.pack("<6sHHBBB", b"GIF89a", width, height, 0x80, 0, 0) + bytes((0, 0, 0, 255, 255, 255))
    cycle = np.r_[clear, 1, first:full]
    runs = np.r_[0, 1, 2 : full - first + 2]  # pixels of each code
    sizes = np.r_[12, 3, [code.bit_length() for code in range(first, full)]]
    cycles = -(-width * height // int(runs.sum()))
    codes, sizes, reached = np.tile(cycle, cycles), np.tile(sizes, cycles), np.tile(runs, cycles).cumsum()
    sizes[0] = 3
    last = int(np.searchsorted(reached, width * height))
    rest = width * height - int(reached[last - 1])  # a run this short is in the table already
    codes[last] = 1 if rest == 1 else first + rest - 2
    after = min(12, (int(cycle[last % len(cycle)]) + 1).bit_length()) if last % len(cycle) > 1 else 3
    data = _packed(np.append(codes[: last + 1], end), np.append(sizes[: last + 1], after))
    return head + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02" + _blocks(data) + b";"


def _packed(codes: NDArray[np.int64], sizes: NDArray[np.int64]) -> bytes:
    """The lowest `sizes[i]` bits of each code, lowest bit first."""
    bits = (codes[:, None] >> np.arange(12)) & 1
    return np.packbits(bits[np.arange(12) < sizes[:, None]].astype(np.uint8), bitorder="little").tobytes()


def _blocks(data: bytes) -> bytes:
    pieces = [data[at : at + 255] for at in range(0, len(data), 255)]
    return b"".join(bytes([len(piece)]) + piece for piece in pieces) + b"\0"


def webp(width: int, height: int) -> bytes:
    """Lossless; each of the five prefix codes has one symbol, so a pixel costs no bit. At most 16,383 a side."""
    bits = "".join(
        [
            f"{width - 1:014b}"[::-1], f"{height - 1:014b}"[::-1], "0", "000",  # no alpha, version 0
            "0", "0", "0",  # no transform, no colour cache, one group of prefix codes
            *["1000"] * 5,  # simple, one symbol, of one bit: 0
        ]
    )  # fmt: skip
    payload = b"\x2f" + np.packbits(np.array([*bits], np.uint8), bitorder="little").tobytes() + bytes(8)
    payload += bytes(len(payload) % 2)
    chunk = b"VP8L" + struct.pack("<I", len(payload)) + payload
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def _bmp(width: int, height: int, bits: int, runs: bool, palette: bytes, data: bytes) -> bytes:
    at = 14 + 40 + len(palette)
    head = struct.pack("<2sIHHI", b"BM", at + len(data), 0, 0, at)
    colours = len(palette) // 4
    return (
        head
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, runs, len(data), 0, 0, colours, 0)
        + palette
        + data
    )


def bmp(width: int, height: int) -> bytes:
    """Run-length encoded, 8 bits."""
    row = b"\xff\0" * (width // 255) + (bytes([width % 255, 0]) if width % 255 else b"")
    return _bmp(width, height, 8, True, bytes(1024), (row + b"\0\0") * (height - 1) + row + b"\0\1")


def bmp_line(width: int) -> bytes:
    """Run-length encoded, one line of which a pixel is written: a decoder may fill the rest one by one. A kilobyte."""
    return _bmp(width, 1, 8, True, bytes(1024), b"\1\0\0\0\0\1")


def bmp_plain(width: int, height: int) -> bytes:
    """One bit a pixel, as it is."""
    return _bmp(width, height, 1, False, bytes(8), bytes(-(-width // 32) * 4 * height))


def jpeg(width: int, height: int, sampling: int = 1) -> bytes:
    """Baseline; every block is two bits: no change of its mean, and nothing else. `sampling` 1 grey, 3 colour."""
    table = bytes([1] + [0] * 15 + [0])  # one code of one bit, for the symbol 0
    components = b"".join(bytes([i + 1, 0x11, 0]) for i in range(sampling))
    scan = b"".join(bytes([i + 1, 0]) for i in range(sampling))
    segments = [
        (0xDB, b"\0" + b"\1" * 64), (0xC0, struct.pack(">BHHB", 8, height, width, sampling) + components),
        (0xC4, b"\x00" + table + b"\x10" + table), (0xDA, bytes([sampling]) + scan + b"\0\x3f\0"),
    ]  # fmt: skip
    head = b"\xff\xd8" + b"".join(bytes([0xFF, m]) + struct.pack(">H", len(s) + 2) + s for m, s in segments)
    blocks = -(-width // 8) * -(-height // 8) * sampling
    return head + bytes(-(-blocks // 4)) + b"\xff\xd9"


def jpeg_colour(width: int, height: int) -> bytes:
    return jpeg(width, height, 3)


Builder = Callable[[int, int], bytes]
BOMBS: dict[str, tuple[Builder, int]] = {  # and the side in pixels: as large as the format and 10 MiB allow
    "PNG": (png, 40_000),
    "GIF": (gif, 30_000),
    "WebP": (webp, 16_383),
    "TIFF": (tiff, 40_000),
    "BMP": (bmp, 30_000),
    "JPEG": (jpeg, 40_000),
}
LARGEST = 7071  # pixels a side: just under the default of TAILGUARD_MAX_PIXELS
PERMITTED: dict[str, tuple[Builder, int]] = {
    "PNG": (png, LARGEST), "PNG RGB": (png_rgb, LARGEST), "PNG RGBA": (png_rgba, LARGEST), "GIF": (gif, LARGEST),
    "WebP": (webp, math.isqrt(LARGEST**2 // DIVISORS["WebP"])), "TIFF RGB": (tiff_rgb, LARGEST),
    "BMP": (bmp_plain, LARGEST), "JPEG": (jpeg, LARGEST), "JPEG colour": (jpeg_colour, LARGEST),
}  # fmt: skip
