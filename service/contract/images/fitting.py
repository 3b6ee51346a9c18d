"""An upright image in one of the modes L, RGB, La and RGBa to uint8 [H, W, 3] of the model's size."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.contract.bundle import Input


def fit(image: Image.Image, target: Input) -> NDArray[np.uint8]:
    """An upright image resized to uint8 [target.height_px, target.width_px, 3], once, with antialiasing.

    `image` is RGB or L, or RGBa or La (alpha premultiplied), whose alpha is laid on white. An image that already has
    the target size, and is not to be cropped, passes unchanged.
    """
    size = (target.width_px, target.height_px)
    if image.size == size and target.crop_share == 1:
        return _rgb(image)
    return _rgb(image.resize(size, Image.Resampling[target.resampling.upper()], box=box(image.size, target)))


def box(size: tuple[int, int], target: Input) -> tuple[float, float, float, float] | None:
    """Left, top, right and bottom in pixels of what is seen of an image of this width and height; None: all of it."""
    if target.fit == "stretch":
        return None
    width, height = size
    scale = min(width / target.width_px, height / target.height_px) * target.crop_share
    wide, high = min(target.width_px * scale, width), min(target.height_px * scale, height)
    left, top = (width - wide) / 2, (height - high) / 2
    if scale == 1:  # a crop alone must not blur by half a pixel
        left, top = int(left), int(top)
    return left, top, left + wide, top + high


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] of what `fit` takes. On white, a premultiplied value gains what alpha leaves open."""
    values = np.asarray(image)
    if image.mode.endswith("a"):
        colour, alpha = values[..., :-1], values[..., -1:]
        values = np.minimum(colour, alpha) + (255 - alpha)  # rounding in a resize may put a colour above its alpha
    elif image.mode == "L":
        values = values[..., None]
    return values if values.shape[2] == 3 else np.repeat(values, 3, axis=2)
