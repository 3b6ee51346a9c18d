"""An answer of the Open Inference Protocol v2 to its body: JSON, or JSON followed by binary tensors."""

import struct
from typing import Any

import numpy as np
from pydantic_core import to_json

from service.contract.bundle import Manifest
from service.contract.embedding import EMBEDDING
from service.contract.heat_map import HEAT_MAP
from service.contract.sets import PredictionSets
from service.web.record import Decided

NUMPY_TYPES = {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8", "BOOL": "?"}

Column = list[Any]  # the elements of a tensor, flat


def output_types(manifest: Manifest, *, sets: bool = False) -> dict[str, tuple[str, list[int]]]:
    """Datatype and shape of every output, by name, in the order sent; the first dimension is the images'.

    `set`, which classes are in the set of each image, is one of them where the request asks for `sets`; `taxonomy`, the
    path of the node that is told of a refused image and else empty, where the bundle has a tree.
    """
    scores = {name: ("FP32", [-1]) for name in manifest.scores}
    return {
        **scores,
        "probabilities": ("FP32", [-1, len(manifest.classes)]),
        "class_index": ("INT64", [-1]),
        "label": ("BYTES", [-1]),
        "decision": ("BYTES", [-1]),
        "threshold": ("FP64", [-1]),
        "p_value": ("FP64", [-1]),
        **({"taxonomy": ("BYTES", [-1])} if manifest.taxonomy else {}),
        **({"set": ("BOOL", [-1, len(manifest.classes)])} if sets else {}),
        **({"reason": ("BYTES", [-1])} if manifest.reasons else {}),
    }


def further_types(manifest: Manifest) -> dict[str, tuple[str, list[int]]]:
    """As `output_types`, of what is sent only where it is asked for by name."""
    found: dict[str, tuple[str, list[int]]] = {}
    if manifest.embedding is not None:
        found[EMBEDDING] = ("FP32", [-1, manifest.embedding.dimensions])
    if manifest.heat_map is not None:
        found[HEAT_MAP] = ("FP32", [-1, manifest.heat_map.height, manifest.heat_map.width])
    return found


def columns(
    manifest: Manifest, decided: list[Decided], sets: PredictionSets | None = None, level: float | None = None
) -> dict[str, Column]:
    """The output tensors, flat, by name; with a `level` the sets of classes too."""
    rows, verdicts = [one.row for one in decided], [one.verdict for one in decided]
    scores = {name: [row.scores[name] for row in rows] for name in manifest.scores}
    best = [verdict.class_index for verdict in verdicts]
    arrays = {EMBEDDING: [row.embedding for row in rows], HEAT_MAP: [row.heat_map for row in rows]}
    further = {
        name: [value for one in values if one is not None for value in one.ravel().tolist()]
        for name, values in arrays.items()
        if values[0] is not None
    }
    return {
        **further,
        **scores,
        "probabilities": [value for row in rows for value in row.probabilities.tolist()],
        "class_index": best,
        "label": [manifest.classes[i].name for i in best],
        "decision": [verdict.decision for verdict in verdicts],
        "threshold": [verdict.threshold for verdict in verdicts],
        "p_value": [verdict.p_value for verdict in verdicts],
        "taxonomy": [one.node.joined if one.node else "" for one in decided],
        "set": []
        if sets is None or level is None
        else [inside for row in rows for inside in sets.contains(row.probabilities[None], level)[0].tolist()],
        **({"reason": [verdict.reason or "" for verdict in verdicts]} if manifest.reasons else {}),  # accepted: empty
    }


def write(
    head: dict[str, Any], manifest: Manifest, found: dict[str, Column], outputs: dict[str, bool]
) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON when binary tensors follow. `head`: all fields but outputs."""
    types = output_types(manifest, sets=True) | further_types(manifest)
    described, tail = [], []
    for name, binary in outputs.items():
        datatype, shape = types[name]
        count = len(found["class_index"])
        tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": [count, *shape[1:]]}
        if binary:
            content = _packed(found[name], datatype)
            tensor["parameters"] = {"binary_data_size": len(content)}
            tail.append(content)
        else:
            tensor["data"] = found[name]
        described.append(tensor)
    text = to_json(head | {"outputs": described}, inf_nan_mode="null")  # JSON knows no NaN
    return (b"".join((text, *tail)), len(text)) if tail else (text, None)


def _packed(values: Column, datatype: str) -> bytes:
    if datatype == "BYTES":
        texts = [value.encode() for value in values]
        return b"".join(part for text in texts for part in (struct.pack("<I", len(text)), text))
    return np.array(values, NUMPY_TYPES[datatype]).tobytes()
