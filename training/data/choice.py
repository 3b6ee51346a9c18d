"""What a run trains on and what it holds back, by content: written once, when the run begins, into its folder.

    part,class,key,path,group
    train,cat,0f3a…,photos/cat/17.jpg,77c0…
    calibration,cat,01b2…,photos/cat/3.jpg,91d4…

So files that are added, removed or renamed later change neither side, and nothing is calibrated on what was trained on.
"""

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.readers import DataError, ImageSet, Keys

CHOICE_FILE = "split.csv"
PARTS = ("train", "calibration", "test", "outliers", "calibration_outliers")  # test: where training made that part


@dataclass(frozen=True)
class Part:
    """The content keys of one part; `classes` [N] names of theirs, empty for outliers; `paths` where they were files.

    Images are known again by their keys; paths are for a person. `groups` are those that no split parts, one key for
    all images of a group; empty where every image stands alone, None where nobody wrote them down.
    """

    keys: Keys
    classes: list[str]
    paths: list[str] = field(default_factory=list)
    groups: list[int] | None = field(default_factory=list)


@dataclass(frozen=True)
class Choice:
    """The parts of a run by name, each of PARTS."""

    parts: dict[str, Part]

    def write(self, folder: Path) -> None:
        """Into `folder`/split.csv."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / CHOICE_FILE
        temporary = path.with_suffix(".partial")
        with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("part", "class", "key", "path", "group"))
            for name, part in self.parts.items():
                empty = [""] * len(part.keys)
                keys = [f"{key:016x}" for key in part.keys.tolist()]
                groups = [f"{group:016x}" for group in part.groups or part.keys.tolist()]
                columns = part.classes or empty, keys, part.paths or empty, groups
                rows.writerows((name, *row) for row in zip(*columns, strict=True))
        temporary.replace(path)

    @staticmethod
    def read(folder: Path) -> "Choice":
        """From `folder`/split.csv. DataError where it is missing or damaged."""
        path = folder / CHOICE_FILE
        keys: dict[str, list[int]] = {name: [] for name in PARTS}
        classes: dict[str, list[str]] = {name: [] for name in PARTS}
        groups: dict[str, list[int]] = {name: [] for name in PARTS}
        try:
            with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
                rows = csv.DictReader(file)
                known = "group" in (rows.fieldnames or ())  # not in a run of an earlier version
                for row in rows:
                    keys[row["part"]].append(int(row["key"], 16))
                    classes[row["part"]].append(row["class"])
                    groups[row["part"]].append(int(row["group"], 16) if known else 0)
        except FileNotFoundError:
            raise DataError(
                f"{path} is missing, so nobody knows which images {folder} was trained on: train it again"
            ) from None
        except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
            raise DataError(f"{path} is damaged ({error!r}): restore it from a copy, or train again") from error
        return Choice({
            name: Part(np.array(keys[name], np.uint64), classes[name], [], groups[name] if known else None)
            for name in PARTS
        })  # fmt: skip

    def labelled(self, sides: Mapping[str, ImageSet]) -> "Choice":
        """The same images on the same sides, each with the class that it has now: labels may have been mended since
        the run that this is of."""
        parts = dict(self.parts)
        for name, images in sides.items():
            if len(parts[name].keys):
                groups = self.groups_of(images.keys)
                names = [images.classes[label] for label in images.labels.tolist()]
                parts[name] = Part(images.keys, names, [], None if groups is None else groups.tolist())
        return Choice(parts)

    def groups_of(self, keys: Keys) -> Keys | None:
        """The group of each image with these `keys`; None where the run does not say."""
        known: dict[int, int] = {}
        for part in self.parts.values():
            if part.groups is None:
                return None
            known |= zip(part.keys.tolist(), part.groups or part.keys.tolist(), strict=True)
        return np.array([known.get(key, key) for key in keys.tolist()], np.uint64)

    def find(self, keys: Keys, *names: str) -> tuple[list[NDArray[np.int64]], int]:
        """Where the images of these parts are among `keys`, and how many of `keys` belong to none of them.

        An image that was there several times is taken as often. DataError where one is no longer there.
        """
        wanted = [Counter(self.parts[name].keys.tolist()) for name in names]
        places: list[list[int]] = [[] for _ in names]
        for i, key in enumerate(keys.tolist()):
            for left, place in zip(wanted, places, strict=True):
                if left[key] > 0:
                    left[key] -= 1
                    place.append(i)
                    break
        for name, left in zip(names, wanted, strict=True):
            if missing := left.total():
                raise DataError(
                    f"{missing} of {len(self.parts[name].keys)} images that the run has as {name.replace('_', ' ')} "
                    "are no longer in the data: restore them, or name the folder where they are"
                )
        return [np.array(place, np.int64) for place in places], len(keys) - sum(map(len, places))
