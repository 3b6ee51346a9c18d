"""What one file may cost, known from its header before anything is decoded: pixels, JPEG scans, bytes of memory."""

import struct
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

from service.contract.bundle import Input
from service.errors import InvalidImage

MAX_SCANS = 64  # of a JPEG; encoders make about ten, and each costs a pass over every pixel
DRAFT_FACTOR = 2  # a JPEG is decoded at no less than this times the target, so the resize still averages real pixels

PngImagePlugin.MAX_TEXT_MEMORY = 8 * 2**20  # of all compressed texts; 64 MiB fit in a file of 100 KB otherwise
# Pillow's WebP decoder holds the interpreter while it works, and takes three times the memory of the others: at 50
# megapixels it would silence the whole service, health included, for half a second. That of run-length encoded BMPs is
# written in Python: at 50 megapixels, which fit in a kilobyte, it works for six seconds.
# The decoders of AVIF and HEIC take some ten bytes a pixel and 50 to 80 ns; telephones make HEICs of 24 megapixels.
DIVISORS = {"WebP": 4, "AVIF": 4, "HEIC": 2, "run-length encoded BMP": 64}  # of `max_pixels`
DEEP_BYTES = 4  # of a stored pixel; deeper images are decoded from a copy of that depth
Image.MAX_IMAGE_PIXELS = None  # Pillow's check only warns up to twice its limit; `max_pixels` refuses outright

# Bytes of memory per pixel while an image of a Pillow mode is decoded and brought to 8 bits. Measured at 50 megapixels.
MODE_BYTES = {"1": 2, "L": 1, "P": 5, "I;16": 3, "RGB": 4, "YCbCr": 8, "I": 5, "F": 5}
OTHER_MODE_BYTES = 8  # RGBA, LA, CMYK, LAB and what is rarer: the decoded image and its converted copy
FORMAT_BYTES = {"WEBP": 8, "TIFF": 3, "GIF": 1, "BMP": 1}  # what the decoder holds besides, per pixel


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
    values = np.frombuffer(data, np.uint8)  # bytes.count takes three times as long
    scans = int(np.count_nonzero((values[:-1] == 0xFF) & (values[1:] == 0xDA)))
    if scans > MAX_SCANS:
        raise InvalidImage(f"the JPEG has {scans} scans, the limit is {MAX_SCANS}: save it again with the usual ones")


def draft_size(width: int, height: int, target: Input) -> tuple[int, int]:
    """Width and height in pixels that a JPEG must at least have when it is decoded at a reduced size."""
    side = DRAFT_FACTOR * max(target.width_px, target.height_px)  # either way up: the orientation is not known yet
    if target.fit == "stretch":
        return side, side
    scale = side / min(width, height)
    return round(width * scale), round(height * scale)


def decoded_bytes(data: bytes | bytearray | memoryview, target: Input) -> int:
    """About how many bytes of memory `load(data, target)` needs at its peak, besides `data` itself.

    From the header alone: 5 µs for a JPEG or PNG, some 50 µs for others. Never raises: 0 for a file that `load` refuses
    by its header. The estimate takes no regard of `max_pixels`, so `min` it with what may be admitted at all.
    """
    head = bytes(data[:8])
    if head.startswith(b"\xff\xd8\xff"):
        frame = jpeg_frame(data)
        return _jpeg_bytes(frame, target) if frame else 0
    if head == b"\x89PNG\r\n\x1a\n" and bytes(data[12:16]) == b"IHDR" and len(data) >= 26:
        width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
        mode = {0: "1" if depth == 1 else "I;16" if depth == 16 else "L", 2: "RGB", 3: "P"}.get(colour, "RGBA")
        return int(width * height) * MODE_BYTES.get(mode, OTHER_MODE_BYTES)
    try:
        with Image.open(BytesIO(data)) as image:
            bytes_per_pixel = MODE_BYTES.get(image.mode, OTHER_MODE_BYTES) + FORMAT_BYTES.get(image.format or "", 0)
            return image.width * image.height * bytes_per_pixel
    except Exception:  # `load` will say what is wrong with it
        return 0


def _jpeg_bytes(frame: Frame, target: Input) -> int:
    """A baseline JPEG holds its reduced picture, a progressive one all coefficients, of two bytes, at full size."""
    pixels = frame.width * frame.height
    if not pixels:
        return 0
    least = draft_size(frame.width, frame.height, target)
    scale = max((s for s in (8, 4, 2, 1) if min(frame.width // least[0], frame.height // least[1]) >= s), default=1)
    held = {1: 1, 3: 4}.get(frame.components, OTHER_MODE_BYTES) * pixels // scale**2
    return held + (int(2 * frame.samples * pixels) if frame.marker in (0xC2, 0xC6, 0xCA, 0xCE) else 0)


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
