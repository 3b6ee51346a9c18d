"""From which probability on a node of a taxonomy can be promised (service/contract/taxonomy.py).

Refused images are harder than all, so thresholds rest on the calibration images that are most like them: those with the
largest deciding scores among the images predicted in their group. Of these, in the order of the service, the ones whose
node reaches a threshold are told it; from the most probable nodes downwards, the threshold stays where
(wrong + 1) / (told + 1) is at most the error that is allowed, which counts a new image as wrong. An error of .05 needs
19 images without a wrong one; where there are fewer nothing is promised at that depth.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.contract.calibration.calibrate import Floats, Ints, Json, Names
from service.contract.taxonomy import Nodes, Path

ERROR = 0.05
UNCERTAIN_SHARE = 0.25  # of the calibration images of a group: five times those that id95 refuses
Flags = NDArray[np.bool_]


def uncertain(scores: Floats, predicted_groups: Names, share: float = UNCERTAIN_SHARE) -> Flags:
    """bool [N]: the images with the largest scores [N], this share of those predicted in each group, rounded up."""
    found = np.zeros(len(scores), bool)
    for group in np.unique(predicted_groups):
        own = np.flatnonzero(predicted_groups == group)
        found[own[np.argsort(-scores[own], kind="stable")[: int(np.ceil(share * len(own)))]]] = True
    return found


def levels(
    paths: Sequence[Path], probabilities: NDArray[np.floating], labels: Ints, weights: Floats, new_weight: float,
    error: float = ERROR,
) -> list[Json]:  # fmt: skip
    """service.contract.taxonomy.Level of each depth, from uncertain calibration images: probabilities [N, C], labels
    [N] and weights [N], that of a new image being `new_weight`."""
    found: list[Json] = []
    left = np.ones(len(labels), bool)  # not told anything deeper
    for depth in range(max(map(len, paths), default=0), 0, -1):
        best, right = best_nodes(paths, depth, probabilities[left], labels[left])
        limit = _threshold(best, right, weights[left], new_weight, error)
        told = np.zeros(len(best), bool) if limit is None else best >= limit
        found.append({"depth": depth, "threshold": limit, "told": int(told.sum()), "wrong": int((told & ~right).sum())})
        left[np.flatnonzero(left)[told]] = False
    return found[::-1]


def best_nodes(
    paths: Sequence[Path], depth: int, probabilities: NDArray[np.floating], labels: Ints
) -> tuple[Floats, Flags]:
    """([N] the probability of the most probable node at `depth`, [N] whether the true class lies below it)."""
    nodes = Nodes(paths, depth)
    sums = np.array([nodes.sums(row) for row in probabilities]).reshape(len(labels), len(nodes.paths))
    chosen = sums.argmax(axis=1)
    return sums.max(axis=1), chosen == nodes.of_class[labels]


def _threshold(best: Floats, right: Flags, weights: Floats, new_weight: float, error: float) -> float | None:
    """Down to where the most probable nodes are wrong in at most `error` of the images, a new one counted as wrong.

    From the first probability at which that holds downwards until it does not: to look for the last one would take
    thresholds for good that luck has made, and be wrong in up to twice as many (training/LOG.md).
    """
    order = np.argsort(-best, kind="stable")
    told = np.cumsum(weights[order])
    wrong = np.cumsum(np.where(right, 0.0, weights)[order])
    last_of_equals = np.append(np.diff(best[order]) != 0, True) if len(order) else np.zeros(0, bool)
    allowed = last_of_equals & (wrong + new_weight <= error * (told + new_weight))
    holds = allowed[last_of_equals]
    if not holds.any():
        return None
    ends = np.flatnonzero(~holds[holds.argmax() :])
    last = int(holds.argmax() + ends[0] - 1) if len(ends) else len(holds) - 1
    return float(best[order][last_of_equals][last])
