"""A small picture of a kept file for the review page, read as the model reads it: upright and in sRGB."""

from io import BytesIO

from PIL import Image

from service.contract import images
from service.contract.bundle import Input

THUMBNAIL_PX = 160  # of the longer side
QUALITY = 80
SQUARE = Input(height_px=THUMBNAIL_PX, width_px=THUMBNAIL_PX, fit="stretch", resampling="lanczos")


def thumbnail(data: bytes, max_pixels: int) -> bytes:
    """A JPEG of at most THUMBNAIL_PX a side, never larger than the image. Raises as images.load."""
    loaded = images.load(data, SQUARE, max_pixels=max_pixels)  # stretched: its shape is known once it is upright
    longest = max(loaded.width_px, loaded.height_px)
    scale = min(1.0, THUMBNAIL_PX / longest)
    size = (max(1, round(loaded.width_px * scale)), max(1, round(loaded.height_px * scale)))
    made = BytesIO()
    Image.fromarray(loaded.pixels).resize(size, Image.Resampling.LANCZOS).save(made, "JPEG", quality=QUALITY)
    return made.getvalue()
