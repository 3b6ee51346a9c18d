"""An answer of the Open Inference Protocol v2 to its body: JSON, or JSON followed by binary tensors."""

import struct
from typing import Any

import numpy as np
from pydantic_core import to_json

from service.contract.bundle import Manifest
from service.web.record import Decided

NUMPY_TYPES = {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8"}

Column = list[Any]  # the elements of a tensor, flat


def output_types(manifest: Manifest) -> dict[str, tuple[str, list[int]]]:
    """Datatype and shape of every output, by name, in the order sent; the first dimension is the images'."""
    scores = {name: ("FP32", [-1]) for name in manifest.scores}
    return {
        **scores,
        "probabilities": ("FP32", [-1, len(manifest.classes)]),
        "class_index": ("INT64", [-1]),
        "label": ("BYTES", [-1]),
        "decision": ("BYTES", [-1]),
        "threshold": ("FP64", [-1]),
        "p_value": ("FP64", [-1]),
    }


def columns(manifest: Manifest, decided: list[Decided]) -> dict[str, Column]:
    """The output tensors, flat, by name."""
    rows, verdicts = [one.row for one in decided], [one.verdict for one in decided]
    scores = {name: [row.scores[name] for row in rows] for name in manifest.scores}
    best = [verdict.class_index for verdict in verdicts]
    return {
        **scores,
        "probabilities": [value for row in rows for value in row.probabilities.tolist()],
        "class_index": best,
        "label": [manifest.classes[i].name for i in best],
        "decision": [verdict.decision for verdict in verdicts],
        "threshold": [verdict.threshold for verdict in verdicts],
        "p_value": [verdict.p_value for verdict in verdicts],
    }


def write(
    head: dict[str, Any], manifest: Manifest, found: dict[str, Column], outputs: dict[str, bool]
) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON when binary tensors follow. `head`: all fields but outputs."""
    types = output_types(manifest)
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
