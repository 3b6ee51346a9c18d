"""The rule before issue 11, to be compared with: many, medium and few, shrunk towards the global threshold."""

import math

import numpy as np

from service.contract.calibration.calibrate import Scored
from tests.calibration.tails import Floats, Ints
from training.evaluation.metrics import SHOT_GROUPS, class_groups

SHRINK_IMAGES = 20


def thresholds_before(calibration: Scored, train_counts: Ints) -> Floats:
    """[C]: (n·t_g + 20·t) / (n + 20), t_g the quantile of the n images predicted in the group and t that of all."""
    groups = np.array(class_groups(train_counts))
    overall = _quantile(calibration.scores)
    limits = np.full(len(groups), overall)
    for group in SHOT_GROUPS:
        own = calibration.scores[groups[calibration.predicted] == group]
        if len(own):
            limit = (len(own) * _quantile(own) + SHRINK_IMAGES * overall) / (len(own) + SHRINK_IMAGES)
            limits[groups == group] = limit
    return limits


def _quantile(scores: Floats) -> float:
    """Midway from the conformal order statistic to the next larger score; a little above the largest where few."""
    ordered = np.sort(scores)
    kept = ordered[min(math.ceil((len(ordered) + 1) * 0.95), len(ordered)) - 1]
    above = ordered[ordered > kept]
    return float((kept + above[0]) / 2 if len(above) else kept + 0.01 * (kept - ordered[0]))
