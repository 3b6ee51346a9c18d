"""One decided image to the body of its answer, in the shape of schemas.Answer."""

import asyncio
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.bundle import Manifest
from service.contract.images import fitting
from service.inference.neighbours import Neighbour
from service.inference.rows import Row
from service.web.admission import Admitted
from service.web.record import Decided
from service.web.said import class_set, taxonomy_node

EMBEDDING_DECIMALS, MAP_DECIMALS, DISTANCE_DECIMALS = 6, 4, 4
THUMBNAILS = "/model/exemplars/"


async def answer_with_more(admitted: Admitted[Any], decided: Decided) -> dict[str, Any]:
    """As `answer`, with what the request has asked for beyond it."""
    found, asked, row = answer(admitted, decided), admitted.parameters, decided.row
    if asked.neighbours and row.embedding is not None:
        known = admitted.model.neighbours
        assert known is not None  # decision_parameters has refused it
        near = await asyncio.to_thread(known.near, row.embedding, asked.neighbours)
        found["neighbours"] = [_neighbour(admitted.model.manifest, one) for one in near]
    if asked.embedding and row.embedding is not None:
        found["embedding"] = rounded(row.embedding) if np.isfinite(row.embedding).all() else None  # JSON knows no NaN
    if asked.wanted.heat_map and row.heat_map is not None:
        finite = np.isfinite(row.heat_map).all()
        found["map"] = heat_map(admitted.model.manifest, row, row.heat_map) if finite else None
    return found


def rounded(embedding: NDArray[np.float32], decimals: int = EMBEDDING_DECIMALS) -> list[float]:
    """As numbers no longer than they are exact."""
    return [round(value, decimals) for value in embedding.tolist()]


def heat_map(manifest: Manifest, row: Row, values: NDArray[np.float32]) -> dict[str, Any]:
    """In the shape of more_schemas.HeatMapAnswer."""
    left, top, right, bottom = fitting.box((row.width_px, row.height_px), manifest.input) or (
        0, 0, row.width_px, row.height_px
    )  # fmt: skip
    return {
        "width": values.shape[1],
        "height": values.shape[0],
        "values": rounded(values.ravel(), MAP_DECIMALS),
        "box": {"left": left, "top": top, "width": right - left, "height": bottom - top},
    }


def _neighbour(manifest: Manifest, near: Neighbour) -> dict[str, Any]:
    return {
        "label": manifest.classes[near.class_index].name,
        "class_index": near.class_index,
        "distance": round(near.distance, DISTANCE_DECIMALS),
        "exemplar": near.exemplar,
        "thumbnail": None if near.thumbnail is None else THUMBNAILS + near.thumbnail,
    }


def answer(admitted: Admitted[Any], decided: Decided) -> dict[str, Any]:
    """The answer for one image: its most probable classes in falling order of probability, scores and verdict.

    A plain dictionary: its shape is written down once, in schemas.Answer, and held to that by the tests; building and
    validating the model for every request would cost more than everything else here.
    """
    manifest, row, verdict = admitted.model.manifest, decided.row, decided.verdict
    best = verdict.class_index
    found = {
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
    if manifest.reasons is not None:
        found |= {"reason": verdict.reason, "unfit": verdict.unfit}
    if (level := admitted.parameters.set) is not None and (sets := admitted.model.sets) is not None:
        found["set"] = class_set(manifest, sets, row.probabilities, level)
    if manifest.taxonomy is not None:
        found["taxonomy"] = None
        if verdict.decision == "reject":
            found["taxonomy"] = taxonomy_node(manifest.taxonomy, decided.node)
    return found


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
