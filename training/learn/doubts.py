"""Which labels are doubtful? Images that look, to the run's own backbone, like anything but what they are called.

One image of a blood cell that is labelled "melon" teaches a model with few melons that blood cells are melons: then it
accepts them all. So a label is compared with what the nearest labelled images say (k nearest neighbours with the labels
of training images, training outliers and other reviewed images; Cover & Hart 1967; for wrong labels Wilson 1972). An
image of a known class is never compared with its own group, whose images were labelled by the same key stroke.
"""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.contract.bundle import OUTLIER_LABEL
from training.config import Config
from training.data.fitted import Fitted
from training.data.listing import SHOWN
from training.data.loading import Data, load
from training.data.whole import replacing
from training.learn.reviewed import Reviewed
from training.network import frozen
from training.runs import checkpoint

Floats = NDArray[np.float32]
Names = NDArray[np.str_]
Ints = NDArray[np.int64]

NEIGHBOURS = 3  # of each label, by whose mean cosine the labels are put in order
BELIEVED = 3  # a label among the first three, or the first half, is believed: review is for what is hard to tell
STRANGE = 0.005  # so is one to whose images it is as alike as all but this share of the images of known classes are
MOST_KNOWN = 20_000  # training images and outliers that are compared with
MEASURED = 2000  # of them, whose likeness to their own class is measured
DOUBTFUL_FILE = "doubtful.csv"


def left_out(found: Reviewed, run: Path, config: Config, work: Path, notes: list[str]) -> Reviewed:
    """`found` without the images whose label is doubtful; those are listed in `work`/doubtful.csv.

    `config` are the settings of `run`, which stands on a frozen backbone.
    """
    backbone = frozen.load(config, run).as_recorded(checkpoint.load(run)["provenance"]["backbone"])
    data = backbone.data(load(config, run, target=backbone.target))
    ours = replace(backbone.cache, folder=work / frozen.CACHE_FOLDER)
    files = Fitted(found.paths, found.keys, backbone.target, checked=True)
    images = np.asarray(ours.features("reviewed", files, views=1)[:, 0])
    known, labels = _known(data)
    said = np.where(found.outliers, OUTLIER_LABEL, found.labels)
    doubts = doubtful(images, said, found.groups, known, labels, data.train.classes)
    with replacing(work / DOUBTFUL_FILE) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        rows = [(found.paths[i], said[i], looks_like) for i, looks_like in doubts.items()]
        csv.writer(file).writerows([("path", "label", "looks_like"), *rows])
    if doubts:
        named = Counter(f"{said[i]}, which look like {like}" for i, like in doubts.items()).most_common(SHOWN)
        notes.append(
            f"left out {len(doubts)} doubtful labels ({'; '.join(f'{n} {what}' for what, n in named)}): look again at "
            f"those in {work / DOUBTFUL_FILE}, or keep them with --doubtful keep"
        )
    kept = np.ones(len(found), bool)
    kept[list(doubts)] = False
    return found.take(kept)


def _known(data: Data) -> tuple[Floats, Names]:
    """Features and labels of the run's training images and outliers, evenly over their order where they are many."""
    parts = [(data.train.images, np.array(data.train.classes)[data.train.labels]),
             (data.outliers, np.full(len(data.outliers), OUTLIER_LABEL))]  # fmt: skip
    half = MOST_KNOWN // 2
    rows, labels = [], []
    for images, names in parts:
        if len(names):
            chosen = _evenly(len(names), half)
            rows.append(np.asarray(images[chosen][:, 0], np.float32))
            labels.append(names[chosen].astype(np.str_))
    return np.concatenate(rows), np.concatenate(labels)


def _evenly(count: int, most: int) -> Ints:
    """At most `most` of the places of `count` images, evenly over their order."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def doubtful(
    images: Floats, labels: Names, groups: Names, known: Floats, known_labels: Names, checked: Sequence[str]
) -> dict[int, str]:
    """Place of each doubtful image → the label that its neighbours suggest.

    `images` [N, F] have `labels` and `groups` [N] ("" is a group of one), `known` [K, F] have `known_labels` [K].
    Outliers are not judged, as they may look like anything. An image of a class in `checked` is not compared with its
    own group; of any other class nothing is known but reviewed images, so there it is, and one alone is not judged.
    """
    every = np.concatenate([known_labels, labels])
    names, number = np.unique(every, return_inverse=True)
    rows = _units(np.concatenate([known, images]))
    least = _least_alike(rows[: len(known)], number[: len(known)], np.isin(names, np.array(checked)))
    believed, found = min(BELIEVED, len(names) // 2), {}
    for i in np.flatnonzero(labels != OUTLIER_LABEL).tolist():
        alike = rows @ rows[len(known) + i]
        own = (groups == groups[i]) & (groups != "") & (labels[i] in checked)
        own[i] = True
        alike[len(known) :][own] = -np.inf
        means = _likeness(alike, number, len(names))
        order = np.argsort(-means, kind="stable")
        if labels[i] not in names[order[:believed]] and -np.inf < means[number[len(known) + i]] < least:
            found[i] = str(names[order[0]])
    return found


def _least_alike(rows: Floats, number: Ints, checked: NDArray[np.bool_]) -> float:
    """What all but a share STRANGE of the images of `checked` classes exceed in likeness to their own class."""
    places = np.flatnonzero(checked[number])
    places = places[_evenly(len(places), MEASURED)]
    own = []
    for i in places.tolist():
        alike = np.where(number == number[i], rows @ rows[i], -np.inf)
        alike[i] = -np.inf
        own.append(_likeness(alike, number, len(checked))[number[i]])
    measured = np.array(own)[np.isfinite(own)]
    return float(np.quantile(measured, STRANGE)) if len(measured) else -np.inf


def _likeness(alike: Floats, number: Ints, labels: int) -> Floats:
    """Of each label the mean cosine of its NEIGHBOURS most alike images, of fewer where there are; -inf of none."""
    order = np.flatnonzero(np.isfinite(alike))
    order = order[np.lexsort((-alike[order], number[order]))]
    of = number[order]
    near = np.arange(len(of)) - np.searchsorted(of, np.arange(labels))[of] < NEIGHBOURS
    sums = np.bincount(of[near], alike[order][near], minlength=labels)
    counts = np.bincount(of[near], minlength=labels)
    means = np.divide(sums, counts, out=np.full(labels, -np.inf), where=counts > 0)
    return np.asarray(means, np.float32)


def _units(rows: Floats) -> Floats:
    """Rows of length 1 after every feature was standardised, so that none outweighs the others."""
    spread = rows.std(axis=0)
    standard = (rows - rows.mean(axis=0)) / np.where(spread > 0, spread, 1)
    return np.asarray(standard / np.maximum(np.linalg.norm(standard, axis=1, keepdims=True), 1e-12), np.float32)
