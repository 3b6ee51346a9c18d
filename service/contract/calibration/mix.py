"""The mix of classes that is expected in service, and how much each calibration image counts for it."""

import csv
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TRAIN, UNIFORM = "train", "uniform"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ClassMix:
    """`name`: train, uniform, or that of the file; `shares` [C] of the classes, summing to 1."""

    name: str
    shares: Floats

    def class_weights(self, calibration_counts: NDArray[np.int64], groups: NDArray[np.str_]) -> Floats:
        """[C] how much a calibration image of each class counts; their mean over the images is 1.

        All alike for the mix of the training images, of which the calibration images are a sample. Else a class counts
        by its expected share; the share of a class without calibration images goes to the others of its group [C].
        """
        if self.name == TRAIN:
            return np.ones(len(self.shares))
        seen = calibration_counts > 0
        shares = np.where(seen, self.shares, 0.0)
        for group in np.unique(groups):
            inside = groups == group
            if there := shares[inside].sum():
                shares[inside] *= self.shares[inside].sum() / there
        weights = np.divide(shares, calibration_counts, out=np.zeros(len(shares)), where=seen)
        total = (weights * calibration_counts).sum()
        if not total > 0:
            raise ValueError(f"no class of the mix {self.name} has a calibration image: raise --calibration-fraction")
        return np.asarray(weights * calibration_counts.sum() / total)


def class_mix(given: str, classes: Sequence[str], train_counts: NDArray[np.int64]) -> ClassMix:
    """`given`: train, uniform, or a CSV file with a line `class,share` for each class.

    Raises ValueError for a file that cannot be read, lacks a class or names another, or has a share below 0.
    """
    if given == TRAIN:
        return ClassMix(TRAIN, train_counts / max(int(train_counts.sum()), 1))
    if given == UNIFORM:
        return ClassMix(UNIFORM, np.full(len(classes), 1 / len(classes)))
    found = _read(Path(given), classes)
    if missing := [c for c in classes if c not in found]:
        raise ValueError(f"{given} has no share for {', '.join(missing[:5])}: give a line for every class")
    if strangers := [c for c in found if c not in set(classes)]:
        raise ValueError(f"{given} has shares for {', '.join(strangers[:5])}, which are no classes: remove these lines")
    shares = np.array([found[c] for c in classes])
    if not shares.sum() > 0:
        raise ValueError(f"the shares in {given} are all 0: at least one class must be expected")
    return ClassMix(Path(given).name, shares / shares.sum())


def _read(path: Path, classes: Sequence[str]) -> dict[str, float]:
    """The shares by the names in `classes`: a file from macOS may have an accent as a character of its own."""
    written = {unicodedata.normalize("NFC", name): name for name in classes}
    try:
        rows = [row for row in csv.reader(path.read_text(encoding="utf-8-sig").splitlines()) if row]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"class mix {str(path)!r} is neither train, uniform nor a file of shares: {error}") from error
    found: dict[str, float] = {}
    for number, row in enumerate(rows, 1):
        try:
            _, text = row[:1] + [part for part in row[1:] if part.strip()]  # of 0,5 for 0.5 the share would be 0
            share = float(text)
            name = row[0] if row[0] in classes else written.get(unicodedata.normalize("NFC", row[0].strip()), row[0])
        except (IndexError, ValueError):
            if number == 1:
                continue  # a header
            raise ValueError(f"line {number} of {path} is {','.join(row)!r}: write class,share") from None
        if name in found or not 0 <= share < float("inf"):
            reason = "names a class twice" if name in found else f"has a share of {share}"
            raise ValueError(f"line {number} of {path} {reason}: write each class once, with a share of at least 0")
        found[name] = share
    return found
