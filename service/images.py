"""Bytes of an uploaded file to uint8 [H, W, 3]. Training reads its image files through this same function.

    load(data, manifest.input, max_pixels=50_000_000).pixels

Orientation, alpha, grey, CMYK, palettes and 16-bit depths are settled here once, so that a threshold measured at
calibration meets the same pixels in service. An image that already has the target size passes unchanged.
"""

from dataclasses import dataclass
from io import BytesIO

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

from service.bundle import Input
from service.errors import InvalidImage, TailGuardError, UnsupportedMedia

PLUGINS = (BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
DRAFT_FACTOR = 2  # a JPEG is decoded at no less than this times the target, so the resize still averages real pixels
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

Image.MAX_IMAGE_PIXELS = None  # Pillow's check only warns up to twice its limit; `max_pixels` refuses outright


@dataclass(frozen=True)
class Loaded:
    """`pixels` uint8 [height, width, 3] at the size the model takes; the size of the upload, upright, in pixels."""

    pixels: NDArray[np.uint8]
    width_px: int
    height_px: int


def load(data: bytes, target: Input, *, max_pixels: int) -> Loaded:
    """Decode one JPEG, PNG, WebP, BMP, GIF (first frame) or TIFF and fit it to `target`.

    Raises UnsupportedMedia for bytes of another kind, InvalidImage for a file that is empty, damaged, cut short, of no
    known range of values, or of more than `max_pixels` by its header; nothing is decoded then.
    """
    if not data:
        raise InvalidImage("the image is empty (0 bytes): send the content of an image file")
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise InvalidImage(
                f"the image has {width} x {height} = {width * height} pixels, the limit is {max_pixels}: shrink it"
            )
        _draft(image, target)
        image.load()
        orientation = _orientation(image)  # after loading: Pillow turns a TIFF itself while it loads
        upright = _to_rgb(image)
        if orientation in TURNS:
            upright = upright.transpose(TURNS[orientation])
        if orientation >= 5:
            width, height = height, width
        return Loaded(fit(upright, target), width, height)
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


def fit(image: Image.Image, target: Input) -> NDArray[np.uint8]:
    """An upright RGB image resized to uint8 [target.height_px, target.width_px, 3], bilinear with antialiasing."""
    size = (target.width_px, target.height_px)
    if image.size == size:
        return np.array(image)
    box = None
    if target.fit == "crop":
        scale = max(size[0] / image.width, size[1] / image.height)
        wide, high = min(size[0] / scale, image.width), min(size[1] / scale, image.height)
        left, top = (image.width - wide) / 2, (image.height - high) / 2
        if scale == 1:  # a crop alone must not blur by half a pixel
            left, top = int(left), int(top)
        box = (left, top, left + wide, top + high)
    return np.array(image.resize(size, Image.Resampling.BILINEAR, box=box))


def _draft(image: Image.Image, target: Input) -> None:
    """Ask the JPEG decoder for a reduced size: 12 megapixels then take 12 ms instead of 80."""
    side = DRAFT_FACTOR * max(target.width_px, target.height_px)  # either way up: the orientation is not known yet
    width, height = image.size
    if target.fit == "stretch":
        wanted = (side, side)
    else:
        scale = side / min(width, height)
        wanted = (round(width * scale), round(height * scale))
    if wanted[0] <= width and wanted[1] <= height:
        image.draft(image.mode, wanted)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF says nothing about the pixels, which are intact
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB with alpha laid on white and deeper values scaled, not clipped."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint16)
        grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        if isinstance(hole := image.info.get("transparency"), int):
            grey[values == hole] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_scale(np.asarray(image, np.float64), image.mode)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _scale(values: NDArray[np.float64], mode: str) -> NDArray[np.uint8]:
    """32-bit grey [H, W] to uint8. The file does not say its range: the narrowest usual one that holds it is taken."""
    low, high = float(values.min()), float(values.max())
    ranges = (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0, 2.0**31 - 1)
    full = next((r for r in ranges if high <= r), None)
    if full is None or not low >= 0:
        raise InvalidImage(
            f"the 32-bit image holds values from {low:g} to {high:g}, the ranges known are 0 to "
            f"{', '.join(f'{r:g}' for r in ranges)}: convert it to 8 or 16 bits"
        )
    return np.rint(values * (255.0 / full)).astype(np.uint8)
