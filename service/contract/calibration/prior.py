"""Which mix of classes do a model's probabilities presume, and which mix has a stream of images?

A classifier learns p(class | image) for the mix it was trained to expect: that of its training images or, after logit
adjustment, re-weighting or re-sampling, a flatter one. Saerens, Latinne & Decaestecker (2002) estimate the mix of an
unlabelled stream by EM, given the presumed mix, and an estimate from the wrong one is worth nothing. Between the two
ends lies one family, training share ^ tau, whose tau is chosen by likelihood on calibration images: one number, so a
tail of a few images each does not spoil it.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TAUS = (-1.0, 2.0)  # 1: the training mix, 0: all classes alike
STEPS = 40  # of the golden section: tau to 1e-8
GOLDEN = (5**0.5 - 1) / 2
SMALLEST = 1e-12  # of a probability
EM_STEPS = 200
EM_CHANGE = 1e-5  # of the mix in one step, at which it has settled


def presumed_shares(probabilities: Floats, labels: NDArray[np.int64], counts: NDArray[np.int64]) -> Floats:
    """The mix [C] that probabilities [N, C] presume, from calibration images with their labels [N].

    `counts` [C]: training images. The probabilities, brought to the mix of the calibration images, are most likely to
    give their labels: a concave function of tau, so a golden section finds its top.
    """
    given = np.log(np.maximum(probabilities, SMALLEST))
    trained = np.log(np.maximum(counts, 0.5) / counts.sum())
    own = np.log(np.maximum(np.bincount(labels, minlength=len(counts)), 0.5) / len(labels))
    rows = np.arange(len(labels))

    def likelihood(tau: float) -> float:
        moved = given + own - tau * trained
        top = moved.max(1, keepdims=True)
        return float((moved[rows, labels] - top[:, 0] - np.log(np.exp(moved - top).sum(1))).sum())

    low, high = TAUS
    for _ in range(STEPS):
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        if likelihood(left) < likelihood(right):
            low = left
        else:
            high = right
    shares = np.exp((low + high) / 2 * (trained - trained.max()))
    found: Floats = shares / shares.sum()
    return found


def stream_shares(probabilities: Floats, presumed: Floats) -> Floats:
    """The mix [C] of the stream that images with these probabilities [N, C] come from, N at least 1.

    EM on the mix alone, from the presumed one: probabilities brought to the mix so far, averaged, until it settles.
    """
    mix = presumed.copy()
    for _ in range(EM_STEPS):
        moved = probabilities * (mix / presumed)
        after = (moved / moved.sum(1, keepdims=True)).mean(0)
        if np.abs(after - mix).sum() < EM_CHANGE:
            return np.asarray(after)
        mix = after
    return mix
