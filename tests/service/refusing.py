"""The tiny bundle with reasons: what it refuses is unknown, unsure or unfit.

A red picture is accepted; a grey one is unsure, as its three classes are alike; a black one is unknown by its energy,
and dark where the limits say so.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.contract.reasons import LEAST_DOUBT
from tests.service import tiny

EITHER = "energy|msp"
AT, DOUBT_AT = -5.5, 0.0  # of the two parts, whose scales are 1
RED, GREY, BLACK = (220, 30, 30), (128, 128, 128), (0, 0, 0)
OUTPUTS = ("probabilities", "energy", "msp", EITHER, "quality")
SHARES = {"images": 99, "unknown": 0.035, "unsure": 0.01, "unfit": 0.0}


def graph(outputs: tuple[str, ...] = OUTPUTS) -> bytes:
    """That of tiny with the larger of the two parts, and as `quality` mean, deviation and variance of the picture."""
    model = onnx.load_from_string(tiny.graph(outputs=tuple(o for o in outputs if o not in (EITHER, "quality"))))
    least, whole = np.float32(LEAST_DOUBT), np.float32(255)
    constants = {"least": least, "at": np.float32(AT), "byte": whole, "all": np.array([1, 2, 3])}
    made = [
        ("Sub", ["one", "largest"], "others", {}), ("Max", ["others", "least"], "others/at_least", {}),
        ("Log", ["others/at_least"], "log_others", {}), ("Log", ["largest"], "log_largest", {}),
        ("Sub", ["log_others", "log_largest"], "doubt", {}), ("Sub", ["energy", "at"], "unknown", {}),
        ("Max", ["unknown", "doubt"], EITHER, {}),
        ("Div", ["float", "byte"], "picture", {}), ("ReduceMean", ["picture", "all"], "bright", {"keepdims": 1}),
        ("Sub", ["picture", "bright"], "centred", {}), ("Mul", ["centred", "centred"], "squares", {}),
        ("ReduceMean", ["squares", "all"], "variance", {"keepdims": 1}), ("Sqrt", ["variance"], "deviation", {}),
        ("Concat", ["bright", "deviation", "variance"], "together", {"axis": 3}),
        ("Squeeze", ["together", "plane"], "quality", {}),
    ]  # fmt: skip
    model.graph.node.extend(helper.make_node(kind, i, [o], **attributes) for kind, i, o, attributes in made)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    shapes: dict[str, list[Any]] = {EITHER: ["N"], "quality": ["N", 3]}
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in outputs if name in shapes
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


def reasons(**limits: Any) -> dict[str, Any]:
    told = {"all": SHARES, "by_group": dict.fromkeys(tiny.GROUPS, SHARES)}
    told["by_predicted_group"] = told["by_group"]
    least = {"brightness": 0.0, "contrast": 0.0, "sharpness": 0.0, "side_px": 4, "images": 500, "chosen": "by hand"}
    return {
        "unknown_score": "energy",
        "unknown": {"at": AT, "scale": 1.0, "share": 0.035},
        "unsure": {"at": DOUBT_AT, "scale": 1.0, "share": 0.015},
        "limits": least | limits,
        "measured": {"calibration": told, "test": None, "outliers": {"noise": SHARES}},
        "levels": "by hand",
    }


def parts(scores: dict[str, float], best: float) -> float:
    return max(scores["energy"] - AT, math.log(max(1 - best, LEAST_DOUBT)) - math.log(best) - DOUBT_AT)


def manifest(limits: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """As tiny.manifest."""
    fields = tiny.manifest()
    for example in fields["golden"]:
        example["scores"][EITHER] = parts(example["scores"], max(example["probabilities"]))
    fields["scores"][EITHER] = {"formula": "the larger of the two", "temperature": 1}
    fields["calibration"]["quantiles"][EITHER] = {"all": (-4.5, -2.0, 0.4), "outliers": (-1.5, 1.5, 4.0)}
    scores = tuple(s - AT for s in tiny.ID_SCORES)
    whole = tiny.whole_reference() | {"scores": scores}
    fields["calibration"] |= {"id_scores": scores, "references": dict.fromkeys(("all", *tiny.GROUPS), whole)}
    return fields | {
        "deciding_score": EITHER, "operating_points": {"id95": tiny.point(0.0), "ood95": tiny.point(-2.5)},
        "reasons": reasons(**limits or {}),
    } | changes  # fmt: skip


def write(path: Path, limits: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Write the bundle to `path`; `limits` changes some of the pixels' limits."""
    content = changes.pop("files", None) or tiny.files() | {"model.onnx": graph()}
    return tiny.write(path, files=content, **manifest(limits, **changes))
