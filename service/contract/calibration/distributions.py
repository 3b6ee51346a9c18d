"""Scores of calibration images as a manifest keeps them, for metrics and drift to be compared with."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.contract.reference import ALL

MOST_SCORES = 2000
QUANTILE_LEVELS = tuple(round(i / 100, 2) for i in range(101))
Floats = NDArray[np.float64]
Names = NDArray[np.str_]


def distribution(scores: Floats, weights: Floats) -> list[float]:
    """The scores in ascending order, as they are where they are few and count alike, else MOST_SCORES quantiles."""
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    if len(ordered) > MOST_SCORES or len(np.unique(weights)) > 1:
        up_to = np.cumsum(weights[order])
        count = min(len(ordered), MOST_SCORES)
        places = np.searchsorted(up_to, (np.arange(count) + 0.5) / count * up_to[-1])
        ordered = ordered[np.minimum(places, len(ordered) - 1)]
    return [float(s) for s in ordered]


def quantiles(scores: Floats, groups: Names, names: Sequence[str], outlier_scores: Floats) -> dict[str, list[float]]:
    """Quantiles at QUANTILE_LEVELS: all, each group (of the true class), outliers; empty sets left out."""
    sets: dict[str, Floats] = {ALL: scores, **{g: scores[groups == g] for g in names}, "outliers": outlier_scores}
    return {name: [float(q) for q in np.quantile(s, QUANTILE_LEVELS)] for name, s in sets.items() if len(s)}
