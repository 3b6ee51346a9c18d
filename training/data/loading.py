"""What a run trains on: the images that its settings name, read, grouped and split.

    load(config)                  every image as pixels, for a network that is trained on them
    load(config, target=...)      images that are decoded and brought to a backbone's size when they are asked for

With the folder of a run its written choice says which image is on which side.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from service.contract.bundle import Input
from training.config import Config
from training.data import folders, overlaps, photographs, readers, taxonomy
from training.data.choice import Choice, Part
from training.data.decode import resized, square
from training.data.fitted import Fitted
from training.data.folders import OnUnreadable
from training.data.listing import Listing
from training.data.photographs import CACHE, Source, came_since
from training.data.pixels import pixel_array
from training.data.readers import DataError, Images, ImageSet, Keys, Pixels
from training.data.scan import scan
from training.data.splits import calibration_split, held_back, long_tail_cut
from training.data.taxonomy import Taxonomy


@dataclass(frozen=True)
class Data:
    """Everything a run sees. `ood` is filled for digits only; other OOD sets are named at evaluation.

    `choice` says which images are on which side; `notes` are sentences for a person: what was left out, and why.
    """

    train: ImageSet
    calibration: ImageSet
    test: ImageSet
    outliers: Images
    calibration_outliers: Images
    ood: Mapping[str, Images]
    size_px: int
    padding_px: int
    flip: bool
    choice: Choice = field(default_factory=lambda: Choice({}))
    notes: tuple[str, ...] = ()
    photographs: "Data | None" = None  # the images themselves, where a frozen backbone's features stand in their place
    taxonomy: Taxonomy | None = None
    validated: bool = False  # calibrated on a part of its own, val, of which no training image was taken
    folds: Any = None  # evaluation.cross_fit.CrossFit, where figures or thresholds come from it


def load(config: Config, run: Path | None = None, cache: Path | None = None, *, target: Input | None = None) -> Data:
    """Read, cut and split what `config` names; DataError with a remedy where that is not possible.

    With the folder of a `run` the sides are those that it has written down (choice.py): images that came since are left
    out, and DataError says so where one is no longer there. `cache` is a folder for what is read of photographs, so
    that the next command need not read it again; not given: the one in the run. `target` is how a backbone wants
    images: they are Fitted then, and not pixels.
    """
    if config.dataset == "folder":
        return _load_photographs(config, run, cache, target)
    ood: dict[str, Pixels] = {}
    size, notes = 32, list[str]()
    outliers = np.empty((0, size, size, 3), np.uint8)
    if config.dataset == "digits":
        train, test, eights, nines = readers.digits()
        outliers, ood, size = eights, {"nine": nines}, 16
    else:
        if config.data is None:
            raise DataError(f"--dataset {config.dataset} needs --data DIR")
        train, test = readers.cifar(config.data, hundred=config.dataset == "cifar100")
    for part, images in (("training", train), ("test", test)):
        if empty := [name for name, n in zip(images.classes, images.counts, strict=True) if n == 0]:
            raise DataError(f"no {part} image of class {', '.join(empty[:5])}: every class needs at least one")
    if config.outliers is not None:
        outliers = folders.unlabelled_pixels(config.outliers, size, notes, unreadable=config.unreadable)
    keys = readers.pixel_keys(outliers)
    if run is None:
        if config.imbalance is not None:
            train = long_tail_cut(train, config.imbalance)
        train, calibration = calibration_split(train, config.calibration_fraction)
        held = held_back(keys, None, config.calibration_fraction)
        kept, out = np.flatnonzero(~held), np.flatnonzero(held)
        choice = Choice({
            "train": _part(train), "calibration": _part(calibration), "outliers": Part(keys[kept], []),
            "calibration_outliers": Part(keys[out], []),
        })  # fmt: skip
    else:
        choice = Choice.read(run)
        (inside, held_inside), new = choice.find(train.keys, "train", "calibration")
        (kept, out), more = choice.find(keys, "outliers", "calibration_outliers")
        train, calibration = train.take(inside), train.take(held_inside)
        notes += came_since(0 if config.imbalance else new, more)
    found = Data(
        train, calibration, test, outliers[kept], outliers[out], ood, size, max(1, size // 8),
        has_mirrors(config), choice, notes=tuple(notes), taxonomy=taxonomy.recorded(run),
    )  # fmt: skip
    return _all_fitted(found, target) if target else found


def has_mirrors(config: Config) -> bool:
    """Whether a mirror image shows the same class; a digit's does not."""
    return config.dataset != "digits"


def with_taxonomy(data: Data, config: Config) -> Data:
    """`data` with the tree of the file that `config` names, if it names one. DataError where that does not do."""
    return replace(data, taxonomy=taxonomy.read(config.taxonomy, data.train.classes)) if config.taxonomy else data


def fitted(pixels: Pixels, target: Input) -> Fitted:
    """An array whose images are brought to `target` when they are asked for."""
    return Fitted(pixels, readers.pixel_keys(pixels), target)


def _all_fitted(data: Data, target: Input) -> Data:
    def side(images: ImageSet) -> ImageSet:
        return replace(images, images=Fitted(images.images, images.keys, target), file_keys=images.keys)

    return replace(
        data, train=side(data.train), calibration=side(data.calibration), test=side(data.test),
        outliers=fitted(data.outliers, target), calibration_outliers=fitted(data.calibration_outliers, target),
        ood={name: fitted(pixels, target) for name, pixels in data.ood.items()},
    )  # fmt: skip


def _part(images: ImageSet) -> Part:
    return Part(images.keys, [images.classes[label] for label in images.labels])


def ood_sets(
    paths: list[Path], size_px: int, *, target: Input | None = None, unreadable: OnUnreadable = "skip",
    notes: list[str] | None = None, cache: Path | None = None,
) -> dict[str, Images]:  # fmt: skip
    """OOD test sets by name (folders.set_name): files or folders; a folder of arrays gives one set per array.

    Pixels, or Fitted with a `target`. What is `unreadable` in a folder is said in `notes`; `cache` is a folder that
    keeps which files can be read.
    """
    sets: dict[str, Images] = {}
    for name, one in folders.set_places(paths).items():
        if target and one.is_dir():
            sets[name] = _fitted_folder(one, target, unreadable, notes, cache)
        else:
            pixels = folders.unlabelled_pixels(one, size_px, notes, unreadable=unreadable)
            sets[name] = fitted(pixels, target) if target else pixels
    return sets


def with_ood_sets(data: Data, paths: list[Path], config: Config, run: Path, target: Input | None) -> Data:
    """`data` with these OOD sets beside its own, and what was left out of them in its notes."""
    notes = list(data.notes)
    sets = ood_sets(
        paths, data.size_px, target=target, unreadable=config.unreadable, notes=notes, cache=run / CACHE
    )  # fmt: skip
    for name, images in sets.items():
        if isinstance(images, Fitted):  # its images are known by what the run's are
            notes += overlaps.ood_notes(name, images.keys, data.choice.parts)
    return replace(data, ood={**data.ood, **sets}, notes=tuple(notes))


def _fitted_folder(
    path: Path, target: Input, unreadable: OnUnreadable, notes: list[str] | None, cache: Path | None
) -> Fitted:
    files = folders.unlabelled_files(path, notes)
    seen = scan(files, cache=cache / f"scan-{folders.set_name(path)}.npz" if cache else None, title=f"read {path.name}")
    folders.require_readable(path, seen.unreadable, len(files), unreadable, notes)
    return Fitted([files[i] for i in seen.index.tolist()], seen.keys, target, checked=True)


def _load_photographs(config: Config, run: Path | None, cache: Path | None, target: Input | None) -> Data:
    size = config.image_size_px or 32
    found = photographs.list_files(config, run, cache)
    cache = cache or (run / CACHE if run else None)

    def labelled(listing: Listing, keys: Keys) -> ImageSet:
        return ImageSet(unlabelled(listing, keys), listing.labels, listing.classes, keys)

    def unlabelled(source: Source, keys: Keys) -> Images:
        if target:
            return Fitted(source.paths if isinstance(source, Listing) else source, keys, target, checked=True)
        if isinstance(source, Listing):
            return pixel_array(source.paths, keys, size, cache)
        return resized(source, square(size))

    return Data(
        labelled(found.train, found.keys["train"]), labelled(found.calibration, found.keys["calibration"]),
        labelled(found.test, found.keys["test"]), unlabelled(found.outliers, found.keys["outliers"]),
        unlabelled(found.calibration_outliers, found.keys["calibration_outliers"]), {}, size, max(1, size // 8), True,
        found.choice, found.notes, taxonomy=taxonomy.recorded(run) or taxonomy.find(found.train),
        validated=found.validated,
    )  # fmt: skip
