"""What a run trains on: the images that its settings name, read, cut and split."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.config import Config
from training.data import readers
from training.data.readers import DataError, ImageSet, Pixels
from training.data.splits import SPLIT_SEED, calibration_split, long_tail_cut


@dataclass(frozen=True)
class Data:
    """Everything a run sees. `ood` is filled for digits only; other OOD sets are named at evaluation."""

    train: ImageSet
    calibration: ImageSet
    test: ImageSet
    outliers: Pixels
    calibration_outliers: Pixels
    ood: dict[str, Pixels]
    size_px: int
    padding_px: int
    flip: bool


def load(config: Config) -> Data:
    """Read, cut and split what `config` names. Raises DataError with a remedy."""
    outliers, ood, size = None, {}, 32
    if config.dataset == "digits":
        train, test, outliers, novel = readers.digits()
        ood, size = {"nine": novel}, 16
    else:
        if config.data is None:
            raise DataError(f"--dataset {config.dataset} needs --data DIR")
        if config.dataset == "folder":
            size = config.image_size_px or 32
            train, test = readers.class_folders(config.data, size)
        else:
            train, test = readers.cifar(config.data, hundred=config.dataset == "cifar100")
    for part, images in (("training", train), ("test", test)):
        if empty := [name for name, n in zip(images.classes, images.counts, strict=True) if n == 0]:
            raise DataError(f"no {part} image of class {', '.join(empty[:5])}: every class needs at least one")
    if config.imbalance is not None:
        train = long_tail_cut(train, config.imbalance)
    train, calibration = calibration_split(train, config.calibration_fraction)
    if config.outliers is not None:
        outliers = readers.array_or_folder(config.outliers, size)
    if outliers is None:
        outliers = np.empty((0, size, size, 3), np.uint8)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(outliers))
    held = order[: round(config.calibration_fraction * len(outliers))]
    kept = np.sort(order[len(held) :])
    is_digits = config.dataset == "digits"
    return Data(
        train, calibration, test, outliers[kept], outliers[np.sort(held)], ood, size, max(1, size // 8), not is_digits
    )


def ood_sets(paths: list[Path], size_px: int) -> dict[str, Pixels]:
    """OOD test sets by name (the file's stem): files or folders; a folder of arrays gives one set per array."""
    sets: dict[str, Pixels] = {}
    for path in paths:
        arrays = sorted(p for p in path.glob("*.np[yz]")) if path.is_dir() else []
        for one in arrays or [path]:
            if one.stem in sets:
                raise DataError(f"two OOD sets are called {one.stem!r}: rename one of {path}")
            sets[one.stem] = readers.array_or_folder(one, size_px)
    return sets
