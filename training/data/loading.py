"""What a run trains on: the images that its settings name, read, cut and split."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from service.contract.bundle import require_class_names
from training.config import Config
from training.data import folders, readers
from training.data.choice import PARTS, Choice, Part
from training.data.folders import Unlabelled
from training.data.readers import DataError, ImageSet, Keys, Pixels
from training.data.splits import calibration_split, held_back, long_tail_cut


@dataclass(frozen=True)
class Data:
    """Everything a run sees. `ood` is filled for digits only; other OOD sets are named at evaluation.

    `choice` says which images are on which side; `notes` are sentences for a person: what was left out, and why.
    """

    train: ImageSet
    calibration: ImageSet
    test: ImageSet
    outliers: Pixels
    calibration_outliers: Pixels
    ood: dict[str, Pixels]
    size_px: int
    padding_px: int
    flip: bool
    choice: Choice = field(default_factory=lambda: Choice({}))
    notes: tuple[str, ...] = ()


def load(config: Config, run: Path | None = None) -> Data:
    """Read, cut and split what `config` names; DataError with a remedy where that is not possible.

    With the folder of a `run` the sides are those that it has written down (choice.py): images that came since are left
    out, and DataError says so where one is no longer there.
    """
    train, test, outliers, ood, size, notes = _read(config)
    try:
        require_class_names(train.classes)
    except ValueError as error:
        raise DataError(str(error)) from error
    for part, images in (("training", train), ("test", test)):
        if empty := [name for name, n in zip(images.classes, images.counts, strict=True) if n == 0]:
            raise DataError(f"no {part} image of class {', '.join(empty[:5])}: every class needs at least one")
    if run is None:
        if config.imbalance is not None:
            train = long_tail_cut(train, config.imbalance)
        train, calibration = calibration_split(train, config.calibration_fraction)
        held = held_back(outliers.keys, None, config.calibration_fraction)
        outside, held_outside = np.flatnonzero(~held), np.flatnonzero(held)
        choice = _choice(train, calibration, outliers.keys[outside], outliers.keys[held_outside])
    else:
        choice = Choice.read(run)
        inside, held_inside, new = choice.find(train.keys, ("train", "calibration"))
        outside, held_outside, more = choice.find(outliers.keys, ("outliers", "calibration_outliers"))
        train, calibration = train.take(inside), train.take(held_inside)
        if (new and config.imbalance is None) or more:
            notes.append(f"{new} images and {more} outliers have come since the run began: they are left out")
    is_digits = config.dataset == "digits"
    return Data(
        train, calibration, test, outliers.pixels[outside], outliers.pixels[held_outside], ood, size,
        max(1, size // 8), not is_digits, choice, tuple(notes),
    )  # fmt: skip


def _read(config: Config) -> tuple[ImageSet, ImageSet, Unlabelled, dict[str, Pixels], int, list[str]]:
    """(train, test, outliers, OOD sets, side in pixels, notes) as they lie on the disk."""
    ood: dict[str, Pixels] = {}
    size, notes = 32, list[str]()
    outliers = Unlabelled(np.empty((0, size, size, 3), np.uint8), np.empty(0, np.uint64))
    if config.dataset == "digits":
        train, test, eights, nines = readers.digits()
        outliers, ood, size = Unlabelled(eights, readers.pixel_keys(eights)), {"nine": nines}, 16
    elif config.data is None:
        raise DataError(f"--dataset {config.dataset} needs --data DIR")
    elif config.dataset == "folder":
        size = config.image_size_px or size
        train, test = folders.class_folders(config.data, size, notes=notes)
    else:
        train, test = readers.cifar(config.data, hundred=config.dataset == "cifar100")
    if config.outliers is not None:
        outliers = folders.unlabelled(config.outliers, size, notes=notes)
    return train, test, outliers, ood, size, notes


def _choice(train: ImageSet, calibration: ImageSet, outliers: Keys, calibration_outliers: Keys) -> Choice:
    def labelled(images: ImageSet) -> Part:
        return Part(images.keys, [images.classes[label] for label in images.labels])

    parts = (labelled(train), labelled(calibration), Part(outliers, []), Part(calibration_outliers, []))
    return Choice(dict(zip(PARTS, parts, strict=True)))


def ood_sets(paths: list[Path], size_px: int) -> dict[str, Pixels]:
    """OOD test sets by name (the file's stem): files or folders; a folder of arrays gives one set per array."""
    sets: dict[str, Pixels] = {}
    for path in paths:
        arrays = sorted(p for p in path.glob("*.np[yz]")) if path.is_dir() else []
        for one in arrays or [path]:
            if one.stem in sets:
                raise DataError(f"two OOD sets are called {one.stem!r}: rename one of {path}")
            sets[one.stem] = folders.unlabelled(one, size_px).pixels
    return sets
