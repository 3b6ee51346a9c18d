"""What a run trains on and what it holds back, by content: written once, when the run begins, into its folder.

    part,class,key,path
    train,cat,0f3a…,photos/cat/17.jpg
    calibration,cat,01b2…,photos/cat/3.jpg

So files that are added, removed or renamed later change neither side, and nothing is calibrated on what was trained on.
"""

import csv
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.readers import DataError, Keys

CHOICE_FILE = "split.csv"
PARTS = ("train", "calibration", "test", "outliers", "calibration_outliers")  # test: where training made that part


@dataclass(frozen=True)
class Part:
    """The content keys of one part; `classes` [N] names of theirs, empty for outliers; `paths` where they were files.

    Images are known again by their keys; paths are for a person.
    """

    keys: Keys
    classes: list[str]
    paths: list[str] = field(default_factory=list)


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
            rows.writerow(("part", "class", "key", "path"))
            for name, part in self.parts.items():
                empty = [""] * len(part.keys)
                columns = part.classes or empty, part.keys.tolist(), part.paths or empty
                rows.writerows((name, c, f"{key:016x}", path) for c, key, path in zip(*columns, strict=True))
        temporary.replace(path)

    @staticmethod
    def read(folder: Path) -> "Choice":
        """From `folder`/split.csv. DataError where it is missing or damaged."""
        path = folder / CHOICE_FILE
        keys: dict[str, list[int]] = {name: [] for name in PARTS}
        classes: dict[str, list[str]] = {name: [] for name in PARTS}
        try:
            with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
                for row in csv.DictReader(file):
                    keys[row["part"]].append(int(row["key"], 16))
                    classes[row["part"]].append(row["class"])
        except FileNotFoundError:
            raise DataError(
                f"{path} is missing, so nobody knows which images {folder} was trained on: train it again"
            ) from None
        except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
            raise DataError(f"{path} is damaged ({error!r}): restore it from a copy, or train again") from error
        return Choice({name: Part(np.array(keys[name], np.uint64), classes[name]) for name in PARTS})

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
