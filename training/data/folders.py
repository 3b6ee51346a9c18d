"""Folders of image files, to listings:

    DIR/train/<class>/*, DIR/test/<class>/* and perhaps DIR/val/<class>/*
    DIR/<class>/*                                   (then training makes the test part itself)
    DIR/train/Fruit/Apple/Granny-Smith/*            the folders in which images lie are the classes, with their path

Files are found by content (service.contract.files); class names are compared in Unicode's form NFC.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from service.contract import files
from service.contract.files import ImageFiles
from training.data.decode import Unreadable, decode, resized, square
from training.data.listing import Labelled, Parts, by_frequency, some
from training.data.readers import DataError, Pixels, array
from training.layout import several

PARTS = ("train", "val", "test")
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
               "testing": "test"}  # as others write them; a list may say them so  # fmt: skip
OnUnreadable = Literal["skip", "stop"]
BESIDE = ("outliers", "ood")  # folders beside the classes that hold none


def image_files(folder: Path, notes: list[str] | None = None) -> list[Path]:
    """Every image file below `folder` in the order of names; what is left out goes into `notes`."""
    found = files.find(folder)
    if notes is not None:
        notes += found.notes(folder)
    return [Path(path) for path in found.paths]


def has_parts(folder: Path) -> bool:
    """Whether it holds train/<class> rather than <class>."""
    return (folder / "train").is_dir()


def read_folders(folder: Path, *, class_level: int | None = None) -> Parts:
    """The parts of a folder. DataError where it holds no class folder.

    `class_level`: how many folders name a class at most (1: those directly below train); not given: down to the images.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: name the folder that holds the images of each class in a folder")
    parted = has_parts(folder)
    if not parted and (lone := next((part for part in ("test", "val") if (folder / part).is_dir()), None)):
        raise DataError(f"{folder / 'train'} is missing: beside {lone}/ the images to train on are in train/<class>/")
    beside = _beside(folder, parted)
    roots = {part: folder / part for part in PARTS if (folder / part).is_dir()} if parted else {"train": folder}
    found = {part: _find_classes(root, () if parted else BESIDE) for part, root in roots.items()}
    notes = [note for part, (total, _, _) in found.items() for note in total.notes(roots[part])]
    if beside:
        notes.append(f"{folder}: left out {some(beside)} beside train/: the parts are {', '.join(PARTS)}")
    empty = [name for _, _, names in found.values() for name in names]
    if empty and not parted:
        notes.append(f"{folder}: left out {several(len(empty), 'folder')} without images ({', '.join(empty[:5])})")
    holders = {where for _, places, _ in found.values() for _, where in places}
    labelled: Labelled = {}
    for part, (_, places, _) in found.items():
        labelled[part] = [(path, _class_of(where, holders, class_level)) for path, where in places if where]
        if loose := len(places) - len(labelled[part]):
            notes.append(f"{roots[part]}: left out {loose} images outside of any class folder")
    if class_level is None:
        notes += _merged_notes(
            folder, (where for _, places, _ in found.values() for _, where in places if where), holders
        )
    if not labelled["train"]:
        raise DataError(f"{roots['train']} has no class folder with images: put those of each class into a folder")
    for part in [name for name, rows in labelled.items() if not rows]:
        notes.append(f"{roots[part]}: no image lies in a class folder there, so it counts as missing")
        del labelled[part]
    if nested := sorted({name for rows in labelled.values() for _, name in rows if "/" in name}):
        notes.append(
            f"{folder}: {len(nested)} classes are nested folders ({nested[0]}): --class-level 1 takes the first folder"
        )
    return Parts(by_frequency(labelled, more=empty if parted else ()), notes)


def _beside(folder: Path, parted: bool) -> list[str]:
    """The folders beside the parts that are none. DataError for what is one by another name: Train, valid."""
    entries = [e for e in sorted(folder.iterdir()) if e.is_dir() and not files.is_hidden(e.name)]
    for entry in entries:
        part = folder / SPLIT_NAMES.get(entry.name.lower(), entry.name)
        if entry.name in PARTS or part == entry or (part.exists() and part.samefile(entry)):
            continue  # the last: a disk that takes Train and train for one
        if parted or any(e.is_dir() for e in entry.iterdir()):  # else it may be a class of that name
            raise DataError(f"{entry} is no part by its name: rename it to {part.name}, or move it away")
    return [e.name for e in entries if parted and e.name not in (*PARTS, *BESIDE) and e.name.lower() not in SPLIT_NAMES]


Where = tuple[str, ...]  # the folders between the root of a part and an image, in form NFC and without outer blanks


def _find_classes(root: Path, beside: Iterable[str]) -> tuple[ImageFiles, list[tuple[str, Where]], list[str]]:
    """(what was found, the images with their folders, the names of the first folders without an image)."""
    total = ImageFiles([], Counter(), 0, [])
    places: list[tuple[str, Where]] = []
    empty = []
    for entry in sorted(root.iterdir()):
        if files.is_hidden(entry.name):
            total = total + ImageFiles([], Counter(), 1, [])
        elif entry.is_dir() and entry.name not in beside:
            found = files.find(entry)
            total = total + found
            places += [(path, _folders_of(path, root)) for path in found.paths]
            empty += [] if found.paths else [_class_name(entry.name)]
        elif entry.is_file() and entry.suffix.lower() in files.SUFFIXES:
            places.append((str(entry), ()))
    return total, places, empty


def _class_name(folder: str) -> str:
    """As a list has it, whose labels have no outer blanks: learn writes what it read here into one."""
    name = unicodedata.normalize("NFC", folder)
    return name.strip() or name


def _folders_of(path: str, root: Path) -> Where:
    return tuple(map(_class_name, os.path.relpath(os.path.dirname(path), root).split(os.sep)))


def _class_of(where: Where, holders: set[Where], level: int | None) -> str:
    """The folders down to the first that holds images itself, at most `level` of them."""
    depth = _depth(where, holders)
    return "/".join(where[: min(level or depth, depth)])


def _merged_notes(folder: Path, everywhere: Iterable[Where], holders: set[Where]) -> list[str]:
    """One image in Fruit/ makes a class of Fruit/Apple and Fruit/Pear, which a person may have meant for two."""
    below = sorted({"/".join(where) for where in everywhere if _depth(where, holders) < len(where)})
    if not below:
        return []
    return [f"{folder}: {several(len(below), 'folder')} in a folder that holds images itself ({some(below)}), so what "
            "is there is of the class of that folder: move its own images away if they are classes"]  # fmt: skip


def _depth(where: Where, holders: set[Where]) -> int:
    """How many folders it is to the first that holds images itself."""
    return next(n for n in range(1, len(where) + 1) if where[:n] in holders)


def unlabelled_pixels(
    path: Path, size_px: int, notes: list[str] | None = None, *, unreadable: OnUnreadable = "stop"
) -> Pixels:
    """A .npy or .npz array, or every image of a folder, as uint8 [N, size_px, size_px, 3].

    `unreadable` "skip" leaves files out that cannot be read, and says so in `notes`. DataError where nothing is left.
    """
    if not path.is_dir():
        return resized(array(path), square(size_px))
    paths = unlabelled_files(path, notes)
    pixels, count = np.empty((len(paths), size_px, size_px, 3), np.uint8), 0
    failures: list[Unreadable] = []
    for batch in decode(paths, square(size_px), failures=failures, title=f"read {path.name}"):
        pixels[count : count + len(batch.pixels)] = batch.pixels
        count += len(batch.pixels)
    require_readable(path, failures, len(paths), unreadable, notes)
    return pixels[:count]


def set_name(path: Path) -> str:
    """What a set of images is called: an array without its suffix, a folder, which has none, by its whole name."""
    return Path(os.path.abspath(path)).name if path.is_dir() else path.stem  # of "." too


def set_places(paths: Iterable[Path]) -> dict[str, Path]:
    """The sets at these places by name; a folder of arrays is a set for each. DataError where two have one name."""
    found: dict[str, Path] = {}
    for path in paths:
        arrays = sorted(path.glob("*.np[yz]")) if path.is_dir() else []
        for one in arrays or [path]:
            if (other := found.setdefault(set_name(one), one)) is not one:
                raise DataError(f"two OOD sets are called {set_name(one)!r}, {other} and {one}: rename one of them")
    return found


def unlabelled_files(path: Path, notes: list[str] | None = None) -> list[str]:
    """The image files of a folder. DataError where it holds none."""
    found = [str(p) for p in image_files(path, notes)]
    if not found:
        raise DataError(f"{path} holds no image: name a folder of images, or a .npy or .npz array")
    return found


def require_readable(
    path: Path, bad: list[Unreadable], files: int, unreadable: OnUnreadable, notes: list[str] | None
) -> None:
    """Say in `notes` which of so many `files` of a folder cannot be read.

    DataError where none can, or where one cannot and `unreadable` is "stop".
    """
    if bad and (unreadable == "stop" or len(bad) == files):
        raise DataError(f"{bad[0].path} cannot be read as an image ({bad[0].reason}): mend or remove it")
    if notes is not None:
        notes += unreadable_notes(bad)


def unreadable_notes(bad: list[Unreadable]) -> list[str]:
    """The count, and the first of them with their reasons."""
    if not bad:
        return []
    shown = some([f"{one.path} ({one.reason})" for one in bad], "; ")
    return [f"left out {several(len(bad), 'unreadable file')}: {shown}"]
