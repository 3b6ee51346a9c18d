"""Scores and thresholds to accept or reject: the one place where a row of the graph becomes a decision.

    decide_row(manifest, probabilities, scores, "id95", "group").decision

Used by the service, by bulk scoring, and by training to measure what a decision costs.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.contract.bundle import Group, Manifest, OperatingPoint

Decision = Literal["accept", "reject"]
Scope = Literal["group", "global"]


@dataclass(frozen=True)
class Verdict:
    """What was decided about one image and why. `score` is the deciding score; it may be NaN."""

    class_index: int  # predicted
    score: float
    decision: Decision
    threshold: float
    operating_point: str
    scope: Scope
    p_value: float


def threshold(point: OperatingPoint, scope: Scope, group: Group) -> float:
    """The threshold in force for an image whose predicted class is in `group`."""
    return point.threshold if scope == "global" else point.group_thresholds[group]


def rejects(score: float, limit: float) -> bool:
    """Reject when the score is strictly larger than the limit; a score that is not a number is never accepted."""
    return not score <= limit


def p_value(manifest: Manifest, score: float) -> float:
    """Conformal p-value of a deciding score, (1 + #{calibration scores >= s}) / (n + 1) (Bates et al. 2023).

    It bounds false alarms on exchangeable in-distribution images; it says nothing about how many outliers are caught.
    Where the manifest keeps only every k-th order statistic the count is rounded up, so the bound still holds.
    """
    reference = manifest.calibration.id_scores
    n = manifest.calibration.in_distribution_images
    at_least = 0 if math.isnan(score) else len(reference) - bisect_left(reference, score)
    return (1 + math.ceil(at_least * n / len(reference))) / (n + 1)


def decide(manifest: Manifest, class_index: int, score: float, operating_point: str, scope: Scope) -> Verdict:
    """The verdict on one image from its predicted class and its deciding score.

    Raises KeyError when the bundle has no such operating point.
    """
    limit = threshold(manifest.operating_points[operating_point], scope, manifest.classes[class_index].group)
    return Verdict(
        class_index=class_index,
        score=score,
        decision="reject" if rejects(score, limit) else "accept",
        threshold=limit,
        operating_point=operating_point,
        scope=scope,
        p_value=p_value(manifest, score),
    )


def decide_row(
    manifest: Manifest,
    probabilities: NDArray[np.float32],
    scores: Mapping[str, float],
    operating_point: str,
    scope: Scope,
) -> Verdict:
    """The verdict on one image from what the graph gives for it: `probabilities` [C] and every score by name.

    The predicted class is the most probable one, the first of equals. Raises KeyError as `decide`.
    """
    best = int(probabilities.argmax())
    return decide(manifest, best, scores[manifest.deciding_score], operating_point, scope)
