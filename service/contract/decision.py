"""Scores and thresholds to accept or reject: the one place where a row of the graph becomes a decision.

    decide_row(manifest, probabilities, scores, "id95", "group").decision

Used by the service, by bulk scoring, and by training to measure what a decision costs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.contract.manifest import ClassInfo, Manifest
from service.contract.points import OperatingPoint, Scope
from service.contract.reasons import Reason, Unfit

__all__ = ["Decision", "Scope", "Verdict", "decide", "decide_row", "p_value", "rejects", "threshold"]
Decision = Literal["accept", "reject"]


@dataclass(frozen=True)
class Verdict:
    """What was decided about one image and why. `score` is the deciding score; it may be NaN. `reason` of a refusal,
    where the bundle tells them apart; `unfit`: what is the matter with the picture then."""

    class_index: int  # predicted
    score: float
    decision: Decision
    threshold: float
    operating_point: str
    scope: Scope
    p_value: float
    reason: Reason | None = None
    unfit: Unfit | None = None

    @property
    def asks_for_node(self) -> bool:
        """Whether a node of a taxonomy is told of the image: of a refused one, and not of an unfit picture."""
        return self.decision == "reject" and self.reason != "unfit"


def threshold(point: OperatingPoint, scope: Scope, group: str) -> float:
    """The threshold in force for images whose predicted class is in `group` and has none of its own."""
    return point.threshold if scope == "global" else point.group_thresholds[group]


def class_limit(point: OperatingPoint, scope: Scope, predicted: ClassInfo) -> float:
    """The threshold in force for an image whose predicted class is `predicted`."""
    if scope == "group" and point.class_thresholds and (own := point.class_thresholds.get(predicted.name)) is not None:
        return own
    return threshold(point, scope, predicted.group)


def rejects(score: float, limit: float) -> bool:
    """Reject when the score is strictly larger than the limit; a score that is not a number is never accepted."""
    return not score <= limit


def p_value(manifest: Manifest, score: float, scope: Scope, group: str) -> float:
    """Conformal p-value of a deciding score, (1 + #{calibration scores >= s}) / (n + 1) (Bates et al. 2023).

    The calibration images are those predicted in `group` where thresholds are by group (Mondrian conformal prediction),
    else all; where another mix of classes is expected in service than in training, each counts by its weight. It bounds
    false alarms on exchangeable in-distribution images and says nothing about how many outliers are caught. At an
    operating point with a level, an image is rejected exactly when its p-value is at most 1 - level.
    """
    return manifest.calibration.reference(scope, group).p_value(score)


def decide(manifest: Manifest, class_index: int, score: float, operating_point: str, scope: Scope) -> Verdict:
    """The verdict on one image from its predicted class and its deciding score.

    Raises KeyError when the bundle has no such operating point.
    """
    group = manifest.classes[class_index].group
    limit = class_limit(manifest.operating_points[operating_point], scope, manifest.classes[class_index])
    return Verdict(
        class_index=class_index,
        score=score,
        decision="reject" if rejects(score, limit) else "accept",
        threshold=limit,
        operating_point=operating_point,
        scope=scope,
        p_value=p_value(manifest, score, scope, group),
    )


def decide_row(
    manifest: Manifest,
    probabilities: NDArray[np.float32],
    scores: Mapping[str, float],
    operating_point: str,
    scope: Scope,
    quality: NDArray[np.float32] | None = None,
    side_px: int | None = None,
) -> Verdict:
    """The verdict on one image from what the graph gives for it: `probabilities` [C], every score by name and, where
    the bundle tells refusals apart, `quality` [3]; `side_px` is the shorter side of the upload.

    The predicted class is the most probable one, the first of equals. An unfit image is refused whatever its score, and
    has the p-value of one that is more outlying than all, as such images count in calibration. Raises KeyError as
    `decide`.
    """
    best = int(probabilities.argmax())
    verdict = decide(manifest, best, scores[manifest.deciding_score], operating_point, scope)
    if (reasons := manifest.reasons) is None:
        return verdict
    if quality is not None and side_px is not None and (unfit := reasons.limits.broken(quality, side_px)):
        p = p_value(manifest, math.inf, scope, manifest.classes[best].group)
        return replace(verdict, decision="reject", reason="unfit", unfit=unfit, p_value=p)
    if verdict.decision == "accept":
        return verdict
    usual = class_limit(manifest.operating_points[manifest.default_operating_point], scope, manifest.classes[best])
    limit, unknown = max(verdict.threshold, usual), scores[reasons.unknown_score]
    return replace(verdict, reason=reasons.name(verdict.score, limit, unknown, float(probabilities[best])))
