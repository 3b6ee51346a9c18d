"""One classified image to the body of its answer, in the shape of schemas.Answer."""

import math
from typing import Any

from service.contract.bundle import Manifest
from service.contract.decision import Verdict
from service.inference.model import DecisionParameters, Model
from service.inference.pipeline import Row


def answer(
    request_id: str, current: Model, parameters: DecisionParameters, row: Row, verdict: Verdict, times: dict[str, float]
) -> dict[str, Any]:
    """The answer for one image: its `parameters.top_k` classes in falling order of probability, scores and verdict.

    A plain dictionary: its shape is written down once, in schemas.Answer, and held to that by the tests; building and
    validating the model for every request would cost more than everything else here.
    """
    manifest, best = current.manifest, verdict.class_index
    top = top_classes(manifest, row, parameters.top_k)
    return {
        "request_id": request_id,
        "model": {"name": manifest.name, "version": manifest.version},
        "label": manifest.classes[best].name,
        "class_index": best,
        "group": manifest.classes[best].group,
        "probability": finite(float(row.probabilities[best])),
        "top_k": top,
        "scores": {name: finite(value) for name, value in row.scores.items()},
        "deciding_score": {
            "name": manifest.deciding_score,
            "value": finite(verdict.score),
            "threshold": verdict.threshold,
            "scope": verdict.scope,
            "operating_point": verdict.operating_point,
        },
        "p_value": verdict.p_value,
        "decision": verdict.decision,
        "image": {"width_px": row.width_px, "height_px": row.height_px},
        "stage_times": times,
    }


def top_classes(manifest: Manifest, row: Row, top_k: int) -> list[dict[str, Any]]:
    """The `top_k` most probable classes; of equals the first, as argmax has it."""
    values = row.probabilities.tolist()
    order = (-row.probabilities).argsort(kind="stable")[:top_k].tolist()
    return [{"label": manifest.classes[i].name, "class_index": i, "probability": finite(values[i])} for i in order]


def milliseconds(seconds: float) -> float:
    return round(max(0.0, seconds) * 1e3, 3)


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON knows no NaN
