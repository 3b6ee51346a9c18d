"""The drift alerts of docker/prometheus/rules as functions of the counts in a window; a test holds the two together."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.drift.scores import GROUPS
from tests.drift.streams import Counts, Floats, over_window

EVALUATION_S = 15
WINDOWS_S = {"5m": 300, "1h": 3600}  # each window is a series of its own, and so is each group
HOLD_S = 300  # `for`
Z = 4.0
EFFECT = 0.05
REJECTION_IMAGES = 100
KS_C = 2.2252
KS_IMAGES = 500
TAIL_IMAGES = 50
TAIL_TIMES = 3.0
UNTESTED = "5 points off, untested"

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Expected:
    """What the metrics publish: `rejection` and `images` [4] by predicted group, the last for all; `cdf` [B]."""

    rejection: Floats
    images: Floats
    cdf: Floats


def rejection(counts: Counts) -> tuple[Floats, Floats]:
    """Share rejected and images, [..., 4]: by group, the last for all. The share of no images is 0."""
    n = np.concatenate([counts.group, counts.group.sum(-1, keepdims=True)], -1)
    rejected = np.concatenate([counts.rejected, counts.rejected.sum(-1, keepdims=True)], -1)
    return rejected / np.maximum(n, 1), n


def z_score(share: Floats, n: Floats, expected: Expected) -> Floats:
    """Two-proportion z, pooled: the expectation was itself measured on `expected.images` images."""
    pooled = (share * n + expected.rejection * expected.images) / (n + expected.images)
    error = np.sqrt(pooled * (1 - pooled) * (1 / np.maximum(n, 1) + 1 / np.maximum(expected.images, 1)))
    z: Floats = (share - expected.rejection) * (n > 0) / np.maximum(error, 1e-9)
    return z


def ks(counts: Counts, expected: Expected) -> tuple[Floats, Floats]:
    """Kolmogorov-Smirnov distance at the bounds of the histogram, and what it may be; [...] each."""
    n = np.maximum(counts.images, 1)
    distance = np.abs(np.cumsum(counts.bucket, -1) / n[..., None] - expected.cdf).max(-1)
    bound = np.minimum(KS_C * np.sqrt(1 / n + 1 / expected.images[-1]), 1)
    return distance * (counts.images > 0), bound


def wilson_lower(share: Floats, n: Floats, z: float = Z) -> Floats:
    n = np.maximum(n, 1)
    middle = share + z * z / (2 * n) - z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return np.maximum(middle / (1 + z * z / n), 0)


def rejection_off(counts: Counts, expected: Expected) -> Flags:
    share, n = rejection(counts)
    off = np.abs(share - expected.rejection) > EFFECT
    return (np.abs(z_score(share, n, expected)) > Z) & off & (n >= REJECTION_IMAGES)


def score_drift(counts: Counts, expected: Expected) -> Flags:
    distance, bound = ks(counts, expected)
    return ((distance > bound) & (counts.images >= KS_IMAGES))[..., None]


def tail_refused(counts: Counts, expected: Expected) -> Flags:
    share, n = (column[..., [len(GROUPS) - 1]] for column in rejection(counts))
    return (n >= TAIL_IMAGES) & (wilson_lower(share, n) > TAIL_TIMES * expected.rejection[-1])


def untested(counts: Counts, expected: Expected) -> Flags:
    """For comparison, no alert of ours: a share off by EFFECT, whatever the number of images."""
    share, n = rejection(counts)
    return (np.abs(share - expected.rejection) > EFFECT) & (n > 0)


# Each gives the condition by series, [..., T, series].
ALERTS: dict[str, Callable[[Counts, Expected], Flags]] = {
    "TailGuardRejectionOff": rejection_off,
    "TailGuardScoreDrift": score_drift,
    "TailGuardTailRefused": tail_refused,
    UNTESTED: untested,
}


def firing(condition: Flags, hold_s: int = HOLD_S) -> Flags:
    """Where any series' condition [..., T, series] has held at every evaluation of the last `hold_s`: [..., T]."""
    steps = hold_s // EVALUATION_S + 1
    held = over_window(condition.astype(np.float64), steps) == steps
    fires = np.zeros(condition.shape[:-1], bool)
    fires[..., steps - 1 :] = held.any(-1)
    return fires
