"""One classified image to the body of its answer."""

import math

from service.batcher import Row
from service.bundle import Manifest
from service.decision import Verdict
from service.images import Loaded
from service.schemas import Answer, ClassProbability, DecidingScore, ImageSize, ModelName, StageTimes


def answer(
    request_id: str, manifest: Manifest, loaded: Loaded, row: Row, verdict: Verdict, top_k: int, times: StageTimes
) -> Answer:
    """The answer for one image: its `top_k` classes in falling order of probability, its scores and its verdict."""
    order = [int(i) for i in (-row.probabilities).argsort(kind="stable")]
    best = order[0]
    top = [
        ClassProbability(label=manifest.classes[i].name, class_index=i, probability=_finite(row.probabilities[i]))
        for i in order[:top_k]
    ]
    return Answer(
        request_id=request_id,
        model=ModelName(name=manifest.name, version=manifest.version),
        label=top[0].label,
        class_index=best,
        group=manifest.classes[best].group,
        probability=top[0].probability,
        top_k=top,
        scores={name: _finite(value) for name, value in row.scores.items()},
        deciding_score=DecidingScore(
            name=manifest.deciding_score,
            value=_finite(row.scores[manifest.deciding_score]),
            threshold=verdict.threshold,
            scope=verdict.scope,
            operating_point=verdict.operating_point,
        ),
        p_value=verdict.p_value,
        decision=verdict.decision,
        image=ImageSize(width_px=loaded.width_px, height_px=loaded.height_px),
        stage_times=times,
    )


def milliseconds(seconds: float) -> float:
    return round(max(0.0, seconds) * 1e3, 3)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None  # JSON knows no NaN
