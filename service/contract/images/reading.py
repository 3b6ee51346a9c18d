"""From the bytes of a file to pixels of the model's size: the way of one image, and the errors on it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from service.contract.bundle import Input
from service.contract.images import heif, png, tiff_header
from service.contract.images.decoders import DECODERS
from service.contract.images.fitting import fit
from service.contract.images.modes import eight_bits, freeing, simple
from service.contract.images.profiles import to_srgb
from service.errors import InvalidImage, TailGuardError, UnsupportedMedia

FORMATS = tuple(DECODERS)
FOREIGN = {  # what people send all the same, by how it begins
    b"\0\0\0\x0cJXL ": "JPEG XL", b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000", b"8BPS": "a Photoshop file", b"%PDF": "a PDF", b"<svg": "SVG", b"<?xml": "XML",
    b"\0\0\1\0": "an icon file", b"v/1\x01": "OpenEXR", b"#?RADIANCE": "Radiance HDR", b"FUJIFILM": "a camera raw file",
    b"IIRO": "a camera raw file", b"IIU\0": "a camera raw file",
}  # fmt: skip
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Loaded:
    """`pixels` uint8 [height, width, 3] at the size the model takes; the size of the upload, upright, in pixels."""

    pixels: NDArray[np.uint8]
    width_px: int
    height_px: int


def load(data: bytes | bytearray | memoryview, target: Input, *, max_pixels: int) -> Loaded:
    """Decode one image file of FORMATS (of several frames the first), bring it to sRGB and fit it to `target`.

    `bytes` are read in place. Raises UnsupportedMedia for bytes of another format, InvalidImage for a file that is
    empty, damaged, cut short, of a kind that is not read (IMAGES.md), of no known range of values, of more than
    MAX_SCANS JPEG scans, with a colour profile that is too large, or of more than `max_pixels` by its header (less for
    the kinds in DIVISORS); nothing is decoded then.
    """
    if not data:
        raise InvalidImage("the image is empty (0 bytes): send the content of an image file")
    if not isinstance(data, bytes):
        data = bytes(data)
    kind = kind_of(data)
    try:
        decoded = DECODERS[kind](data, target, max_pixels)
        image = simple(to_srgb(eight_bits(decoded.image), decoded.profile, decoded.sink))
        width, height = decoded.width, decoded.height
        if decoded.orientation in TURNS:
            image = freeing(image, image.transpose(TURNS[decoded.orientation]))
            if decoded.orientation >= 5:
                width, height = height, width
        return Loaded(fit(image, target), width, height)
    except TailGuardError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ValueError, zlib.error and others
        raise InvalidImage(_what_failed(error, kind)) from error


def kind_of(data: bytes) -> str:
    """The format of a file by how it begins, one of FORMATS. Raises UnsupportedMedia for any other."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(png.SIGNATURE):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    if data.startswith(tiff_header.MAGIC):
        return "TIFF"
    if data.startswith(b"BM"):
        return "BMP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if family := heif.kind_of(data):
        return "HEIC" if family == "HEIF" else family
    named = next((name for magic, name in FOREIGN.items() if data.startswith(magic)), "no image of a supported format")
    raise UnsupportedMedia(f"the content is {named}: send one of {', '.join(FORMATS)}")


def _what_failed(error: Exception, kind: str) -> str:
    words = " ".join(str(error).split())
    if isinstance(error, UnidentifiedImageError):
        return "the header of the image is damaged or gives it no pixels: send an intact file"
    if "nsupported" in words or "not supported" in words:
        return f"this kind of {kind} is not read: {words}: save it as a PNG or JPEG"
    return f"the image is damaged or cut short ({words}): send an intact file"
