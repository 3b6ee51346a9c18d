"""Photographs on disk, split, before a pixel is read at the size of a network.

    files = list_files(config, cache=run / "cache")
    for batch in iterate(files.train, target): ...        # decode.py

Read once (scan.py), grouped so that near duplicates share a side (grouping.py), split by content (splits.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.config import Config
from training.data import exported, folders, lists, overlaps, readers
from training.data.choice import Choice, Part
from training.data.decode import Unreadable
from training.data.grouping import group, parted_notes, units
from training.data.listing import Listing, Parts, alike_notes, some
from training.data.readers import DataError, Keys, Pixels
from training.data.scan import Scan, scan
from training.data.splits import held_back, long_tail_rows, salted
from training.layout import several

CACHE = "cache"  # folder in a run's
SCAN_FILE = "scan.npz"
TEST_FRACTION = 0.2  # of each class, for a network that takes too long to be trained several times
Source = Listing | Pixels  # files, or an array uint8 [N, H, W, 3]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Files:
    """The sides of a data set. `keys` are the content keys of each by its name; outliers have no classes.

    `unreadable` files are in none of them. `groups` int64 [N] are those of the training images.
    """

    train: Listing
    calibration: Listing
    test: Listing
    outliers: Source
    calibration_outliers: Source
    keys: dict[str, Keys]
    choice: Choice
    unreadable: list[Unreadable]
    notes: tuple[str, ...]
    validated: bool = False  # calibrated on images of a part of its own, val, and not on some of the training images


def list_files(config: Config, run: Path | None = None, cache: Path | None = None) -> Files:
    """The files that `config` names, on the sides that the `run` has written down, or split anew.

    `cache`: a folder that keeps the scan; not given: the run's. DataError with a remedy.
    """
    if config.data is None:
        raise DataError("--dataset folder needs --data: a folder of class folders, or a list (CSV, JSONL, Parquet)")
    cache = cache or (run / CACHE if run else None)
    found = read_parts(config.data, class_level=config.class_level)
    found.check(config.data)
    notes = list(found.notes)
    outside = _outlier_source(config.outliers, notes)
    if config.outliers is not None and config.outliers.is_dir():
        overlaps.require_apart(found.parts.values(), config.outliers, "--outliers")
    files = list(dict.fromkeys(path for part in found.parts.values() for path in part.paths))
    files += outside.paths if isinstance(outside, Listing) else []
    seen = scan(files, cache=cache / SCAN_FILE if cache else None, title="read files")
    bad = seen.unreadable
    if bad and config.unreadable == "stop":
        raise DataError(f"{bad[0].path} cannot be read as an image ({bad[0].reason}): mend or remove it")
    notes += folders.unreadable_notes(bad)
    place = {files[i]: row for row, i in enumerate(seen.index.tolist())}
    sides: dict[str, tuple[Source, Keys]]
    if run is None:
        sides, groups = _split(config, found, place, seen, notes)
        sides |= _split_outliers(config, outside, place, seen)
        choice = Choice({name: _part(source, keys, groups) for name, (source, keys) in sides.items()})
        notes += overlaps.notes(config.data, choice.parts)
    else:
        choice = Choice.read(run)
        sides = _as_chosen(choice, found, outside, place, seen, notes)
        _require_known(config.data, run, found.parts["train"].classes, choice)
    listings = {name: source for name, (source, _) in sides.items() if isinstance(source, Listing)}
    notes += missing_notes(config.data, listings["train"], listings["test"])
    return Files(
        listings["train"], listings["calibration"], listings["test"], sides["outliers"][0],
        sides["calibration_outliers"][0], {name: keys for name, (_, keys) in sides.items()}, choice, bad, tuple(notes),
        "val" in found.parts,
    )  # fmt: skip


def read_parts(data: Path, *, class_level: int | None = None) -> Parts:
    """The parts of a folder or a list, whichever `data` is."""
    if lists.is_list(data):
        found = lists.read_list(data)
    elif data.is_file():
        raise DataError(f"{data} is no list: name a folder, or a file ending in {', '.join(lists.SUFFIXES)}")
    else:
        found = folders.read_folders(data, class_level=class_level)
        found = exported.named(data, found) if class_level is None else found
        found = replace(found, notes=[*found.notes, *exported.beside_notes(data)])
    return replace(found, notes=[*found.notes, *alike_notes(data, found.parts["train"].classes)])


def missing_notes(data: Path, train: Listing, test: Listing) -> list[str]:
    """Which classes have no readable image left to train on (DataError), or none to test on."""
    if lost := [name for name, n in zip(train.classes, train.counts, strict=True) if not n]:
        raise DataError(f"{data}: no readable training image is left of class {', '.join(lost[:5])}: add some")
    untested = [name for name, n in zip(test.classes, test.counts, strict=True) if not n]
    if not untested or not len(test.labels):  # without any test image there is a note already
        return []
    count = several(len(untested), "class")
    return [f"{data}: no test image of {count}, whose accuracy is not measured: {some(untested)}"]


# ---- Splitting ----

Sides = dict[str, tuple[Source, Keys]]


def _readable(listing: Listing, place: dict[str, int]) -> tuple[Listing, Rows]:
    """What can be read of a listing, and the rows of the scan."""
    good = [i for i, path in enumerate(listing.paths) if path in place]
    kept = listing.take(np.array(good, np.int64))
    return kept, np.array([place[path] for path in kept.paths], np.int64)


def _split(
    config: Config, found: Parts, place: dict[str, int], seen: Scan, notes: list[str]
) -> tuple[Sides, dict[int, int]]:
    """The sides of the labelled images, and the group of each by its key."""
    listing, rows = _readable(found.parts["train"], place)
    if not len(rows):
        first = seen.unreadable[0]
        raise DataError(f"{config.data}: no training image can be read, {first.path} ({first.reason}) among them: "
                        "mend them, or the list that names them, from its own folder on")  # fmt: skip
    if config.imbalance is not None:
        kept = long_tail_rows(listing.labels, listing.classes, config.imbalance)
        listing, rows = listing.take(kept), rows[kept]
    keys = seen.keys[rows]
    grouped = group(listing, config.group_by, keys, seen.small[rows])
    notes += [f"{config.data}: {note}" for note in (grouped.note(), *parted_notes(found.parts, config.group_by))]
    unit, everything = units(grouped.groups, keys), np.arange(len(rows))
    test = everything[:0]
    if "test" not in found.parts:
        fraction = config.test_fraction or (0 if config.frozen else TEST_FRACTION)
        test = np.flatnonzero(held_back(salted(unit, "test"), listing.labels, fraction))
        taken = f"so {len(test)} of {len(rows)} images were taken for it" if fraction else "so figures are cross-fitted"
        notes.append(f"{config.data}: no test part, {taken}")
    rest = np.setdiff1d(everything, test)
    held = everything[:0]
    if "val" not in found.parts:
        held = rest[held_back(unit[rest], listing.labels[rest], config.calibration_fraction)]
    train = np.setdiff1d(rest, held)
    sides: Sides = {"train": (listing.take(train), keys[train])}
    for name, part, chosen in (("calibration", "val", held), ("test", "test", test)):
        if part in found.parts:
            given, given_rows = _readable(found.parts[part], place)
            sides[name] = given, seen.keys[given_rows]
        else:
            sides[name] = listing.take(chosen), keys[chosen]
    return sides, dict(zip(keys.tolist(), unit.tolist(), strict=True))


def _split_outliers(config: Config, outside: Source, place: dict[str, int], seen: Scan) -> Sides:
    if isinstance(outside, Listing):
        listing, rows = _readable(outside, place)
        keys = seen.keys[rows]
        by = config.group_by if config.group_by in ("near", "folder") else "none"
        unit = units(group(listing, by, keys, seen.small[rows]).groups, keys) if len(rows) else keys
        outside = listing
    else:
        unit = keys = readers.pixel_keys(outside)
    held = held_back(unit, None, config.calibration_fraction)
    return {
        name: (_take(outside, np.flatnonzero(side)), keys[side])
        for name, side in (("outliers", ~held), ("calibration_outliers", held))
    }


def _as_chosen(
    choice: Choice, found: Parts, outside: Source, place: dict[str, int], seen: Scan, notes: list[str]
) -> Sides:
    sides: Sides = {}
    new = 0
    together = [
        "train",
        *(name for name, part in (("calibration", "val"), ("test", "test")) if part not in found.parts),
    ]
    for part, names in (("train", together), ("val", ["calibration"]), ("test", ["test"])):
        if part in found.parts:
            listing, rows = _readable(found.parts[part], place)
            places, more = choice.find(seen.keys[rows], *names)
            new += more
            sides |= {n: (listing.take(p), seen.keys[rows[p]]) for n, p in zip(names, places, strict=True)}
    if isinstance(outside, Listing):
        outside, rows = _readable(outside, place)
        keys = seen.keys[rows]
    else:
        keys = readers.pixel_keys(outside)
    names = ["outliers", "calibration_outliers"]
    places, more = choice.find(keys, *names)
    sides |= {n: (_take(outside, p), keys[p]) for n, p in zip(names, places, strict=True)}
    notes += came_since(new, more)
    return sides


def _require_known(data: Path, run: Path, classes: Sequence[str], choice: Choice) -> None:
    """DataError where a class has come since the run began: without an image to train on, it looked damaged."""
    known = set(choice.parts["train"].classes)
    if new := [name for name in classes if name not in known]:
        raise DataError(
            f"{data}: {run} knows no class {some(new)}, which has come or was renamed since it began: put back what it "
            "was trained on, or train another run"
        )


def came_since(images: int, outliers: int) -> list[str]:
    """A note about images that a run does not know."""
    if not images and not outliers:
        return []
    return [f"{images} images and {outliers} outliers have come since the run began: they are left out"]


def _take(source: Source, index: Rows) -> Source:
    return source.take(index) if isinstance(source, Listing) else source[index]


def _part(source: Source, keys: Keys, groups: dict[int, int]) -> Part:
    if not isinstance(source, Listing):
        return Part(keys, [])
    names = [source.classes[label] for label in source.labels] if source.classes else []
    return Part(keys, names, source.paths, [groups.get(key, key) for key in keys.tolist()])


def _outlier_source(path: Path | None, notes: list[str]) -> Source:
    if path is None:
        return Listing.unlabelled([])
    if path.is_dir():
        return Listing.unlabelled(folders.unlabelled_files(path, notes))
    if lists.is_list(path):
        return Listing.unlabelled(lists.outliers(path))
    return readers.array(path)
