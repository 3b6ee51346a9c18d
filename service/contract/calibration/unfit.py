"""Unfit images among those that are calibrated on: refused for their pixels, whatever they score (contract/reasons.py).

One rule for training, which measures pixels, for recalibration, which reads reasons from a ledger, and for costs.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from service.contract.calibration.calibrate import Scored

Flags = NDArray[np.bool_]
ABOVE = 1e-3  # of the span of the fit images' scores


def counted(scored: Scored, unfit: Flags) -> Scored:
    """Scores that thresholds come from, in which an unfit image lies just above all that are fit.

    Just above, as a threshold may have to be the score of such an image, and must be a number. The step follows the
    span of the scores and not their size: scores around -1000 may differ by thousandths.
    """
    fit = scored.scores[~unfit]
    if not unfit.any() or not len(fit):
        return scored
    highest = float(fit.max())
    above = highest + ABOVE * max(float(np.ptp(fit)), 1e-6 * abs(highest), 1e-9)
    return replace(scored, scores=np.where(unfit, above, scored.scores))


def refused(scored: Scored, unfit: Flags) -> Scored:
    """Scores for what an operating point costs: an unfit image is refused at any threshold."""
    return replace(scored, scores=np.where(unfit, np.inf, scored.scores)) if unfit.any() else scored
