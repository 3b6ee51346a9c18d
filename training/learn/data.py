"""The data of the new run on disk: a list of the run's images and the added ones, and folders of outliers."""

import csv
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.contract.keys import key_text
from training.config import Config
from training.data import exported, taxonomy
from training.data.choice import Choice, Part
from training.data.listing import Listing
from training.data.photographs import CACHE, SCAN_FILE, Files
from training.data.readers import DataError, Keys
from training.data.whole import replacing
from training.learn import doubts, sides
from training.learn.arrays import FOLDER, as_png
from training.learn.command import Learn
from training.learn.reviewed import Reviewed
from training.learn.sides import CALIBRATION, COMPARED, TRAIN, Old
from training.runs.files import Json

PLAN_FILE = "learn.json"
DATA_FILE, ADDED, OUTLIERS, COMPARED_OUTLIERS = "data.csv", "added", "outliers", "compared"
SPLITS = {TRAIN: "train", CALIBRATION: "val", COMPARED: "test"}


def write(work: Path, given: Learn, config: Config, files: Files, found: Reviewed, notes: list[str]) -> Json:
    """The new run's data, into `work`; what was added, by class and side."""
    compared = _compared_earlier(given.run)
    earlier = [path for key, path in compared.items() if key not in found.keys]
    old = Old.of(files, given.run / CACHE / SCAN_FILE, earlier)
    found, renamed = sides.new_to(Choice.read(given.run), old, found, notes)
    found = sides.without_leaks(old, found, notes)
    if config.frozen and given.doubtful == "leave-out":
        found = doubts.left_out(found, given.run, config, work, notes)
    if not len(found):
        raise DataError(f"{given.added}: no image is left to learn from: {'; '.join(notes) or 'it is empty'}")
    of_class, together = sides.of_classes(old, found, given.compare_share, config.calibration_fraction)
    of_outliers = sides.of_outliers(old, found, given.compare_share, config.calibration_fraction)
    if not (of_class == TRAIN).any() and not (of_outliers != "").any():
        raise DataError(f"{given.added}: nothing is left to train on")
    for left in (*work.glob(".*.*.csv"), *(work / ADDED).glob(".*"), *(work / FOLDER).glob(".*")):
        left.unlink()  # half written by a process that was killed: none other works here
    copies = [_copied(path, key, work / ADDED) for path, key in zip(found.paths, found.keys.tolist(), strict=True)]
    parts = _write_list(work, old, found, copies, of_class, together)
    parts |= _write_outliers(work, files, found, copies, of_outliers, renamed)
    for key, path in compared.items():  # it is compared on them again
        if key not in found.keys:
            _linked(path, key, work / COMPARED_OUTLIERS)
    Choice(parts).write(work)
    if tree := taxonomy.recorded(given.run):
        tree.write(work)  # a new class hangs where its own name says, Fruit/Fig, or below the root
    known = set(files.train.classes)
    return {
        "new_classes": by_class([c for c in found.classes if c not in known], found, of_class),
        "known_classes": by_class([c for c in found.classes if c in known], found, of_class),
        "outliers": {side: int((of_outliers == side).sum()) for side in SPLITS},
        "labels": sources(given.added),
        "trained_keys": [key_text(key) for key in found.keys[used(of_class) | used(of_outliers)].tolist()],
    }


def used(side: sides.Sides) -> NDArray[np.bool_]:
    """Which images the model has seen: they tell a service nothing about it."""
    return np.isin(side, [TRAIN, CALIBRATION])


def by_class(names: list[str], found: Reviewed, of_class: sides.Sides) -> Json:
    """Class to how many of its images are on each side."""
    return {n: {side: int(((found.labels == n) & (of_class == side)).sum()) for side in SPLITS} for n in names}


def sources(added: Path) -> Json:
    """How many labels each reviewer gave, where the export says so."""
    reviewers = [str(row.get("source") or "unknown") for row in exported.rows(added)]
    return {name: reviewers.count(name) for name in sorted(set(reviewers))}


def _copied(path: str, key: int, folder: Path) -> str:
    """A copy under its content's name: what was learned from stays with the run."""
    folder.mkdir(parents=True, exist_ok=True)
    target = (folder / f"{key:016x}{Path(path).suffix.lower()}").resolve()
    if not target.is_file():
        with replacing(target) as temporary:
            shutil.copyfile(path, temporary)
    return str(target)


def _write_list(
    work: Path, old: Old, found: Reviewed, copies: list[str], of_class: sides.Sides, together: Keys
) -> dict[str, Part]:
    """data.csv; the parts of its images by side, with their groups: `together` [N] are those of the images found."""
    parts: dict[str, Part] = {}
    rows: list[tuple[str, str, str]] = []
    for side in SPLITS:
        mine = np.flatnonzero(of_class == side)
        paths = [os.path.abspath(p) for p in old.listing(side).paths] + [copies[i] for i in mine]
        labels = [*old.names(side), *found.labels[mine].tolist()]
        groups = np.concatenate([old.group_keys(side), together[mine]]).tolist()
        parts[side] = Part(np.concatenate([old.files.keys[side], found.keys[mine]]), labels, paths, groups)
        rows += [(path, label, SPLITS[side]) for path, label in zip(paths, labels, strict=True)]
    with (
        replacing(work / DATA_FILE) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return parts


def _write_outliers(
    work: Path, files: Files, found: Reviewed, copies: list[str], of_outliers: sides.Sides, renamed: set[int]
) -> dict[str, Part]:
    """The folders of outliers; the parts of those that are trained and calibrated on."""
    for name in (OUTLIERS, COMPARED_OUTLIERS):
        shutil.rmtree(work / name, ignore_errors=True)
    parts = {}
    done = set[int]()
    for side, name in ((TRAIN, "outliers"), (CALIBRATION, "calibration_outliers")):
        kept = [*_old_outliers(files, name, work, renamed)]
        kept += [(copies[i], int(found.keys[i])) for i in np.flatnonzero(of_outliers == side)]
        kept = list({key: (path, key) for path, key in kept if key not in done}.values())
        done |= {key for _, key in kept}
        linked = [_linked(path, key, work / OUTLIERS) for path, key in kept]
        parts[name] = Part(np.array([key for _, key in kept], np.uint64), [], linked)
    for i in np.flatnonzero(of_outliers == COMPARED):
        _linked(copies[i], int(found.keys[i]), work / COMPARED_OUTLIERS)
    return parts


def _compared_earlier(run: Path) -> dict[int, str]:
    """Key to path of the outliers that the run was compared on when it learned itself."""
    folder = run.parent / COMPARED_OUTLIERS
    if not (run.parent / PLAN_FILE).is_file() or not folder.is_dir():
        return {}
    return {int(path.stem, 16): os.path.realpath(path) for path in sorted(folder.iterdir())}


def _old_outliers(files: Files, name: str, work: Path, renamed: set[int]) -> Iterable[tuple[str, int]]:
    """(path, key) of the run's outliers; those of an array are written as files."""
    source = getattr(files, name)
    if isinstance(source, Listing):
        yield from ((p, k) for p, k in zip(source.paths, files.keys[name].tolist(), strict=True) if k not in renamed)
        return
    folder = work / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for i, pixels in enumerate(source):
        path = (folder / f"{name}-{i:06}.png").resolve()
        yield str(path), as_png(pixels, path)


def _linked(path: str, key: int, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / f"{key:016x}{Path(path).suffix.lower()}"
    link.symlink_to(os.path.abspath(path))
    return str(link)
