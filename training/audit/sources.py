"""What `audit` looks at: the images of a data set, its outliers and OOD sets, with all that cannot be read.

Unlike training, which may stop at the first fault, this goes on and lists them all. Pixels are the same.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from service.contract import files
from training.audit.duplicates import ImagePart
from training.data import folders, lists, readers
from training.data.decode import Unreadable
from training.data.grouping import group, parted_notes
from training.data.listing import Listing
from training.data.photographs import read_parts
from training.data.readers import DataError, ImageSet, Labels
from training.data.scan import Header, Scan, scan
from training.data.splits import long_tail_rows
from training.data.thumbnails import GRID

DatasetKind = Literal["cifar10", "cifar100", "folder", "digits"]
KINDS: tuple[DatasetKind, ...] = ("cifar10", "cifar100", "folder", "digits")
PHOTOGRAPHS = ("cifar10", "cifar100", "folder")  # kinds whose images a backbone pretrained on photographs suits


@dataclass(frozen=True)
class Source:
    """A part's images, the headers of its files (none for arrays), the files that cannot be read and why.

    `paths` are those of the files that can be read; `notes` say what was left out of a folder
    (service.contract.files).
    """

    part: ImagePart
    headers: list[Header] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Sources:
    """A data set: its kind, its class names in the order training gives them, and its parts by name."""

    kind: DatasetKind
    classes: tuple[str, ...]
    splits: dict[str, Source]
    outliers: Source | None
    ood: list[Source]
    notes: list[str]
    ood_paths: tuple[Path, ...] = ()  # the files and folders of `ood`


def read(
    data: Path | None, *, dataset: str | None, imbalance: float | None, outliers: Path | None, ood: Sequence[Path],
    size_px: int, class_level: int | None = None, group_by: str = "near",
) -> Sources:  # fmt: skip
    """Everything there is to look at. DataError where there is no data set; single faulty files are only listed."""
    if size_px < GRID:
        raise DataError(f"size_px {size_px} is too small to compare images: give at least {GRID}")
    kind = find_kind(data, dataset)
    notes: list[str] = []
    if kind == "digits" or data is None:
        return _of_digits(kind, imbalance)
    if kind == "folder":
        classes, splits, notes = _photographs(data, size_px, imbalance, class_level, group_by)
    else:
        size_px = 32
        train, test = readers.cifar(data, hundred=kind == "cifar100")
        if imbalance is not None:
            train = train.take(long_tail_rows(train.labels, train.classes, imbalance))
        classes, splits = train.classes, {"train": _of_array("train", train), "test": _of_array("test", test)}
    if not len(splits["train"].part.pixels):
        first, *others = splits["train"].unreadable
        raise DataError(f"{data}: no training image can be read: {first.path} ({first.reason}), nor {len(others)} more")
    if kind == "folder" and data.is_dir():  # what lies beside train and test is meant for it
        outliers = outliers or next((p for p in [data / "outliers"] if p.is_dir()), None)
        ood = ood or _subfolders(data / "ood") or [p for p in [data / "ood"] if p.is_dir()]
    sets = folders.set_places(ood)
    return Sources(
        kind, classes, splits,
        _unlabelled("outliers", outliers, size_px) if outliers else None,
        [_unlabelled(f"ood/{name}", p, size_px) for name, p in sets.items()], notes, tuple(sets.values()),
    )  # fmt: skip


def _of_digits(kind: DatasetKind, imbalance: float | None) -> Sources:
    train, test, eights, nines = readers.digits()
    if imbalance is not None:
        train = train.take(long_tail_rows(train.labels, train.classes, imbalance))
    unlabelled = {
        name: Source(ImagePart(name, pixels, [f"{name}/{i}" for i in range(len(pixels))]))
        for name, pixels in (("outliers", eights), ("ood/nine", nines))
    }
    splits = {"train": _of_array("train", train), "test": _of_array("test", test)}
    return Sources(kind, train.classes, splits, unlabelled["outliers"], [unlabelled["ood/nine"]], [])


def find_kind(data: Path | None, dataset: str | None) -> DatasetKind:
    """The kind of data set at `data`, or `dataset` where it is named. DataError says what was looked for."""
    if dataset is not None:
        if dataset not in KINDS:
            raise DataError(f"dataset {dataset!r} cannot be audited: name one of {', '.join(KINDS)}, or none to detect")
        if data is None and dataset != "digits":
            raise DataError(f"dataset {dataset} needs its folder: give DIR")
        return next(k for k in KINDS if k == dataset)
    if data is None:
        raise DataError("name the folder that holds the data set or a list of images, or give --dataset digits")
    if lists.is_list(data):
        return "folder"
    if not data.is_dir():
        raise DataError(f"{data} is not a folder: name the folder that holds the data set, or a list of images")
    marks: dict[DatasetKind, bool] = {
        "cifar10": (data / "batches.meta").is_file() or (data / "cifar-10-batches-py").is_dir(),
        "cifar100": (data / "meta").is_file() or (data / "cifar-100-python").is_dir(),
        "folder": folders.has_parts(data),  # CIFAR-100 calls a file so
    }
    found = [kind for kind, there in marks.items() if there]
    if len(found) > 1:
        raise DataError(f"{data} holds {' and '.join(found)}: choose one with --dataset")
    if not found and any(files.find(folder).paths for folder in _subfolders(data) if folder.name not in folders.BESIDE):
        return "folder"  # class folders without train/
    if not found:
        raise DataError(
            f"{data} is no data set: looked for train/<class>/ or <class>/ folders of images, for CIFAR-10's "
            "batches.meta or cifar-10-batches-py/, and for CIFAR-100's meta or cifar-100-python/"
        )
    return found[0]


def _photographs(
    data: Path, size_px: int, imbalance: float | None, class_level: int | None, group_by: str
) -> tuple[tuple[str, ...], dict[str, Source], list[str]]:
    parts = read_parts(data, class_level=class_level)
    notes = list(parts.notes)
    if "test" not in parts.parts:
        notes.append(
            "there is no test part: on a frozen backbone figures are cross-fitted and nothing is taken away, else "
            "`train` takes --test-fraction of each class"
        )
    splits: dict[str, Source] = {}
    for name in ("train", "val", "test"):
        if name not in parts.parts:
            continue
        listing = parts.parts[name]
        found = scan(listing.paths, size_px=size_px, title=f"read {name}")
        listing = listing.take(found.index)
        if name == "train" and imbalance is not None:
            kept = long_tail_rows(listing.labels, listing.classes, imbalance)
            listing, found = listing.take(kept), found.take(kept)
        if name == "train" and len(listing.paths):
            notes.append(f"train is {group(listing, group_by, found.keys, found.small).note()}")
            notes += parted_notes(parts.parts, group_by)
        splits[name] = _of_files(name, data, listing, found, labelled=True)
    return parts.parts["train"].classes, splits, notes


def _of_files(name: str, root: Path, listing: Listing, found: Scan, *, labelled: bool) -> Source:
    names = [_short(path, name, root) for path in listing.paths]
    part = ImagePart(name, found.small, names, listing.labels if labelled else None)
    return Source(part, found.headers, found.unreadable, paths=listing.paths)


def _unlabelled(name: str, path: Path, size_px: int) -> Source:
    notes: list[str] = []
    paths = lists.outliers(path) if lists.is_list(path) else []
    if path.is_dir():
        paths = [str(p) for p in folders.image_files(path, notes)]
    if paths:
        found = scan(paths, size_px=size_px, title=f"read {name}")
        listing = Listing.unlabelled(paths).take(found.index)
        return replace(_of_files(name, path, listing, found, labelled=False), notes=notes)
    pixels = folders.unlabelled_pixels(path, size_px)
    return Source(ImagePart(name, pixels, [f"{name}/{i}" for i in range(len(pixels))]))


def _short(path: str, name: str, root: Path) -> str:
    """The path from the part's name on: ood/sea/1.png of /data/plankton/ood/sea/1.png; else relative to `root`."""
    parts, wanted = Path(path).parts, tuple(name.split("/"))
    starts = [i for i in range(len(parts)) if parts[i : i + len(wanted)] == wanted]
    return "/".join(parts[starts[-1] :]) if starts else os.path.relpath(path, root if root.is_dir() else root.parent)


def _of_array(name: str, images: ImageSet) -> Source:
    names = [f"{name}/{images.classes[c]}/{n}" for c, n in zip(images.labels, _ranks(images.labels), strict=True)]
    return Source(ImagePart(name, images.images, names, images.labels))


def _ranks(labels: Labels) -> Labels:
    """[N]: how many earlier images have the same label."""
    ranks = np.empty_like(labels)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        ranks[members] = np.arange(len(members))
    return ranks


def _subfolders(folder: Path) -> list[Path]:
    """The folders in it, by name; none where it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not files.is_hidden(p.name))
