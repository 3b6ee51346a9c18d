"""Calibration scores to p-values: split conformal prediction, weighted, and for groups with few images.

With n scores of equal weight, p(s) = (1 + #{scores >= s}) / (n + 1) (Vovk et al. 2005; Bates et al. 2023). With weights
it is (w + weight of the scores >= s) / (w + weight of all scores), w that of the new image (Tibshirani et al. 2019).
Computed among the images predicted in a group, the bound on false alarms holds within that group (Mondrian).

n images give no p-value below 1 / (n + 1): 19 are needed for .05. A group with fewer borrows. Its p-values stay its own
up to its largest score; above that, p(s) = 1 / (n + 1 + j), where s exceeds the first j borrowed scores, in an order
drawn without looking at scores. So a group of n images has at most 1 / (n + 1) of its images refused whatever the
borrowed scores look like, and at most 1 - level when they look like its own.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from service.contract.reference import Reference, false_alarms

MOST_SCORES = 2000  # of a reference, about
ROUNDING = 1e-12  # of a p-value: a sum of weights may make .15 a little more, which no level would allow
SPREAD_MARGIN = 1e-4  # of the span between the 5% and the 95% quantile
LEAST_MARGIN = 1e-5  # of the same span of the scores of all groups: one image, or many of one score, have none
RELATIVE_MARGIN = 1e-6  # of a score: above the rounding of float32 and of the 7 digits that are kept
Floats = NDArray[np.float64]


def raised(scores: Floats, among: Floats) -> Floats:
    """Scores [N], each a little larger and rounded to 7 digits: other rounding does not refuse a calibration image.

    `among` [M]: the scores of all groups, where these are of one. Order and ties are kept. Raises ValueError for scores
    that are not finite.
    """
    if not len(scores):
        return scores
    if not np.isfinite(scores).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(scores))} of {len(scores)} calibration scores are NaN or "
                         "infinite: the network cannot be calibrated")  # fmt: skip
    margin = max(SPREAD_MARGIN * _span(scores), LEAST_MARGIN * _span(among))
    moved = scores + margin + RELATIVE_MARGIN * np.abs(scores)
    size = np.where(np.abs(moved) > 1e-250, np.abs(moved), 1.0)
    unit = 10.0 ** (6 - np.floor(np.log10(size)))
    return np.asarray(np.round(moved * unit) / unit)


def _span(scores: Floats) -> float:
    low, high = np.quantile(scores, [0.05, 0.95])
    return float(high - low)


def reference(
    scores: Floats,
    weights: Floats,
    new_weight: float,
    levels: Iterable[float],
    spare: Iterable[tuple[float, float]] = (),
) -> Reference:
    """The p-values of a group from its calibration scores [N], their weights [N] and that of a new image.

    `spare`: (score, weight) of images of other groups in the order of borrowing; as many are taken as the highest of
    `levels` needs. Raises ValueError when there is no score at all.
    """
    values, place = np.unique(scores, return_inverse=True)
    at = np.bincount(place, weights, minlength=len(values)) if len(values) else np.zeros(0)
    from_here = np.cumsum(at[::-1])[::-1]  # the weight of all scores at or above each value
    total = float(from_here[0]) if len(values) else 0.0
    steps = (np.append(from_here[1:], 0.0) + new_weight) / (total + new_weight)  # p-value just above each value
    if not len(values):
        steps = np.zeros(0)
    refused = [false_alarms(level) for level in levels]
    steps = _snapped(steps, refused)
    kept = _thinned(steps, refused)
    ends, p_values = values[kept].tolist(), [1.0, *steps[kept].tolist()]
    borrowed = 0
    enough = bool(ends) and p_values[-1] <= min(refused)
    for score, weight in () if enough else spare:
        borrowed += 1
        total += weight
        if not ends or score > ends[-1]:
            ends.append(score)
            p_values.append(p_values[-1])
        p_values[-1] = float(_snapped(np.array(new_weight / (total + new_weight)), refused))
        if p_values[-1] <= min(refused):
            break
    if not ends:
        raise ValueError("there is no calibration score to take a threshold from")
    return Reference(images=len(scores), borrowed=borrowed, scores=tuple(ends), p_values=tuple(p_values))


def _snapped(p: Floats, refused: Sequence[float]) -> Floats:
    """p-values, those that are one of `refused` but for rounding exactly so."""
    for share in refused:
        p = np.where(np.abs(p - share) < ROUNDING, share, p)
    return p


def own_bound(weights: Floats, new_weight: float) -> float:
    """The share of a group's images that exceed all of its own calibration images, at most: 1 / (n + 1) unweighted."""
    return new_weight / (float(weights.sum()) + new_weight)


def holds(bound: float, share: float) -> bool:
    """Whether a bound is at most a share: 19 images of one weight hold .05, whatever rounding makes of their sum."""
    return bound <= share + ROUNDING


def _thinned(steps: Floats, refused: Sequence[float]) -> NDArray[np.int64]:
    """Which values to keep: evenly spaced ones with both ends, and those at which a level refuses."""
    last = len(steps) - 1
    if last < MOST_SCORES:
        return np.arange(len(steps))
    even = np.arange(MOST_SCORES) * last // (MOST_SCORES - 1)
    limits = [int(np.argmax(steps <= share)) for share in refused if steps[-1] <= share]
    return np.unique(np.append(even, limits)).astype(np.int64)
