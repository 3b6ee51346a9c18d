"""The streams of the simulation: folders to fit on, days of images in time order, and images that nobody labels.

Half of the images that were set aside (test images of the known classes, images of held-out classes, unknown things)
comes as the stream, half is only measured on. A held-out class appears on some day and stays from then on.
"""

import csv
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

Kind = Literal["known", "new", "unknown"]
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@dataclass(frozen=True)
class Photo:
    """An image and what it shows; `truth` is the name of a class, also of one that no model has yet."""

    path: Path
    truth: str
    kind: Kind  # known: a class of the first model; new: held out; unknown: never to be a class


@dataclass(frozen=True)
class World:
    """What there is at the beginning, and what will come."""

    data: Path  # train/<class>, test/<class> (and val/<class>), as `fit` reads them
    outliers: Path
    days: list[list[Photo]]
    held_back: list[Photo]  # never streamed; the test folder holds those of known classes too

    @property
    def new(self) -> list[str]:
        """The held-out classes, in the order in which they appear."""
        return list(dict.fromkeys(p.truth for day in self.days for p in day if p.kind == "new"))


def plankton(data: Path, into: Path, days: int, seed: int) -> World:
    """The unpacked NDSB plankton: 100 taxa known, 12 held out, three folders of unknown things in the stream."""
    with np.load(SHARED / "plankton_48.npz") as archive:
        names, labels = archive["class_names"], archive["labels"]

    def truth(path: Path) -> str:
        return str(names[labels[int(path.stem)]])  # a file is called after its row

    photos = [Photo(p, p.parent.name, "known") for p in _images(data / "test")]
    photos += [Photo(p, truth(p), "new") for p in _images(data / "ood" / "heldout_taxa")]
    photos += [Photo(p, truth(p), "unknown") for p in _images(data / "ood" / "unknown")]
    parts = {"train": _images(data / "train"), "val": _images(data / "val")}
    return _world(parts, data / "outliers", photos, into, days, seed)


def groceries(data: Path, into: Path, days: int, seed: int) -> World:
    """The grocery photographs: the near classes come in the stream, cards and blood cells are unknown things."""
    fine = {}
    with (data / "SOURCES.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            fine[row["file"]] = row["source"].split("/")[-2].lower()
    photos = [Photo(p, p.parent.name, "known") for p in _images(data / "test")]
    photos += [Photo(p, fine[p.relative_to(data).as_posix()], "new") for p in _images(data / "ood" / "near")]
    photos += [Photo(p, "unknown", "unknown") for p in _images(data / "ood" / "far")]
    return _world({"train": _images(data / "train")}, data / "outliers", photos, into, days, seed)


def _world(
    parts: dict[str, list[Path]], outliers: Path, photos: list[Photo], into: Path, days: int, seed: int
) -> World:
    """Half of `photos` becomes days; the folders are links to the files."""
    rng = np.random.default_rng(seed)
    streamed, held_back = _halves(photos)
    for part, paths in [*parts.items(), ("test", [p.path for p in held_back if p.kind == "known"])]:
        _link(paths, into / part)
    new = sorted({p.truth for p in streamed if p.kind == "new"})
    rng.shuffle(new)
    first_day = {name: i * (days - 1) // len(new) for i, name in enumerate(new)}  # none on the last day
    made: list[list[Photo]] = [[] for _ in range(days)]
    for name in sorted({p.truth for p in streamed}):
        of_class = [p for p in streamed if p.truth == name]
        rng.shuffle(of_class)
        begins, shift = first_day.get(name, 0), int(rng.integers(days))
        for i, photo in enumerate(of_class):  # the first on the day it appears, where there are few too
            made[begins + (i + (shift if name not in first_day else 0)) % (days - begins)].append(photo)
    for day in made:
        rng.shuffle(day)
    return World(into, outliers, made, held_back)


def _halves(photos: Sequence[Photo]) -> tuple[list[Photo], list[Photo]]:
    """Every other image of each class, in the order of a checksum of its name: the same in every run."""
    sides: tuple[list[Photo], list[Photo]] = ([], [])
    for name in sorted({p.truth for p in photos}):
        of_class = sorted((p for p in photos if p.truth == name), key=lambda p: zlib.crc32(p.path.name.encode()))
        for i, photo in enumerate(of_class):
            sides[i % 2].append(photo)
    return sides


def _link(paths: Iterable[Path], folder: Path) -> None:
    for path in paths:
        target = folder / path.parent.name / path.name
        if not target.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.symlink(path.resolve(), target)


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
