"""A small real bundle for the tests: uint8 images → mean per channel → logits → probabilities, energy and MSP.

A red image is class `red`, and so on; a grey one has equal logits, so the largest MSP. No torch.
"""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from service.contract import bundle, exemplars

SIDE = 8
HAS_CUDA = "CUDAExecutionProvider" in ort.get_available_providers()
CLASSES = ("red", "green", "blue")
GROUPS = ("many", "medium", "few")
GAIN = 10.0  # logits = GAIN * mean / 255
ID_SCORES = tuple(-10.0 + 0.05 * i for i in range(99))  # energies, ascending, -10 to -5.1
THRESHOLD = {"id95": -5.5, "ood95": -8.0}


def reference(images: NDArray[np.uint8]) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """What the graph computes, in numpy: probabilities [N, 3] and scores [N]."""
    logits = images.mean(axis=(1, 2), dtype=np.float64) * (GAIN / 255)
    exp = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = exp / exp.sum(1, keepdims=True)
    energy = -(np.log(exp.sum(1)) + logits.max(1))
    return probabilities, {"energy": energy, "msp": 1 - probabilities.max(1)}


def graph(
    side: int = SIDE, outputs: tuple[str, ...] = ("probabilities", "energy", "msp"), unit: str = "direction"
) -> bytes:
    """The serialised ONNX graph; "embedding" among `outputs` is the mean per channel, brought to length 1 unless `unit`
    is "mean"; where that is "broken", with NaN for each channel that is 0."""
    constants = {"gain": np.float32(GAIN / 255), "one": np.float32(1), "axis": np.array([1]), "plane": np.array([1, 2])}
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "plane"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "gain"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ReduceLogSumExp", ["logits", "axis"], ["lse"], keepdims=0),
        helper.make_node("Neg", ["lse"], ["energy"]),
        helper.make_node("ReduceMax", ["probabilities", "axis"], ["largest"], keepdims=0),
        helper.make_node("Sub", ["one", "largest"], ["msp"]),
        helper.make_node("LpNormalization", ["mean"], ["direction"], axis=1),
        helper.make_node("Div", ["mean", "mean"], ["ratio"]),
        helper.make_node("Mul", ["direction", "ratio"], ["broken"]),
        helper.make_node("Identity", [unit], ["embedding"]),
    ]
    shapes: dict[str, list[Any]] = {"probabilities": ["N", 3], "energy": ["N"], "msp": ["N"], "embedding": ["N", 3]}
    made = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", side, side, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def heat_map() -> bytes:
    """What makes a graph of 8 x 8 give a heat map: GAIN / 255 times the predicted class's channel at each pixel."""
    constants: dict[str, NDArray[Any]] = {
        "m/all": np.eye(3, dtype=np.float32), "m/flat": np.array([0, 64, 3]), "m/map": np.array([0, 8, 8]),
        "m/last": np.array([2]),
    }  # fmt: skip
    more = onnx.ModelProto()
    more.graph.node.extend([
        helper.make_node("ArgMax", ["probabilities"], ["m/best"], axis=1, keepdims=0),
        helper.make_node("Gather", ["m/all", "m/best"], ["m/row"], axis=0),
        helper.make_node("Mul", ["m/row", "gain"], ["m/gains"]),
        helper.make_node("Unsqueeze", ["m/gains", "m/last"], ["m/column"]),
        helper.make_node("Reshape", ["float", "m/flat"], ["m/pixels"]),
        helper.make_node("MatMul", ["m/pixels", "m/column"], ["m/values"]),
        helper.make_node("Reshape", ["m/values", "m/map"], ["heat_map"]),
    ])  # fmt: skip
    more.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    more.graph.output.append(helper.make_tensor_value_info("heat_map", TensorProto.FLOAT, ["N", 8, 8]))
    return more.SerializeToString()


def photo(colour: tuple[int, ...] = (220, 30, 30), size: tuple[int, int] = (SIDE, SIDE), form: str = "PNG") -> bytes:
    """The bytes of an image file of one colour; `size` is (width, height)."""
    buffer = BytesIO()
    Image.new("RGB", size, colour).save(buffer, form)
    return buffer.getvalue()


def cost() -> dict[str, Any]:
    shares = {"many": 0.04, "medium": 0.05, "few": 0.06}
    return {
        "in_distribution_images": 99,
        "outlier_images": 50,
        "id_rejected": 0.05,
        "id_rejected_by_group": shares,
        "id_rejected_by_predicted_group": shares,
        "outliers_caught": 0.7,
        "outliers_caught_by_predicted_group": {"many": 0.6, "medium": 0.7, "few": None},
    }


def point(threshold: float) -> dict[str, Any]:
    measured = {"calibration": cost(), "test": None}
    return {
        "description": f"reject above {threshold}",
        "level": None,  # so that thresholds need not be those of the references
        "threshold": threshold,
        "group_thresholds": {"many": threshold, "medium": threshold + 0.25, "few": threshold + 0.5},
        "group_promises": {},
        "global_cost": measured,
        "group_cost": measured,
    }


def whole_reference() -> dict[str, Any]:
    """The p-values of ID_SCORES: (1 + number at or above) / 100."""
    steps = [(100 - k) / 100 for k in range(len(ID_SCORES) + 1)]
    return {"images": len(ID_SCORES), "borrowed": 0, "scores": ID_SCORES, "p_values": steps}


def golden(file: str, colour: tuple[int, int, int]) -> dict[str, Any]:
    probabilities, scores = reference(np.full((1, SIDE, SIDE, 3), colour, np.uint8))
    return {
        "file": file,
        "label": CLASSES[int(probabilities[0].argmax())],
        "probabilities": probabilities[0].tolist(),
        "scores": {name: float(values[0]) for name, values in scores.items()},
    }


def manifest(**changes: Any) -> dict[str, Any]:
    """The fields that service.contract.bundle.write takes, with `changes` at the top level."""
    levels = (0.0, 0.5, 1.0)
    quantiles = {
        "energy": {"all": (-10.0, -7.5, -5.1), "outliers": (-7.0, -4.0, -1.5)},
        "msp": {"all": (0.0, 0.1, 0.5), "outliers": (0.2, 0.5, 0.67)},
    }
    fields: dict[str, Any] = {
        "name": "tiny",
        "version": "1",
        "created": "2026-01-02T03:04:05Z",
        "precision": "fp32",
        "passes": 1,
        "input": {"height_px": SIDE, "width_px": SIDE, "fit": "stretch", "resampling": "bilinear"},
        "groups": [
            {"name": g, "least_images": 10 ** (3 - i), "most_images": 10 ** (3 - i)} for i, g in enumerate(GROUPS)
        ],
        "classes": [
            {"name": name, "train_count": 10 ** (3 - i), "group": GROUPS[i], "accuracy": 0.9 - i / 10, "rejected": 0.05}
            for i, name in enumerate(CLASSES)
        ],
        "scores": {
            "energy": {"formula": "-logsumexp(z)", "temperature": 1},
            "msp": {"formula": "1-max(p)", "temperature": 1},
        },
        "deciding_score": "energy",
        "operating_points": {name: point(value) for name, value in THRESHOLD.items()},
        "default_operating_point": "id95",
        "threshold_scope": "group",
        "calibration": {
            "temperature": 1.0,
            "in_distribution_images": 99,
            "outlier_images": 50,
            "images_by_group": {"many": 60, "medium": 30, "few": 9},
            "class_mix": "train",
            "class_shares": [10 ** (3 - i) / 1110 for i in range(3)],
            "references": dict.fromkeys(("all", *GROUPS), whole_reference()),
            "id_scores": ID_SCORES,
            "quantile_levels": levels,
            "quantiles": quantiles,
        },
        "evaluation": {"convention": "OOD is positive", "accuracy": 0.8},
        "provenance": {
            "method": "means", "dataset": "colours", "seed": 0, "command": "none", "commit": "none", "versions": {},
        },
        "golden": [golden("examples/red.png", (220, 30, 30)), golden("examples/blue.png", (10, 20, 200))],
    }  # fmt: skip
    return fields | changes


WITH_EMBEDDING = ("probabilities", "energy", "msp", "embedding")


def files() -> dict[str, bytes]:
    return {
        "model.onnx": graph(),
        "examples/red.png": photo((220, 30, 30)),
        "examples/blue.png": photo((10, 20, 200)),
    }


def write(path: Path, **changes: Any) -> Path:
    """Write the bundle to `path`; `files=` replaces the files, every other keyword a field of the manifest."""
    content = changes.pop("files", None)
    bundle.write(path, manifest(**changes), files() if content is None else content)
    return path


def said() -> dict[str, Any]:
    """Sets and a taxonomy for the manifest: groups many and medium have 19 and 9 calibration images, few has none; red
    and green are warm, blue is below the root; 1 of 40 uncertain images was told a wrong node."""
    steps = {"many": 19, "medium": 9}
    references = {
        g: {"images": n, "borrowed": 0, "scores": [(k + 1) / (n + 1) for k in range(n)],
            "p_values": [1.0, *((n - k) / (n + 1) for k in range(n))]}
        for g, n in steps.items()
    }  # fmt: skip
    figures = {
        "level": 0.9, "images": 100, "images_by_group": {"many": 60, "medium": 40, "few": 0}, "covered": 0.91,
        "covered_by_group": {"many": 0.9, "medium": 0.925, "few": None}, "mean_size": 1.5,
        "mean_size_by_group": {"many": 1.4, "medium": 1.65, "few": None}, "too_few": ["few"],
    }  # fmt: skip
    level = {"depth": 1, "threshold": 0.6, "told": 40, "wrong": 1, "measured_told": 20, "measured_wrong": 1}
    return {
        "sets": {"references": references, "measured": [figures]},
        "taxonomy": {
            "source": "tree.csv", "paths": [["warm"], ["warm"], []], "error": 0.05, "uncertain": 45, "levels": [level],
            "measured": {"images": 100, "refused": 25, "told": 20, "wrong": 1, "outliers_told": 0.5},
        },
    }  # fmt: skip


def write_embedding(path: Path, **changes: Any) -> Path:
    """As `write`, of a graph that gives an embedding of 3 dimensions."""
    given = {"files": files() | {"model.onnx": graph(outputs=WITH_EMBEDDING)}}
    return write(path, **(given | {"embedding": {"dimensions": 3, "made_from": "the mean per channel"}} | changes))


EXEMPLARS = np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 1, 0], [0, 0, 1]])


def write_exemplars(path: Path, **record: Any) -> Path:
    """As `write_embedding`, with four exemplars of 3 dimensions; `record` changes what the manifest says of them."""
    content = {"model.onnx": graph(outputs=WITH_EMBEDDING), "exemplars.npz": exemplars.encode(EXEMPLARS, [0, 0, 1, 2])}
    given = {"file": "exemplars.npz", "count": 4, "chosen": "all there are"} | record
    return write_embedding(path, files=files() | content, exemplars=given)


def write_whole(path: Path, **changes: Any) -> Path:
    """A bundle with all that one may have: embedding, exemplars of which three have a picture, heat map."""
    pictures = [photo((255, 0, 0), form="JPEG"), b"", photo((0, 255, 0), form="JPEG"), photo((0, 0, 255), form="JPEG")]
    content = {
        "model.onnx": graph(outputs=WITH_EMBEDDING),
        "exemplars.npz": exemplars.encode(EXEMPLARS, [0, 0, 1, 2], pictures),
        "heat_map.onnx": heat_map(),
    }
    said = {"file": "exemplars.npz", "count": 4, "chosen": "all there are", "thumbnails": 3,
            "thumbnails_licence": "CC0"}  # fmt: skip
    where = {"file": "heat_map.onnx", "height": 8, "width": 8, "made_from": "the pixels"}
    return write_embedding(path, **{"files": files() | content, "exemplars": said, "heat_map": where} | changes)
