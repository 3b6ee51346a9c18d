"""How much memory the decoding of a file takes, from its header: what a service admits images by."""

import struct
from io import BytesIO

from PIL import Image

from service.contract.bundle import Input
from service.contract.images import heif, tiff_header, tiff_kinds
from service.contract.images.limits import Frame, draft_size, jpeg_frame

# Bytes of memory per pixel while an image of a Pillow mode is decoded and brought to 8 bits. Measured at 50 megapixels.
MODE_BYTES = {"1": 2, "L": 1, "P": 5, "I;16": 3, "RGB": 4, "YCbCr": 8, "I": 5, "F": 5}
OTHER_MODE_BYTES = 8  # RGBA, LA, CMYK, LAB and what is rarer: the decoded image and its converted copy
FORMAT_BYTES = {"WEBP": 8, "GIF": 1, "BMP": 1, "AVIF": 10, "HEIF": 10}  # what the decoder holds besides, per pixel


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
        if head.startswith(tiff_header.MAGIC):
            return _tiff_bytes(tiff_header.full_page(bytes(data)))
        if heif.kind_of(head + bytes(data[8:256])) == "HEIF":
            heif.register()
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


def _tiff_bytes(page: tiff_header.Page) -> int:
    """What tiff.py unpacks is held as it is stored and in 8 bits; what Pillow reads, by libtiff and in 8 bits."""
    pixels = page.width * page.height
    if tiff_kinds.by_pillow(page):
        return pixels * (2 if page.samples == 1 else 8)
    if not tiff_kinds.by_us(page):
        return 0
    stored = 0 if page.compression == 1 else page.pixel_bytes
    return int(pixels * (stored + (2 if page.samples == 1 and page.photometric != 3 else 8)))
