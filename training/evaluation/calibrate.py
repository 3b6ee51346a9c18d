"""Temperature, operating points and reference distributions, from the calibration split and held-back outliers only."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar

from service.contract.bundle import GROUPS
from service.contract.decision import rejects
from training.runs.files import Json

LEVEL = 0.95
SHRINK_IMAGES = (
    20  # a group of this size has half the say in its threshold: 19 images are the fewest that hold a 95% quantile
)
MARGIN = 0.01  # of the range of the scores, where no neighbour shows how far a threshold may lie
MOST_REFERENCE_SCORES = 2000
QUANTILE_LEVELS = tuple(round(i / 100, 2) for i in range(101))
DESCRIPTIONS = {
    "id95": "keeps 95% of in-distribution images like those of the calibration split; needs no outliers",
    "ood95": "catches 95% of the calibration outliers: the threshold behind PASCL's FPR95",
}
Floats = NDArray[np.float64]


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

    found = minimize_scalar(nll, bounds=(math.log(0.2), math.log(20)), method="bounded")
    return float(math.exp(found.x))


def keep_threshold(id_scores: Floats) -> float:
    """A t with which `reject if s > t` is a conformal test at 1 − LEVEL: at least the ⌈(n+1)·.95⌉-th smallest score.

    It lies midway to the next larger score, so that no calibration image sits on it and rounding decides nothing. With
    fewer than 19 scores no finite t is conformal; then, as without a larger score, it is a little above the largest.
    """
    ordered = np.sort(id_scores)
    kept = ordered[min(math.ceil((len(ordered) + 1) * LEVEL), len(ordered)) - 1]
    above = ordered[ordered > kept]
    return float((kept + above[0]) / 2 if len(above) else kept + MARGIN * (kept - ordered[0]))


def catch_threshold(outlier_scores: Floats) -> float:
    """A t with which `reject if s > t` catches LEVEL of the outliers (or just more), midway to the next smaller one."""
    ordered = np.sort(outlier_scores)
    caught = ordered[len(ordered) - math.ceil(len(ordered) * LEVEL)]
    below = ordered[ordered < caught]
    return float((caught + below[-1]) / 2 if len(below) else caught - MARGIN * max(ordered[-1] - caught, 1e-3))


def by_group(threshold: float, scores: Floats, groups: NDArray[np.str_], quantile: object) -> dict[str, float]:
    """A threshold per predicted group, shrunk towards the global one: (n·t_g + n0·t) / (n + n0), n0 = SHRINK_IMAGES."""
    out: dict[str, float] = {}
    for group in GROUPS:
        own = scores[groups == group]
        n = len(own)
        value = quantile(own) if n else threshold  # type: ignore[operator]
        out[group] = float(np.float32((n * value + SHRINK_IMAGES * threshold) / (n + SHRINK_IMAGES)))
    return out


def operating_points(
    id_scores: Floats, id_groups: NDArray[np.str_], outlier_scores: Floats, outlier_groups: NDArray[np.str_]
) -> dict[str, Json]:
    """`id95`, and `ood95` where there are outliers: the global threshold and those by group of the predicted class."""
    points: dict[str, Json] = {}
    for name, scores, groups, quantile in (
        ("id95", id_scores, id_groups, keep_threshold),
        ("ood95", outlier_scores, outlier_groups, catch_threshold),
    ):
        if len(scores):
            limit = quantile(scores)
            points[name] = {
                "description": DESCRIPTIONS[name],
                "threshold": limit,
                "group_thresholds": by_group(limit, scores, groups, quantile),
            }
    return points


def rejected(
    scores: NDArray[np.floating[Any]], predicted_groups: NDArray[np.str_], point: Json, scope: str
) -> NDArray[np.bool_]:
    """bool [N]: what service.contract.decision says of each image."""
    limits = point["group_thresholds"]
    return np.array(
        [
            rejects(float(s), point["threshold"] if scope == "global" else limits[g])
            for s, g in zip(scores, predicted_groups, strict=True)
        ],
        dtype=bool,
    )


def shares(flags: NDArray[np.bool_], groups: NDArray[np.str_]) -> dict[str, float | None]:
    return {g: float(flags[groups == g].mean()) if (groups == g).any() else None for g in GROUPS}


def cost(
    point: Json, scope: str, id_scores: Floats, id_predicted: NDArray[np.str_], id_true: NDArray[np.str_],
    outliers: list[tuple[Floats, NDArray[np.str_]]],
) -> Json:  # fmt: skip
    """contract.bundle.Cost of an operating point; `outliers`: (scores, predicted groups) of each set, unweighted."""
    flags = rejected(id_scores, id_predicted, point, scope)
    caught = [(rejected(s, g, point, scope), g) for s, g in outliers if len(s)]
    by_predicted: dict[str, float | None] = {}
    for group in GROUPS:
        of_sets = [x for x in (shares(f, g)[group] for f, g in caught) if x is not None]
        by_predicted[group] = float(np.mean(of_sets)) if of_sets else None
    return {
        "in_distribution_images": len(id_scores),
        "outlier_images": sum(len(s) for s, _ in outliers),
        "id_rejected": float(flags.mean()),
        "id_rejected_by_group": shares(flags, id_true),
        "id_rejected_by_predicted_group": shares(flags, id_predicted),
        "outliers_caught": float(np.mean([f.mean() for f, _ in caught])) if caught else None,
        "outliers_caught_by_predicted_group": by_predicted,
    }


def reference_scores(id_scores: Floats) -> list[float]:
    """The calibration scores in ascending order, thinned to evenly spaced order statistics where there are many."""
    ordered = np.sort(id_scores)
    if len(ordered) > MOST_REFERENCE_SCORES:
        ordered = ordered[np.linspace(0, len(ordered) - 1, MOST_REFERENCE_SCORES).round().astype(int)]
    return [float(s) for s in ordered]


def quantiles(id_scores: Floats, id_groups: NDArray[np.str_], outlier_scores: Floats) -> dict[str, list[float]]:
    """Quantiles at QUANTILE_LEVELS: all, many, medium, few (group of the true class), outliers; empty sets left out."""
    sets: dict[str, Floats] = {"all": id_scores}
    sets |= {g: id_scores[id_groups == g] for g in GROUPS}
    sets["outliers"] = outlier_scores
    return {name: [float(q) for q in np.quantile(s, QUANTILE_LEVELS)] for name, s in sets.items() if len(s)}
