"""What becomes of each reviewed image: trained on, calibrated on, compared on, or left out, and why.

An image that the run has already teaches nothing. One that looks like a test or calibration image of the run would be
measured on what it was taught. Near duplicates share a side; those of images the run was trained on are trained on too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.audit.duplicates import SAME_COSINE, ImagePart, exact, near
from training.data.choice import Choice
from training.data.decode import resized, square
from training.data.grouping import group, units
from training.data.listing import Listing
from training.data.photographs import Files
from training.data.readers import Keys, Pixels
from training.data.scan import SMALL_PX, scan
from training.data.splits import held_back, salted
from training.learn.reviewed import Reviewed

TRAIN, CALIBRATION, COMPARED = "train", "calibration", "test"
HELD = ("calibration", "test")
TRAINED_OUTLIERS, HELD_OUTLIERS, EARLIER = "outliers", "calibration_outliers", "compared earlier"
Sides = NDArray[np.str_]  # [N]


@dataclass(frozen=True)
class Old:
    """The images of the run: their files, keys and small pixels by side, labels as class names."""

    files: Files
    small: Mapping[str, Pixels]  # of HELD, train, and the outliers

    @classmethod
    def of(cls, files: Files, cache: Path, earlier: Sequence[str] = ()) -> "Old":
        """From the scan that the run keeps in `cache`, which is made again where it is gone. `earlier`: the outliers
        that the run was compared on when it was taught."""
        sources = {name: getattr(files, name) for name in ("train", *HELD, TRAINED_OUTLIERS, HELD_OUTLIERS)}
        sources[EARLIER] = Listing.unlabelled(list(earlier))
        listed = {name: source.paths for name, source in sources.items() if isinstance(source, Listing)}
        paths = list(dict.fromkeys(path for each in listed.values() for path in each))
        seen = scan(paths, cache=cache)
        place = {paths[i]: row for row, i in enumerate(seen.index.tolist())}
        small = {name: resized(source, square(SMALL_PX)) for name, source in sources.items() if name not in listed}
        return cls(files, small | {name: seen.small[[place[p] for p in each]] for name, each in listed.items()})

    def copies(self, side: str, reviewed: Reviewed) -> NDArray[np.bool_]:
        """bool [N]: which reviewed images are those of a side once more, in another file or nearly, as the audit finds
        them."""
        parts = [ImagePart(side, self.small[side], []), ImagePart("reviewed", reviewed.small, reviewed.paths)]
        found = np.zeros(len(reviewed), bool)
        found[[pair.second for pair in near(*parts) if pair.full_cosine > SAME_COSINE]] = True
        for places in exact(parts):  # which `near` leaves out
            if places[0][0] == 0:
                found[[i for part, i in places if part == 1]] = True
        return found

    def listing(self, side: str) -> Listing:
        found: Listing = getattr(self.files, side)
        return found

    def group_keys(self, side: str) -> Keys:
        """The group of each image; its own key where the run, of an earlier version, does not say."""
        keys = self.files.keys[side]
        groups = self.files.choice.groups_of(keys)
        return keys if groups is None else groups

    def names(self, side: str) -> list[str]:
        listing = self.listing(side)
        return [listing.classes[label] for label in listing.labels.tolist()]


def new_to(choice: Choice, old: Old, reviewed: Reviewed, notes: list[str]) -> tuple[Reviewed, set[int]]:
    """(the reviewed images that the run does not have, keys of its outliers that are now known to be of a class)."""
    has = {
        key: name
        for side in ("train", "calibration", "test")
        for key, name in zip(old.files.keys[side].tolist(), old.names(side), strict=True)
    }
    outside = set(np.concatenate([choice.parts[n].keys for n in ("outliers", "calibration_outliers")]).tolist())
    kept = np.ones(len(reviewed), bool)
    same = other = 0
    renamed = set[int]()
    for i, (key, label) in enumerate(zip(reviewed.keys.tolist(), reviewed.labels.tolist(), strict=True)):
        if key in has or (key in outside and not label):
            kept[i] = False
            same += has.get(key, "") == label
            other += has.get(key, "") != label
        elif key in outside:
            renamed.add(key)
    if same:
        notes.append(f"left out {same} images that the run has already")
    if other:
        notes.append(f"left out {other} images that the run has under another label: correct its data and train again")
    if renamed:
        notes.append(f"{len(renamed)} outliers of the run are of a class now: they are no outliers any more")
    return reviewed.take(kept), renamed


def without_leaks(old: Old, reviewed: Reviewed, notes: list[str]) -> Reviewed:
    """Those that are no near duplicates of what the run calibrates or is tested on; outliers also of those that it
    holds back or was compared on."""
    held = np.any([old.copies(side, reviewed) for side in HELD], axis=0)
    unseen = np.any([old.copies(side, reviewed) for side in (HELD_OUTLIERS, EARLIER)], axis=0)
    outside = reviewed.outliers & ~held & unseen
    if dropped := int(held.sum()):
        notes.append(f"left out {dropped} near duplicates of calibration or test images of the run")
    if dropped := int(outside.sum()):
        notes.append(f"left out {dropped} near duplicates of outliers that the run holds back or was compared on")
    return reviewed.take(~held & ~outside)


def of_classes(old: Old, reviewed: Reviewed, share: float, calibration: float) -> tuple[Sides, Keys]:
    """(the side of each image, the key of its group); "" and its own key for outliers.

    `share` is compared on, then a share `calibration` calibrated on. A near duplicate of an image that the run was
    trained on is in the group of that one.
    """
    sides, together = np.full(len(reviewed), "", dtype="<U11"), reviewed.keys.copy()
    classes = reviewed.classes
    number = {name: i for i, name in enumerate(classes)}
    place = [i for i, name in enumerate(old.names("train")) if name in number]
    mine = np.flatnonzero(~reviewed.outliers)
    if not len(mine):
        return sides, together
    labels = np.array([number[old.names("train")[i]] for i in place] if place else [], np.int64)
    labels = np.concatenate([labels, [number[name] for name in reviewed.labels[mine].tolist()]]).astype(np.int64)
    keys = np.concatenate([old.files.keys["train"][place], reviewed.keys[mine]])
    small = np.concatenate([old.small["train"][place], reviewed.small[mine]])
    paths = [old.files.train.paths[i] for i in place] + [reviewed.paths[i] for i in mine]
    groups = group(Listing(paths, labels, tuple(classes), {}), "near", keys, small).groups
    taught = np.isin(groups[len(place) :], groups[: len(place)])
    own, unit = labels[len(place) :], units(groups, keys)[len(place) :]
    of_group = dict(zip(groups[: len(place)].tolist(), old.group_keys("train")[place].tolist(), strict=True))
    fresh = zip(groups[len(place) :].tolist(), unit.tolist(), strict=True)
    together[mine] = np.array([of_group.get(one, key) for one, key in fresh], np.uint64)
    given = reviewed.given[mine]
    sides[mine] = np.where(given == "", split_units(unit, own, taught | (given != ""), share, calibration), given)
    return sides, together


def of_outliers(old: Old | None, reviewed: Reviewed, share: float, calibration: float) -> Sides:
    """The side of each outlier; "" for images of a class."""
    sides = np.full(len(reviewed), "", dtype="<U11")
    mine = np.flatnonzero(reviewed.outliers)
    if len(mine):
        listing = Listing.unlabelled([reviewed.paths[i] for i in mine])
        groups = group(listing, "near", reviewed.keys[mine], reviewed.small[mine]).groups
        unit = units(groups, reviewed.keys[mine])
        known = old.copies(TRAINED_OUTLIERS, reviewed)[mine] if old else np.zeros(len(mine), bool)
        taught = np.isin(groups, groups[known])
        sides[mine] = split_units(unit, np.zeros(len(mine), np.int64), taught, share, calibration)
    return sides


def split_units(
    unit: Keys, labels: NDArray[np.int64], fixed: NDArray[np.bool_], share: float, calibration: float
) -> Sides:
    """[N]: which side; what is `fixed` is trained on. No unit is parted."""
    sides = np.full(len(unit), TRAIN, dtype="<U11")
    free = np.flatnonzero(~fixed)
    compared = held_back(salted(unit[free], COMPARED), labels[free], share)
    sides[free[compared]] = COMPARED
    rest = free[~compared]
    sides[rest[held_back(unit[rest], labels[rest], calibration)]] = CALIBRATION
    return sides
