"""An upright image in one of the modes L, RGB, La and RGBa to uint8 [H, W, 3] of the model's size."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.contract.bundle import Input


def fit(image: Image.Image, target: Input) -> NDArray[np.uint8]:
    """An upright image resized to uint8 [target.height_px, target.width_px, 3], bilinear with antialiasing.

    `image` is RGB or L, or RGBa or La (alpha premultiplied), whose alpha is laid on white. An image that already has
    the target size passes unchanged.
    """
    size = (target.width_px, target.height_px)
    if image.size == size:
        return _rgb(image)
    box = None
    if target.fit == "crop":
        scale = max(size[0] / image.width, size[1] / image.height)
        wide, high = min(size[0] / scale, image.width), min(size[1] / scale, image.height)
        left, top = (image.width - wide) / 2, (image.height - high) / 2
        if scale == 1:  # a crop alone must not blur by half a pixel
            left, top = int(left), int(top)
        box = (left, top, left + wide, top + high)
    return _rgb(image.resize(size, Image.Resampling.BILINEAR, box=box))


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] of what `fit` takes. On white, a premultiplied value gains what alpha leaves open."""
    values = np.asarray(image)
    if image.mode.endswith("a"):
        colour, alpha = values[..., :-1], values[..., -1:]
        values = np.minimum(colour, alpha) + (255 - alpha)  # rounding in a resize may put a colour above its alpha
    elif image.mode == "L":
        values = values[..., None]
    return values if values.shape[2] == 3 else np.repeat(values, 3, axis=2)
