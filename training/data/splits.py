"""The long-tail cut, the calibration split, and which classes are the tail.

Bundles and results from before content keys (models/cifar10-lt/1 and training/results of its day) held back images by
their position in the data; tests/drift/scores.py keeps that split, so that their calibration can be made again.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.contract.keys import content_key
from training.data.readers import DataError, ImageSet, Keys, Labels

FEWEST_IMAGES = 5  # different images of a class from which on one is held back for calibration


def long_tail_counts(num_classes: int, largest: int, imbalance: float) -> list[int]:
    """Images per class, head to tail: floor(largest · (1/imbalance)^(c/(C−1))) (Cao et al. 2019, REFERENCE A2)."""
    if num_classes < 1 or largest < 1 or imbalance < 1:
        raise ValueError(
            f"num_classes and largest must be at least 1 and imbalance at least 1, "
            f"not {num_classes}, {largest}, {imbalance}"
        )
    share = [(1 / imbalance) ** (c / max(num_classes - 1, 1)) for c in range(num_classes)]
    # the margin keeps 500 · 0.01 from becoming 4 where the product falls a rounding below 5
    return [int(largest * s + 1e-9) for s in share]


def long_tail_cut(images: ImageSet, imbalance: float) -> ImageSet:
    """The first n_c images of each class in their order. DataError where a class has too few for its place."""
    return images.take(long_tail_rows(images.labels, images.classes, imbalance))


def long_tail_rows(labels: Labels, classes: Sequence[str], imbalance: float) -> NDArray[np.int64]:
    """Which images `long_tail_cut` keeps, in their order."""
    available = np.bincount(labels, minlength=len(classes))
    wanted = long_tail_counts(len(classes), int(available.max()), imbalance)
    for name, want, have in zip(classes, wanted, available, strict=True):
        if want > have:
            raise DataError(
                f"imbalance {imbalance:g} asks for {want} images of class {name!r}, which has {have}: "
                "use a larger imbalance, or leave it out to take the data as they are"
            )
        if want == 0:
            raise DataError(f"imbalance {imbalance:g} leaves class {name!r} without an image: use a smaller one")
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:n] for c, n in enumerate(wanted)]))


def salted(keys: Keys, salt: str) -> Keys:
    """Other keys that follow from these: a split by them has nothing to do with a split by the keys themselves."""
    seed = salt.encode()
    return np.array([content_key(seed + key.to_bytes(8, "big")) for key in keys.tolist()], np.uint64)


def held_back(units: Keys, labels: Labels | None, fraction: float) -> NDArray[np.bool_]:
    """bool [N]: which images are kept from training for calibration; about `fraction` of them, chosen by content.

    `units` are the images' content keys, or one key for all images that must stay together. A unit is held back where
    its key, as a number in [0, 1), lies below `fraction`: nothing else moves when files are added, removed or renamed.
    Bounds of each class (of all images, where `labels` is None) come before the share: a class of fewer than
    FEWEST_IMAGES images holds back none, any other at least one unit where it has two, and at most halfway from the
    share to all; as few units as possible change sides for it.
    """
    names, of = np.unique(units, return_inverse=True)  # ascending, so a unit's number ranks its key
    held = names.astype(np.float64) / 2.0**64 < fraction
    if fraction <= 0 or not len(units):
        return held[of]
    labels = np.zeros(len(units), np.int64) if labels is None else labels
    pairs, images = np.unique(labels * len(names) + of, return_counts=True)  # a row for each unit of each class
    classes, members = np.divmod(pairs, len(names))
    starts = np.flatnonzero(np.diff(classes, prepend=-1))
    by_class = dict(zip(classes[starts].tolist(), np.split(np.arange(len(pairs)), starts[1:]), strict=True))
    totals = np.bincount(labels)
    most = np.where(totals < FEWEST_IMAGES, 0, (1 + fraction) / 2 * totals)
    for label, rows in by_class.items():  # release, the largest keys first
        own, count = members[rows], images[rows]
        while count[held[own]].sum() > most[label]:
            held[own[held[own]][-1]] = False
    by_unit = np.split(np.argsort(members, kind="stable"), np.cumsum(np.bincount(members))[:-1])
    for label, rows in by_class.items():  # hold one, the smallest unit that keeps every class within its bound
        if totals[label] < FEWEST_IMAGES or held[members[rows]].any():
            continue
        for row in rows[np.argsort(images[rows], kind="stable")]:
            held[members[row]] = True
            touched = (by_class[c] for c in classes[by_unit[members[row]]].tolist())
            if all(images[r][held[members[r]]].sum() <= most[classes[r[0]]] for r in touched):
                break
            held[members[row]] = False
    return held[of]


def dealt(units: Keys, labels: Labels, number: int) -> NDArray[np.int64]:
    """int64 [N]: which of `number` folds each image is in.

    A unit (one key for all images that must stay together) is in one fold, which is the one that has the fewest images
    of its class; large units are dealt out first, equal ones by their keys.
    """
    _, unit, size = np.unique(units, return_inverse=True, return_counts=True)
    found = np.full(len(units), -1, np.int64)
    filled, total = np.zeros((labels.max(initial=-1) + 1, number), np.int64), np.zeros(number, np.int64)
    members = np.split(np.argsort(unit, kind="stable"), np.cumsum(size)[:-1])
    for one in np.argsort(-size, kind="stable").tolist():
        classes, counts = np.unique(labels[members[one]], return_counts=True)
        main = classes[counts.argmax()]
        fold = int(np.lexsort((total, filled[main]))[0])
        found[members[one]] = fold
        filled[classes, fold] += counts
        total[fold] += counts.sum()
    return found


def folds(units: Keys, labels: Labels, learnt: NDArray[np.bool_], number: int) -> NDArray[np.int64]:
    """int64 [N]: `dealt`, or -1: in no fold, as each class keeps an image of those that are `learnt` [N] outside every
    fold."""
    found = dealt(units, labels, number)
    _, unit = np.unique(units, return_inverse=True)
    for label in range(labels.max(initial=-1) + 1):
        own = np.flatnonzero(labels == label)
        for fold in range(number):
            if not (learnt[own] & (found[own] != fold)).any():
                found[np.isin(unit, unit[own[found[own] == fold]])] = -1
    return found


def expected_held_back(counts: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    """[C]: how many of so many images of each class `held_back` keeps, rounded; it draws about as many."""
    share = np.round(fraction * counts).astype(np.int64)
    bounded = np.clip(share, 1, np.maximum((1 + fraction) / 2 * counts, 1).astype(np.int64))
    return np.where((counts < FEWEST_IMAGES) | (fraction <= 0), 0, bounded)


def calibration_split(images: ImageSet, fraction: float) -> tuple[ImageSet, ImageSet]:
    """(rest, calibration) by `held_back`: each in the order of `images`."""
    held = held_back(images.keys, images.labels, fraction)
    return images.take(np.flatnonzero(~held)), images.take(np.flatnonzero(held))


def tail_classes(counts: NDArray[np.int64], fraction: float) -> NDArray[np.bool_]:
    """bool [C]: the rarest `fraction` of the classes, C − round((1 − k)·C) of them; ties by class order (A5)."""
    order = np.argsort(-counts, kind="stable")
    tail = np.zeros(len(counts), bool)
    tail[order[round((1 - fraction) * len(counts)) :]] = True
    return tail
