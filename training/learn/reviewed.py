"""The images that people have labelled, as they are on disk, before it is decided what becomes of each."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.contract import files
from service.contract.bundle import OUTLIER_LABEL, spelling
from training.data import exported, folders, lists
from training.data.listing import some
from training.data.photographs import read_parts
from training.data.readers import DataError, Keys, Pixels
from training.data.scan import scan

OUTLIERS_FOLDER = "outliers"
SIDES = {"train": "", "val": "calibration", "test": "test"}  # part of a folder or list → side, where that is given


@dataclass(frozen=True)
class Reviewed:
    """N readable images: paths, content keys, small pixels uint8 [N, S, S, 3], class names ("" for an outlier).

    `given` is the side that the folder names: calibration, test, or "" where it is free; `groups` the group in which an
    image was labelled, "" where it was labelled alone.
    """

    paths: list[str]
    keys: Keys
    small: Pixels
    labels: NDArray[np.str_]
    given: NDArray[np.str_]
    groups: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, kept: NDArray[np.bool_]) -> "Reviewed":
        paths = [path for path, keep in zip(self.paths, kept.tolist(), strict=True) if keep]
        return Reviewed(
            paths, self.keys[kept], self.small[kept], self.labels[kept], self.given[kept], self.groups[kept]
        )

    @property
    def outliers(self) -> NDArray[np.bool_]:
        """bool [N]: which belong to no class."""
        return np.asarray(self.labels == "")

    @property
    def classes(self) -> list[str]:
        return sorted(set(self.labels.tolist()) - {""})


def read(where: Path, known: Sequence[str], cache: Path, notes: list[str]) -> Reviewed:
    """The images below `where`, for a run that has the classes `known`; what was left out goes into `notes`.

    DataError where there is nothing to learn from, and for a class in another spelling of one that is known.
    """
    rows = [*_labelled(where, notes), *_outliers(where, notes)]
    if not rows:
        raise DataError(f"{where} holds no labelled image: give the folder of `review export`, or train/<class>/*")
    seen = scan([path for path, _, _ in rows], cache=cache, title="read reviewed files")
    notes += folders.unreadable_notes(seen.unreadable)
    kept = [rows[i] for i in seen.index.tolist()]
    groups = _groups(where)
    found = Reviewed(
        [path for path, _, _ in kept], seen.keys, seen.small, np.array([label for _, label, _ in kept], dtype=np.str_),
        np.array([side for _, _, side in kept], dtype=np.str_),
        np.array([groups.get(os.path.abspath(path), "") for path, _, _ in kept], dtype=np.str_),
    )  # fmt: skip
    _require_class_names(found.classes, known)
    return _without_contradictions(found, notes)


def _groups(where: Path) -> dict[str, str]:
    """Path → the group in which it was labelled, as far as an export says so."""
    rows = [(row.get("path"), row.get("group")) for row in exported.rows(where)]
    return {os.path.abspath(exported.folder_of(where) / path): group for path, group in rows if path and group}


def _labelled(where: Path, notes: list[str]) -> Iterable[tuple[str, str, str]]:
    """(path, class, side) of every image of a class."""
    if not where.exists():
        raise DataError(f"--from {where} is missing: name the folder of `review export`, or a folder of classes")
    if not _has_classes(where):
        return
    parts = read_parts(where)
    if not lists.is_list(where):  # a list's note is on its outliers, which are taken here
        notes += parts.notes
    names = parts.parts["train"].classes
    if OUTLIER_LABEL in names:
        raise DataError(f"{where}: images of no class belong into {OUTLIERS_FOLDER}/ beside train/, not into a class "
                        f"called {OUTLIER_LABEL!r}: move them")  # fmt: skip
    seen = {names[label] for listing in parts.parts.values() for label in listing.labels.tolist()}
    if empty := [name for name in names if name not in seen]:
        notes.append(f"{where}: left out {len(empty)} classes without images ({some(empty)})")
    for part, listing in parts.parts.items():
        for path, label in zip(listing.paths, listing.labels.tolist(), strict=True):
            yield path, names[label], SIDES[part]


def _has_classes(where: Path) -> bool:
    """Whether images have a class; an export of outliers alone has none."""
    if lists.is_list(where):
        return not all(map(lists.is_outlier, lists.rows(where)))
    root = where / "train" if (where / "train").is_dir() else where
    inside = (e for e in root.iterdir() if e.is_dir() and not files.is_hidden(e.name))
    return any(files.find(e).paths for e in inside if root != where or e.name not in folders.BESIDE)


def _outliers(where: Path, notes: list[str]) -> Iterable[tuple[str, str, str]]:
    folder = exported.folder_of(where) / OUTLIERS_FOLDER
    inside = [str(path) for path in folders.image_files(folder, notes)] if folder.is_dir() else []
    notes += exported.unlisted(where, inside)
    listed = lists.outliers(where) if lists.is_list(where) and any(map(lists.is_outlier, lists.rows(where))) else []
    for path in dict.fromkeys([*inside, *listed]):
        yield path, "", ""


def _without_contradictions(found: Reviewed, notes: list[str]) -> Reviewed:
    """Each image once; none of those that have two labels."""
    labels: dict[int, set[str]] = defaultdict(set)
    for key, label in zip(found.keys.tolist(), found.labels.tolist(), strict=True):
        labels[key].add(label or OUTLIER_LABEL)
    twice = {key: names for key, names in labels.items() if len(names) > 1}
    if twice:
        examples = [" and ".join(sorted(names)) for names in twice.values()]
        notes.append(f"left out {len(twice)} images that have two labels ({some(examples)}): decide, and learn again")
    first = np.zeros(len(found), bool)
    first[np.unique(found.keys, return_index=True)[1]] = True
    return found.take(first & np.array([key not in twice for key in found.keys.tolist()], bool))


def _require_class_names(reviewed: Iterable[str], known: Sequence[str]) -> None:
    """DataError where a class is one of the run's in another spelling: case, Unicode form, blanks or underscores."""
    spelled = {spelling(name): name for name in known}
    for name in sorted(set(reviewed).difference(known)):  # a run may have two spellings, and was told so
        other = spelled.setdefault(spelling(name), name)
        if other != name:
            raise DataError(f"the class {name!r} is another spelling of {other!r}: give both the same name (rename the "
                            "folder), as two classes of the same things are never told apart")  # fmt: skip
