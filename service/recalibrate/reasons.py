"""Shares of refusals by reason on reviewed rows: what a recalibrated manifest says of them.

The parts of the graph's score and the limits of the pixels stay; which refusals are unknown, unsure or unfit follows
from a row's scores, its reason where it was unfit, and the new threshold.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.bundle import Manifest
from service.contract.reasons import REASONS
from service.recalibrate.measured import Sample
from service.recalibrate.rows import Row

OUTLIERS = "reviewed outliers"
Json = dict[str, Any]


def told(manifest: Manifest, point: Json, found: Sample) -> Json:
    """The manifest's `reasons`, measured on the reviewed rows at the default operating point `point`."""
    assert manifest.reasons is not None
    inside, groups = found.inside, found.groups
    assert inside.images.labels is not None
    codes = _codes(manifest, point, found.known)
    true, predicted = (groups.of_class[of] for of in (inside.images.labels, inside.images.predicted))
    calibration = {
        "all": _shares(codes, inside.weights),
        "by_group": {g: _shares(codes[true == g], inside.weights[true == g]) for g in groups.names},
        "by_predicted_group": {g: _shares(codes[predicted == g], inside.weights[predicted == g]) for g in groups.names},
    }
    outliers = {OUTLIERS: _shares(_codes(manifest, point, found.strangers), found.outliers.weights)}
    return manifest.reasons.model_dump() | {
        "measured": {"calibration": calibration, "test": None, "outliers": outliers if found.strangers else {}}
    }


def _codes(manifest: Manifest, point: Json, rows: Sequence[Row]) -> NDArray[np.int64]:
    """0 accepted, else 1 + the place in REASONS."""
    reasons = manifest.reasons
    assert reasons is not None
    group = {c.name: c.group for c in manifest.classes}
    found = []
    for row in rows:
        score, unknown = row.scores[manifest.deciding_score], row.scores.get(reasons.unknown_score)
        limit = point["threshold"]
        if manifest.threshold_scope == "group":
            limit = point["group_thresholds"][group[row.predicted]]
        if row.unfit:
            found.append("unfit")
        elif score is not None and score <= limit:
            found.append("")
        else:
            sure = unknown is None or reasons.unknown.value(unknown) > limit
            found.append("unknown" if sure else "unsure")
    return np.array([1 + REASONS.index(r) if r else 0 for r in found], np.int64)


def _shares(codes: NDArray[np.int64], weights: NDArray[np.float64]) -> Json:
    total = float(weights.sum())
    return {"images": len(codes)} | {
        reason: float(weights[codes == i].sum()) / total if total else 0.0 for i, reason in enumerate(REASONS, 1)
    }
