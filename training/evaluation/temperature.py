"""The temperature of the probabilities, from the calibration split."""

import math

import numpy as np
from numpy.typing import ArrayLike


def fit_temperature(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """The T that minimises the NLL of softmax(log p / T) (Guo et al. 2017). Probabilities [N, C] at T = 1, labels [N].

    log p equals the logits up to a constant per row, so the fit is the one on logits. In [0.2, 20]. Where every image
    is classified correctly the NLL falls forever as T → 0 and says nothing about confidence: then T = 1.
    """
    log_p = np.log(np.maximum(np.asarray(probabilities, np.float64), 1e-30))
    truth = np.asarray(labels)
    if (log_p.argmax(axis=1) == truth).all():
        return 1.0

    def nll(log_t: float) -> float:
        z = log_p / math.exp(log_t)
        z -= z.max(axis=1, keepdims=True)
        return float((np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(truth)), truth]).mean())

    from scipy.optimize import minimize_scalar  # takes half a second to import

    found = minimize_scalar(nll, bounds=(math.log(0.2), math.log(20)), method="bounded")
    return float(math.exp(found.x))
