"""What goes through a pipeline: an image and what is wanted of it, decoded, and its row of numbers."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.contract import images
from service.inference.wanted import Wanted

Image = bytes | NDArray[np.uint8]  # a file's content, or pixels uint8 [height_px, width_px, 3] as the model takes them


@dataclass(frozen=True, slots=True)
class Row:
    """What the graph gives for one image: `probabilities` float32 [C], scores by name, `quality` float32 [3] of a
    bundle that tells refusals apart, `embedding` float32 [D] and `heat_map` float32 [height, width] where an image of
    the batch wanted them; the size of the upload."""

    probabilities: NDArray[np.float32]
    scores: dict[str, float]
    width_px: int
    height_px: int
    decode_s: float
    inference_s: float  # of the whole batch
    batch_images: int
    embedding: NDArray[np.float32] | None = None
    heat_map: NDArray[np.float32] | None = None
    quality: NDArray[np.float32] | None = None


class Task(NamedTuple):
    image: Image
    wanted: Wanted


@dataclass(frozen=True, slots=True)
class DecodedImage:
    loaded: images.Loaded
    seconds: float  # without the wait for memory
    wanted: Wanted
