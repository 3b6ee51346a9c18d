"""A decoded image in any of Pillow's modes to one that `fit` takes: 8 bits, L or RGB, alpha premultiplied."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

STRIP_PIXELS = 2**20  # values of deeper images are scaled so many at a time


def simple(image: Image.Image) -> Image.Image:
    """`image` as L, La, RGB or RGBa; what was decoded is freed.

    No more than two copies of a large image are ever held, and grey ones stay grey, a quarter of the size, until they
    are small.
    """
    if image.mode in ("La", "RGBa"):
        return image
    if image.mode == "P" and image.has_transparency_data:
        _whiten_palette(image)
    if image.has_transparency_data:
        plain = image if image.mode in ("RGBA", "LA") else freeing(image, image.convert("RGBA"))
        return freeing(plain, plain.convert("La" if plain.mode == "LA" else "RGBa"))
    wanted = "L" if image.mode in ("1", "L") else "RGB"
    return image if image.mode == wanted else freeing(image, image.convert(wanted))


def freeing(old: Image.Image, new: Image.Image) -> Image.Image:
    """`new`, after the memory of `old` is freed: callers up the stack still refer to it."""
    old.close()
    return new


def eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey (of a PNG) as L, scaled and not clipped; its transparent value white. Others pass unchanged."""
    if not image.mode.startswith("I;16"):
        return image
    grey = Image.new("L", image.size)
    hole = image.info.get("transparency")
    for top, values in _strips(image):
        small = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        if isinstance(hole, int):
            small[values == hole] = 255
        grey.paste(Image.fromarray(small), (0, top))
    return freeing(image, grey)


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
