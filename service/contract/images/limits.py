"""What one file may cost, refused from its header before anything is decoded: pixels and JPEG scans."""

import struct
from typing import NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

from service.contract.bundle import Input
from service.errors import InvalidImage

MAX_SCANS = 64  # of a JPEG; encoders make about ten, and each costs a pass over every pixel
SMALL_BYTES = 16_384
DRAFT_FACTOR = 2  # a JPEG is decoded at no less than this times the target, so the resize still averages real pixels

PngImagePlugin.MAX_TEXT_MEMORY = 8 * 2**20  # of all compressed texts; 64 MiB fit in a file of 100 KB otherwise
# Pillow's WebP decoder holds the interpreter while it works, and takes three times the memory of the others: at 50
# megapixels it would silence the whole service, health included, for half a second. That of run-length encoded BMPs is
# written in Python: at 50 megapixels, which fit in a kilobyte, it works for six seconds.
# The decoders of AVIF and HEIC take some ten bytes a pixel and 50 to 80 ns; telephones make HEICs of 24 megapixels.
DIVISORS = {"WebP": 4, "AVIF": 4, "HEIC": 2, "run-length encoded BMP": 64}  # of `max_pixels`
DEEP_BYTES = 4  # of a stored pixel; deeper images are decoded from a copy of that depth
Image.MAX_IMAGE_PIXELS = None  # Pillow's check only warns up to twice its limit; `max_pixels` refuses outright


class Frame(NamedTuple):
    """The start-of-frame segment of a JPEG. `marker`: its second byte, 0xC0 to 0xCF; `samples`: values per pixel."""

    marker: int
    bits: int
    width: int
    height: int
    components: int
    samples: float


def limit_pixels(width: int, height: int, max_pixels: int, kind: str = "", pixel_bytes: float = 0) -> None:
    """Raise InvalidImage for more than `max_pixels`, or than the share of them that DIVISORS gives to `kind`.

    Where a stored pixel has more than DEEP_BYTES bytes, the limit is as much lower.
    """
    limit, of_kind = max_pixels // DIVISORS.get(kind, 1), f" for {kind}" if kind in DIVISORS else ""
    if pixel_bytes > DEEP_BYTES:
        limit, of_kind = int(limit * DEEP_BYTES / pixel_bytes), f" for {kind} of {pixel_bytes:g} bytes a pixel"
    if width * height > limit:
        raise InvalidImage(
            f"the image has {width} x {height} = {width * height} pixels, the limit{of_kind} is {limit}: shrink it"
        )


def limit_scans(data: bytes) -> None:
    """Refuse a JPEG of a great many scans: 100 KB may hold thousands, each a pass over all of 50 megapixels."""
    if len(data) < SMALL_BYTES:
        scans = data.count(b"\xff\xda")
    else:  # bytes.count takes three times as long as numpy here
        values = np.frombuffer(data, np.uint8)
        scans = int(np.count_nonzero((values[:-1] == 0xFF) & (values[1:] == 0xDA)))
    if scans > MAX_SCANS:
        raise InvalidImage(f"the JPEG has {scans} scans, the limit is {MAX_SCANS}: save it again with the usual ones")


def draft_size(width: int, height: int, target: Input) -> tuple[int, int]:
    """Width and height in pixels that a JPEG must at least have when it is decoded at a reduced size."""
    side = DRAFT_FACTOR * max(target.width_px, target.height_px)  # either way up: the orientation is not known yet
    if target.fit == "stretch":
        return side, side
    scale = side / (target.crop_share * min(width, height))
    return round(width * scale), round(height * scale)


def jpeg_frame(data: bytes | bytearray | memoryview) -> Frame | None:
    """What the first start-of-frame segment says, JPEG-LS's (0xF7) included; None where there is none."""
    at, end = 2, len(data) - 9
    while at < end:
        if data[at] != 0xFF:
            at += 1
            continue
        marker = data[at + 1]
        if marker in (0xFF, 0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            at += 1 if marker == 0xFF else 2
            continue
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            bits, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            factors = [data[i] for i in range(at + 11, min(at + 10 + 3 * components, len(data)), 3)]
            areas = [(f >> 4) * (f & 15) for f in factors]
            return Frame(marker, bits, width, height, components, sum(areas) / max([*areas, 1]))
        if marker in (0xD9, 0xDA):
            return None
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None
