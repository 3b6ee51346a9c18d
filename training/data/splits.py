"""The long-tail cut, the calibration split, and which classes are the tail."""

import numpy as np
from numpy.typing import NDArray

from training.data.readers import DataError, ImageSet

SPLIT_SEED = 0  # one split for all seeds of a comparison


def long_tail_counts(num_classes: int, largest: int, imbalance: float) -> list[int]:
    """Images per class, head to tail: floor(largest · (1/imbalance)^(c/(C−1))) (Cao et al. 2019, REFERENCE A2)."""
    if num_classes < 1 or largest < 1 or imbalance < 1:
        raise ValueError(
            f"num_classes and largest must be at least 1 and imbalance at least 1, "
            f"not {num_classes}, {largest}, {imbalance}"
        )
    share = [(1 / imbalance) ** (c / max(num_classes - 1, 1)) for c in range(num_classes)]
    # the margin keeps 500 · 0.01 from becoming 4 where the product falls a rounding below 5
    return [int(largest * s + 1e-9) for s in share]


def long_tail_cut(images: ImageSet, imbalance: float) -> ImageSet:
    """The first n_c images of each class in their order. DataError where a class has too few for its place."""
    available = images.counts
    wanted = long_tail_counts(len(images.classes), int(available.max()), imbalance)
    for name, want, have in zip(images.classes, wanted, available, strict=True):
        if want > have:
            raise DataError(
                f"imbalance {imbalance:g} asks for {want} images of class {name!r}, which has {have}: "
                "use a larger imbalance, or leave it out to take the data as they are"
            )
        if want == 0:
            raise DataError(f"imbalance {imbalance:g} leaves class {name!r} without an image: use a smaller one")
    keep = [np.flatnonzero(images.labels == c)[:n] for c, n in enumerate(wanted)]
    return images.take(np.sort(np.concatenate(keep)))


def calibration_split(images: ImageSet, fraction: float) -> tuple[ImageSet, ImageSet]:
    """(rest, calibration): a stratified random share, at least 1 image of each class that has 5 or more."""
    random = np.random.default_rng(SPLIT_SEED)
    chosen = []
    for c in range(len(images.classes)):
        members = random.permutation(np.flatnonzero(images.labels == c))
        n = round(fraction * len(members))
        n = max(n, 1) if len(members) >= 5 and fraction > 0 else min(n, max(len(members) - 1, 0))
        chosen.append(members[:n])
    calibration = np.sort(np.concatenate(chosen))
    rest = np.setdiff1d(np.arange(len(images.labels)), calibration)
    return images.take(rest), images.take(calibration)


def tail_classes(counts: NDArray[np.int64], fraction: float) -> NDArray[np.bool_]:
    """bool [C]: the rarest `fraction` of the classes, C − round((1 − k)·C) of them; ties by class order (A5)."""
    order = np.argsort(-counts, kind="stable")
    tail = np.zeros(len(counts), bool)
    tail[order[round((1 - fraction) * len(counts)) :]] = True
    return tail
