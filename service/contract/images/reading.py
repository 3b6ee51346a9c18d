"""Bytes of an uploaded file to uint8 [H, W, 3]. Training reads its image files through this same function.

    load(data, manifest.input, max_pixels=50_000_000).pixels

Orientation, alpha, grey, CMYK, palettes and 16-bit depths are settled here once, so that a threshold measured at
calibration meets the same pixels in service. An image that already has the target size passes unchanged.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import (  # plugins by name: the first two uploads, in two threads, must not race to register them
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from service.contract.bundle import Input
from service.contract.images.fitting import fit
from service.contract.images.limits import draft_size, limit_pixels, limit_scans
from service.errors import InvalidImage, TailGuardError, UnsupportedMedia

# What a damaged file makes Pillow warn of is said in the answer, or does not matter; the log is not the place.
warnings.filterwarnings("ignore", module=r"PIL\.")
PLUGINS = (BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATION_TAG = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

STRIP_PIXELS = 2**20  # values of deeper images are scaled so many at a time


@dataclass(frozen=True)
class Loaded:
    """`pixels` uint8 [height, width, 3] at the size the model takes; the size of the upload, upright, in pixels."""

    pixels: NDArray[np.uint8]
    width_px: int
    height_px: int


def load(data: bytes | bytearray | memoryview, target: Input, *, max_pixels: int) -> Loaded:
    """Decode one JPEG, PNG, WebP, BMP, GIF (first frame) or TIFF and fit it to `target`.

    `bytes` are read in place. Raises UnsupportedMedia for bytes of another kind, InvalidImage for a file that is empty,
    damaged, cut short, of no known range of values, of more than MAX_SCANS JPEG scans, or of more than `max_pixels`
    by its header (less for the kinds in DIVISORS); nothing is decoded then.
    """
    if not data:
        raise InvalidImage("the image is empty (0 bytes): send the content of an image file")
    if not isinstance(data, bytes):
        data = bytes(data)
    try:
        image: Image.Image = Image.open(BytesIO(data), formats=FORMATS)
        width, height = image.size
        limit_pixels(image, max_pixels)
        if image.format in ("JPEG", "MPO"):
            limit_scans(data)
            _draft(image, target)
        image.load()
        orientation = _orientation(image)  # after loading: Pillow turns a TIFF itself while it loads
        image = _simple(image)
        if orientation in TURNS:
            image = _freeing(image, image.transpose(TURNS[orientation]))
        if orientation >= 5:
            width, height = height, width
        return Loaded(fit(image, target), width, height)
    except TailGuardError:
        raise
    except UnidentifiedImageError as error:
        if data.startswith(MAGIC) or data[8:12] == b"WEBP":
            raise InvalidImage(
                "the header of the image is damaged or gives it no pixels: send an intact file"
            ) from error
        raise UnsupportedMedia(
            f"the content is no image of a supported format: send one of {', '.join(FORMATS)}"
        ) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ValueError, zlib.error and others
        raise InvalidImage(f"the image is damaged or cut short ({error}): send an intact file") from error


def _draft(image: Image.Image, target: Input) -> None:
    """Ask the JPEG decoder for a reduced size: 12 megapixels then take 12 ms instead of 80."""
    wanted = draft_size(*image.size, target)
    if wanted[0] <= image.width and wanted[1] <= image.height:
        image.draft(image.mode, wanted)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF says nothing about the pixels, which are intact
        return 1
    return value if isinstance(value, int) else 1


def _simple(image: Image.Image) -> Image.Image:
    """`image` in a mode that `fit` takes; what was decoded is freed. Deeper values are scaled, not clipped.

    No more than two copies of a large image are ever held, and grey ones stay grey, a quarter of the size, until they
    are small.
    """
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _freeing(image, _eight_bit(image))
    if image.mode == "P" and image.has_transparency_data:
        _whiten_palette(image)
    if image.has_transparency_data:
        plain = image if image.mode in ("RGBA", "LA") else _freeing(image, image.convert("RGBA"))
        return _freeing(plain, plain.convert("La" if plain.mode == "LA" else "RGBa"))
    wanted = "L" if image.mode in ("1", "L") else "RGB"
    return image if image.mode == wanted else _freeing(image, image.convert(wanted))


def _freeing(old: Image.Image, new: Image.Image) -> Image.Image:
    old.close()  # callers up the stack still refer to it
    return new


def _whiten_palette(image: Image.Image) -> None:
    """Lay the alpha of a palette image on white in its palette: 256 colours instead of millions of pixels."""
    colours = image.resize((256, 1))
    colours.frombytes(bytes(range(256)))
    rgba = colours.convert("RGBA")
    image.putpalette(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB").tobytes())
    del image.info["transparency"]


def _strips(image: Image.Image) -> Iterator[tuple[int, NDArray[Any]]]:
    """The values [rows, W] of a grey image from top to bottom, each strip with its first row."""
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))


def _eight_bit(image: Image.Image) -> Image.Image:
    """16- or 32-bit grey as L. 32 bits do not say their range: the narrowest usual one that holds them is taken."""
    grey = Image.new("L", image.size)
    deep = image.mode.startswith("I;16")
    full = _range(image) if not deep else 65535.0
    hole = image.info.get("transparency") if deep else None
    for top, values in _strips(image):
        if deep:
            small = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
            if isinstance(hole, int):
                small[values == hole] = 255
        else:
            small = np.rint(values.astype(np.float64) * (255.0 / full)).astype(np.uint8)
        grey.paste(Image.fromarray(small), (0, top))
    return grey


def _range(image: Image.Image) -> float:
    ends = np.array([(v.min(), v.max()) for _, v in _strips(image)], np.float64)
    low, high = float(ends.min()), float(ends.max())
    ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0, 2.0**31 - 1)
    full = next((r for r in ranges if high <= r), None)
    if full is None or not low >= 0:
        raise InvalidImage(
            f"the 32-bit image holds values from {low:g} to {high:g}, the ranges known are 0 to "
            f"{', '.join(f'{r:g}' for r in ranges)}: convert it to 8 or 16 bits"
        )
    return full
