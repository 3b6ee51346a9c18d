"""What images look like very small: vectors whose products say how alike two of them are laid out."""

import numpy as np
from numpy.typing import NDArray

from training.data.readers import Pixels

GRID = 8  # thumbnails are GRID x GRID x 3
FLAT_LEVELS = 1.0  # a thumbnail whose standard deviation is below this many grey levels of 255 has no shape to compare
BLOCK_IMAGES = 512
Vectors = NDArray[np.float32]  # [N, D], rows of length 1; flat images have rows of zeros


def thumbnails(pixels: Pixels) -> Vectors:
    """[N, 192]: 8 x 8 x 3 means of uint8 [N, S, S, 3], less their mean, of length 1. Flat images give zeros.

    ValueError where S is below 8.
    """
    if pixels.shape[1] < GRID:
        raise ValueError(
            f"images of {pixels.shape[1]} px have no {GRID} x {GRID} thumbnail: read them at a larger size"
        )
    edges = np.linspace(0, pixels.shape[1], GRID + 1).round().astype(int)
    sides = np.diff(edges).astype(np.float32)
    out = np.empty((len(pixels), GRID * GRID * 3), np.float32)
    for start in range(0, len(pixels), BLOCK_IMAGES):
        block = pixels[start : start + BLOCK_IMAGES].astype(np.float32)
        sums = np.add.reduceat(np.add.reduceat(block, edges[:-1], axis=1), edges[:-1], axis=2)
        cells = sums / (sides[:, None, None] * sides[None, :, None])
        out[start : start + len(block)] = cells.reshape(len(block), -1)
    return unit(out)


def unit(vectors: Vectors) -> Vectors:
    """Rows less their mean, of length 1; zeros where the standard deviation says flat: 0 / 0 is no direction."""
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    has_shape = norms >= FLAT_LEVELS * np.sqrt(vectors.shape[1])
    return np.where(has_shape, centred / np.maximum(norms, np.float32(1e-12)), np.float32(0))
