"""Conformal sets of classes from calibration images, and what they come to on others (service/contract/sets.py)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.contract.calibration import conformal
from service.contract.calibration.calibrate import Ints, Json, Names, Weighted, shares
from service.contract.calibration.groups import Groups
from service.contract.reference import Reference
from service.contract.sets import PredictionSets, Sets, nonconformity

LEVELS = (0.8, 0.9, 0.95)  # measured for the card; a request may ask for any
ROWS_AT_ONCE = 4096
Probabilities = NDArray[np.floating]


def references(probabilities: Probabilities, known: Weighted, groups: Groups) -> dict[str, Reference]:
    """By group of the true class; groups without calibration images are left out.

    `probabilities` [N, C] of the calibration images. Where the expected mix leaves a group out, its images count alike.
    """
    labels = known.images.labels
    assert labels is not None
    scores = nonconformity(probabilities[np.arange(len(labels)), labels])
    found = {}
    for group in groups.names:
        own = groups.of_class[labels] == group
        if not own.any():
            continue
        weights, new_weight = known.weights[own], float(known.class_weights[groups.of_class == group].max())
        if not new_weight > 0:
            weights, new_weight = np.ones(int(own.sum())), 1.0
        found[group] = conformal.reference(conformal.raised(scores[own], scores), weights, new_weight, LEVELS)
    return found


class Outcome(NamedTuple):
    """Of N images: whether the set holds the true class, and how many classes it holds."""

    covered: NDArray[np.bool_]
    size: Ints
    too_few: tuple[str, ...] = ()


def outcome(
    found: dict[str, Reference], groups: Groups, probabilities: Probabilities, labels: Ints, level: float
) -> Outcome:
    """The sets of images with these probabilities [N, C] and labels [N]."""
    sets = PredictionSets(Sets(references=found, measured=()), groups.of_class.tolist())
    covered, size = np.zeros(len(labels), bool), np.zeros(len(labels), np.int64)
    for start in range(0, len(labels), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        inside = sets.contains(probabilities[part], level)
        covered[part] = inside[np.arange(len(inside)), labels[part]]
        size[part] = inside.sum(axis=1)
    return Outcome(covered, size, sets.limits(level).too_few)


def pooled(parts: Sequence[Outcome]) -> Outcome:
    """Several sets of images as one."""
    return Outcome(
        np.concatenate([p.covered for p in parts]), np.concatenate([p.size for p in parts]),
        tuple(dict.fromkeys(group for p in parts for group in p.too_few)),
    )  # fmt: skip


def figures(level: float, found: Outcome, true_groups: Names, names: Sequence[str]) -> Json:
    """service.contract.sets.SetFigures of at least one image; `true_groups` [N] are those of the true classes."""
    sizes = {g: found.size[true_groups == g] for g in names}
    return {
        "level": level,
        "images": len(found.size),
        "images_by_group": {g: len(size) for g, size in sizes.items()},
        "covered": float(found.covered.mean()),
        "covered_by_group": shares(found.covered, true_groups, names),
        "mean_size": float(found.size.mean()),
        "mean_size_by_group": {g: float(size.mean()) if len(size) else None for g, size in sizes.items()},
        "too_few": found.too_few,
    }
