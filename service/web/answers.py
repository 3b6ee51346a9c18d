"""One decided image to the body of its answer, in the shape of schemas.Answer."""

import math
from typing import Any

from service.contract.bundle import Manifest
from service.inference.pipeline import Row
from service.web.admission import Admitted
from service.web.record import Decided


def answer(admitted: Admitted[Any], decided: Decided) -> dict[str, Any]:
    """The answer for one image: its most probable classes in falling order of probability, scores and verdict.

    A plain dictionary: its shape is written down once, in schemas.Answer, and held to that by the tests; building and
    validating the model for every request would cost more than everything else here.
    """
    manifest, row, verdict = admitted.model.manifest, decided.row, decided.verdict
    best = verdict.class_index
    return {
        "request_id": admitted.context.request_id,
        "model": {"name": manifest.name, "version": manifest.version},
        "label": manifest.classes[best].name,
        "class_index": best,
        "group": manifest.classes[best].group,
        "probability": finite(float(row.probabilities[best])),
        "top_k": top_classes(manifest, row, admitted.parameters.top_k),
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
        "stage_times": {
            "receive_ms": milliseconds(decided.receive_s),
            "decode_ms": milliseconds(row.decode_s),
            "queue_ms": milliseconds(decided.queue_s),
            "inference_ms": milliseconds(row.inference_s),
            "total_ms": milliseconds(decided.total_s),
        },
    }


def top_classes(manifest: Manifest, row: Row, top_k: int) -> list[dict[str, Any]]:
    """The `top_k` most probable classes; of equals the first, as argmax has it."""
    values = row.probabilities.tolist()
    order = (-row.probabilities).argsort(kind="stable")[:top_k].tolist()
    return [{"label": manifest.classes[i].name, "class_index": i, "probability": finite(values[i])} for i in order]


def milliseconds(seconds: float) -> float:
    """Seconds as milliseconds, to a microsecond."""
    return round(seconds * 1e3, 3)


def finite(value: float) -> float | None:
    """`value`, or None for what JSON does not know."""
    return value if math.isfinite(value) else None
