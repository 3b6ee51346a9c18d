"""Which images are unfit: limits on the pixels, from the training images.

The limits rest on training images, and thresholds on calibration images that count as refused where they are unfit. As
the limits have not seen these, what a threshold promises holds for refusals of all kinds together.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.contract.bundle import Input
from service.contract.calibration.unfit import Flags
from service.contract.images import heif
from service.contract.reasons import MEASURES, Limits
from training.data.fitted import Fitted
from training.data.loading import Data
from training.data.readers import Images
from training.evaluation.predict import BATCH_IMAGES, Outputs
from training.network.quality import measurer

RARE = 0.001  # of the training images lie below the value that the limits are taken from
# times that value. Sharpness is a variance, and pictures of other things may be much smoother: half of it called
# micrographs of blood cells blurred, a tenth calls no sharp picture so and every one that is blurred by 2% of its side
MARGINS = {"brightness": 0.5, "contrast": 0.5, "sharpness": 0.1}
SIDE_PART = 4  # of the smaller of the input's side and a small upload in training
MOST_IMAGES = 2000


@dataclass(frozen=True)
class Fitness:
    """`limits`; where thresholds come from folds, which of their images are unfit, bool [N], and which of each OOD
    set."""

    limits: Limits
    judged: Flags | None = None
    ood: Mapping[str, Flags] = field(default_factory=dict)

    def unfit(self, quality: NDArray[np.float32], images: Images) -> Flags:
        """bool [N] of images with these measures [N, 3]."""
        return below(self.limits, quality, shorter_sides(images))


def limits(images: Images, side_px: int, spacing: int = 1) -> Limits:
    """From training images as pixels, of many every n-th, for a model whose input has a shorter side of `side_px`."""
    rows = np.arange(0, len(images), max(1, len(images) // MOST_IMAGES))
    measured, sides = quality(images, rows, spacing), shorter_sides(images)[rows]
    rare = np.quantile(measured.astype(np.float64), RARE, axis=0)
    least = [MARGINS[name] * float(value) for name, value in zip(MEASURES, rare, strict=True)]
    smallest = min(float(np.quantile(sides, RARE)), side_px) / SIDE_PART
    named = {name: float(f"{value:.4g}") for name, value in zip(MEASURES, least, strict=True)}
    return Limits(
        **named, side_px=max(1, round(smallest)), images=len(rows),
        chosen=(
            f"half of the brightness and contrast, and a tenth of the sharpness, that {RARE:.1%} of images lie "
            f"below; in pixels 1/{SIDE_PART} of the shorter side of such an image, or of the model's input where "
            f"that is smaller; edges are those of pixels {spacing} apart, as uploads in training have them"
        ),
    )  # fmt: skip


def spacing_of(images: Images, target: Input) -> int:
    """How many pixels of the model's input one of a training image becomes, at least 1: of their median."""
    shorter = min(target.height_px, target.width_px) / target.crop_share
    return max(1, round(shorter / float(np.median(shorter_sides(images)))))


def of_data(data: Data, ood: Mapping[str, Images], target: Input) -> Fitness:
    """Limits from the training images of `data`, which has pixels, for a model of that input; with folds also what is
    unfit among the images that are judged there and in the OOD sets."""
    found, unfit = judge(data.train.images, target)
    if not data.folds:
        return Fitness(found)
    both = np.concatenate([unfit(data.train.images), unfit(data.calibration.images)])
    outside = {name: unfit(images) for name, images in ood.items()}
    return Fitness(found, both[data.folds.fold >= 0], outside)


def judge(train: Images, target: Input) -> tuple[Limits, Callable[[Images], Flags]]:
    """The limits of a model with that input that learnt from `train`, and what tells which images are unfit by them,
    bool [N]; all as pixels."""
    spacing = spacing_of(train, target)
    found = limits(train, min(target.height_px, target.width_px), spacing)
    return found, lambda images: below(found, quality(images, spacing=spacing), shorter_sides(images))


def quality(images: Images, rows: NDArray[np.int64] | None = None, spacing: int = 1) -> NDArray[np.float32]:
    """The MEASURES [n, 3] of images as pixels, by the operations that the graph has."""
    rows = np.arange(len(images)) if rows is None else rows
    measure = measurer(images.shape[1], images.shape[2], spacing)
    parts = [measure(np.ascontiguousarray(images[rows[s : s + BATCH_IMAGES]]))
             for s in range(0, len(rows), BATCH_IMAGES)]  # fmt: skip
    return np.concatenate(parts) if parts else np.empty((0, len(MEASURES)), np.float32)


def below(limits: Limits, quality: NDArray[np.float32], sides: NDArray[np.int64]) -> Flags:
    """Limits.broken of each image, bool [N]."""
    least = np.array([getattr(limits, name) for name in MEASURES])
    return np.asarray((quality < least).any(axis=1) | (sides < limits.side_px))


def shorter_sides(images: Images) -> NDArray[np.int64]:
    """Of the uploads [N], in pixels; of files by their headers."""
    source = images.source if isinstance(images, Fitted) else images
    if isinstance(source, np.ndarray):
        return np.full(len(source), min(source.shape[1:3]), np.int64)
    return np.array([_shorter_side(path) for path in source], np.int64)


def _shorter_side(path: str) -> int:
    if path.lower().endswith((".heic", ".heif")):
        heif.register()
    with Image.open(path) as image:
        return min(image.size)


def unfit_of(fitness: Fitness | None, outputs: Outputs | None, images: Images) -> Flags:
    """Which of these images are unfit: none where the graph does not measure them."""
    if fitness is None or outputs is None or outputs.quality is None:
        return np.zeros(0 if outputs is None else len(outputs.predictions), bool)
    return fitness.unfit(outputs.quality, images)
