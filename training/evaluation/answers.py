"""What a manifest says of answers beyond accept and reject: sets of classes, nodes of a taxonomy, and how each held.

Both are calibrated on the images that thresholds rest on, and measured on others: the test images, or fold by fold on
images whose head has not seen them.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from service.contract.calibration import sets, taxonomy
from service.contract.calibration.calibrate import Floats, Ints, Json, Weighted
from service.contract.calibration.groups import Groups
from service.contract.taxonomy import Taxonomy, Tree
from training.data.taxonomy import Taxonomy as Found
from training.evaluation.pairs import Pair, Probabilities


def sets_of(known: Weighted, probabilities: Probabilities, pairs: Sequence[Pair], groups: Groups) -> Json:
    """service.contract.sets.Sets; what is measured comes from `pairs`, nothing where these hold no image."""
    measured = []
    labels = np.concatenate([pair.labels for pair in pairs])
    references = [sets.references(pair.known_probabilities, pair.known, groups) for pair in pairs]
    for level in sets.LEVELS if len(labels) else ():
        parts = [
            sets.outcome(found, groups, pair.probabilities, pair.labels, level)
            for found, pair in zip(references, pairs, strict=True)
        ]
        measured.append(sets.figures(level, sets.pooled(parts), groups.of_class[labels], groups.names))
    found = sets.references(probabilities, known, groups)
    return {"references": {name: r.model_dump() for name, r in found.items()}, "measured": measured}


def taxonomy_of(
    tree: Found, classes: Sequence[str], error: float, known: Weighted, probabilities: Probabilities,
    pairs: Sequence[Pair], groups: Groups,
) -> Json:  # fmt: skip
    """service.contract.taxonomy.Taxonomy; what is measured comes from `pairs`."""
    paths = tree.of(classes)
    made = _made(tree.source, paths, error, known, probabilities, groups)
    told = list(_told(tree.source, paths, error, pairs, groups))
    for level in made["levels"]:
        level["measured_told"] = sum(pair.depths.get(level["depth"], (0, 0))[0] for pair in told)
        level["measured_wrong"] = sum(pair.depths.get(level["depth"], (0, 0))[1] for pair in told)
    strangers = [share for pair in told for share in pair.outliers_told]
    images = sum(len(pair.refused) for pair in pairs)
    measured = {
        "images": images,
        "refused": sum(int(pair.refused.sum()) for pair in pairs),
        "told": sum(level["measured_told"] for level in made["levels"]),
        "wrong": sum(level["measured_wrong"] for level in made["levels"]),
        "outliers_told": float(np.mean(strangers)) if strangers else None,
    }
    return made | {"measured": measured if images else None}


def _made(
    source: str, paths: Sequence[tuple[str, ...]], error: float, known: Weighted, probabilities: Probabilities,
    groups: Groups,
) -> Json:  # fmt: skip
    chosen = taxonomy.uncertain(known.images.scores, groups.of_class[known.images.predicted])
    weights = known.weights[chosen]
    found = taxonomy.levels(paths, probabilities[chosen], _labels(known)[chosen], weights, _new_weight(weights), error)
    return {
        "source": source, "paths": paths, "error": error, "uncertain": int(chosen.sum()), "levels": found,
        "measured": None,
    }  # fmt: skip


def _new_weight(weights: Floats) -> float:
    """Of a new image, which is one of many: that of the calibration images on average over the expected mix."""
    return float((weights**2).sum() / weights.sum()) if weights.sum() > 0 else 1.0


class _Told(NamedTuple):
    """By depth (told, wrong) of refused images, and of each OOD set the share of refused images that are told."""

    depths: dict[int, tuple[int, int]]
    outliers_told: list[float]


def _told(
    source: str, paths: Sequence[tuple[str, ...]], error: float, pairs: Sequence[Pair], groups: Groups
) -> Iterator[_Told]:
    for pair in pairs:
        made = _made(source, paths, error, pair.known, pair.known_probabilities, groups)
        tree = Tree(Taxonomy.model_validate(made))
        depths: dict[int, tuple[int, int]] = {}
        labels = pair.labels
        for i in np.flatnonzero(pair.refused).tolist():
            if node := tree.deepest(pair.probabilities[i]):
                told, wrong = depths.get(node.depth, (0, 0))
                right = paths[labels[i]][: node.depth] == node.path
                depths[node.depth] = told + 1, wrong + (not right)
        shares = [
            float(np.mean([tree.deepest(row) is not None for row in out.probabilities[out.refused]]))
            for out in pair.outside
            if out.refused.any()
        ]
        yield _Told(depths, shares)


def _labels(known: Weighted) -> Ints:
    assert known.images.labels is not None
    return known.images.labels
