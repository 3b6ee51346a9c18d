"""The window that a varied photograph shows, and one drawn with numpy; nothing here loads torch."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PHOTO_AREA, PHOTO_RATIO = (0.35, 1.0), (3 / 4, 4 / 3)  # shares of the image; width to height of the window


def cropped(image: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """A random part of an image [H, W, 3], PHOTO_AREA of its area, at its own size (Szegedy et al. 2015)."""
    height, width = image.shape[:2]
    area = height * width * random.uniform(*PHOTO_AREA)
    ratio = np.exp(random.uniform(*np.log(PHOTO_RATIO)))
    wide, high = min(width, np.sqrt(area * ratio)), min(height, np.sqrt(area / ratio))
    left, top = random.uniform(0, width - wide), random.uniform(0, height - high)
    part = Image.fromarray(image).resize(
        (width, height), Image.Resampling.BILINEAR, (left, top, left + wide, top + high)
    )
    return np.asarray(part)
