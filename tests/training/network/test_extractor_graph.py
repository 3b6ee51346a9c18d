"""training/network/extractor_graph.py: extractors as other frameworks write them, and what cannot be trusted."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from training.network import backbones
from training.network.onnx_graph import chained, exported
from training.network.preprocessing import BackboneError

SIDE, CHANNELS = 8, 5
SAID = {"mean": "0.5,0.4,0.3", "std": "0.2,0.2,0.25"}
PIXELS = np.random.default_rng(5).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
Step = tuple[str, list[str], str, dict[str, Any]]
POOLED: list[Step] = [("GlobalAveragePool", ["maps"], "pooled", {}), ("Flatten", ["pooled"], "flat", {})]


def written(
    path: Path, steps: list[Step], output: str, shape: list[Any], *, kind: int = TensorProto.FLOAT,
    batch: int | str = "N", metadata: dict[str, str] | None = None, opset: int = 17,
) -> Path:  # fmt: skip
    """An extractor that takes [N, H, W, 3], as Keras exports one, `maps` [N, 5, 4, 4] of it, and then these `steps`."""
    weights = np.random.default_rng(1).normal(size=(CHANNELS, 3, 2, 2)).astype(np.float32)
    floats = TensorProto.FLOAT16 if kind == TensorProto.FLOAT16 else TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["x"], ["as_float"], to=floats),
        helper.make_node("Transpose", ["as_float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["nchw", "w"], ["maps"], strides=[2, 2]),
        *(helper.make_node(operator, takes, [gives], **options) for operator, takes, gives, options in steps),
    ]
    assert all(isinstance(node, NodeProto) for node in nodes)
    numbers = weights.astype(np.float16) if floats == TensorProto.FLOAT16 else weights
    shapes = [numpy_helper.from_array(np.array([1, CHANNELS], np.int64), "one")]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, [batch, SIDE, SIDE, 3])],
        [helper.make_tensor_value_info(output, floats, [batch, *shape])],
        [numpy_helper.from_array(numbers, "w"), *shapes],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    helper.set_model_props(model, SAID if metadata is None else metadata)
    onnx.save(model, path)
    return path


def one_by_one(path: Path, *, normalised: bool = True) -> np.ndarray[Any, Any]:
    """What the file itself gives of PIXELS, an image at a time, a map averaged over its positions."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    x: np.ndarray[Any, Any] = (PIXELS / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.2, 0.25] if normalised else PIXELS
    kind = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
    x = x.astype(kind[session.get_inputs()[0].type])
    rows = [session.run(None, {"x": x[i : i + 1]})[0] for i in range(len(x))]
    found = np.concatenate(rows).astype(np.float64)
    if found.ndim == 4:
        found = found.mean(axis=(2, 3) if found.shape[2] == found.shape[3] else (1, 2))
    return found


def served(path: Path) -> np.ndarray[Any, Any]:
    graph = backbones.load(f"onnx:{path}").graph()
    found: np.ndarray[Any, Any] = ort.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(
        ["features"], {"images": PIXELS}
    )[0]
    assert found.dtype == np.float32
    return found


def test_a_map_with_its_channels_last_is_averaged_over_its_positions(tmp_path: Path) -> None:
    """Over rows and channels it gave four numbers that look like features."""
    steps: list[Step] = [("Transpose", ["maps"], "out", {"perm": [0, 2, 3, 1]})]
    path = written(tmp_path / "keras.onnx", steps, "out", [4, 4, CHANNELS])
    assert one_by_one(path).shape == (3, CHANNELS)
    np.testing.assert_allclose(served(path), one_by_one(path), atol=1e-5)


@pytest.mark.parametrize("name", ["features", "pooled"])
def test_a_map_may_have_the_name_that_is_asked_for(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "map.onnx", [("Identity", ["maps"], name, {})], name, [CHANNELS, 4, 4])
    np.testing.assert_allclose(served(path), one_by_one(path), atol=1e-5)


def test_a_map_of_which_the_channels_cannot_be_told_is_refused(tmp_path: Path) -> None:
    steps: list[Step] = [("Slice", ["maps", "start", "end", "axis"], "out", {})]
    path = written(tmp_path / "cube.onnx", steps, "out", [4, 4, 4])
    model = onnx.load(path)
    for name, value in (("start", 0), ("end", 4), ("axis", 1)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    onnx.save(model, path)
    with pytest.raises(BackboneError, match="4 x 4 x 4, and which of these are its channels cannot be told"):
        backbones.load(f"onnx:{path}")


def test_a_graph_exported_for_one_image_takes_any_number(tmp_path: Path) -> None:
    """torch.onnx.export fixes the number of images unless it is told not to."""
    path = written(tmp_path / "one.onnx", POOLED, "flat", [CHANNELS], batch=1)
    np.testing.assert_allclose(served(path), one_by_one(path), atol=1e-5)


def test_a_graph_that_has_one_image_in_its_shapes_is_refused_with_the_remedy(tmp_path: Path) -> None:
    steps: list[Step] = [*POOLED[:1], ("Reshape", ["pooled", "one"], "out", {})]
    path = written(tmp_path / "one.onnx", steps, "out", [CHANNELS], batch=1)
    with pytest.raises(BackboneError, match="export it with N dynamic"):
        backbones.load(f"onnx:{path}")


def test_pixels_as_they_are(tmp_path: Path) -> None:
    """uint8 in: the graph normalises, so that nothing need be said, and nothing may be said."""
    path = written(tmp_path / "bytes.onnx", POOLED, "flat", [CHANNELS], kind=TensorProto.UINT8, metadata={})
    np.testing.assert_array_equal(served(path), one_by_one(path, normalised=False).astype(np.float32))
    with pytest.raises(BackboneError, match=r"--backbone-std: .* takes pixels as they are"):
        backbones.load(f"onnx:{path}", std=(0.2, 0.2, 0.2))


def test_float16(tmp_path: Path) -> None:
    path = written(tmp_path / "half.onnx", POOLED, "flat", [CHANNELS], kind=TensorProto.FLOAT16)
    np.testing.assert_allclose(served(path), one_by_one(path), atol=0.02)


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ([("Sub", ["flat", "flat"], "out", {})], "the same features for two different images"),
        ([("Sub", ["flat", "flat"], "z", {}), ("Div", ["z", "z"], "out", {})], "not finite"),
        ([("ReduceMean", ["flat"], "mean", {"axes": [0]}), ("Sub", ["flat", "mean"], "out", {})], "other features"),
    ],
)
def test_features_that_cannot_be_trusted_are_refused(tmp_path: Path, last: list[Step], message: str) -> None:
    path = written(tmp_path / "bad.onnx", [*POOLED, *last], "out", [CHANNELS])
    with pytest.raises(BackboneError, match=message):
        backbones.load(f"onnx:{path}")


@pytest.mark.parametrize(
    "said", [{"std": "58.4,57.1,57.4"}, {"std": "0,0,0"}, {"mean": "nan,0.4,0.3"}, {"mean": "123.7,116.3,103.5"}]
)
def test_a_normalisation_that_is_none_of_rgb_in_0_to_1_is_refused(tmp_path: Path, said: dict[str, str]) -> None:
    path = written(tmp_path / "far.onnx", POOLED, "flat", [CHANNELS], metadata=SAID | said)
    with pytest.raises(BackboneError, match=rf"the {next(iter(said))} \(.* is not one of RGB in \[0, 1\]"):
        backbones.load(f"onnx:{path}")


class Head(torch.nn.Module):
    """What stands behind the features in a bundle, as small as it can be."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.softmax(1).sum(1, keepdim=True) + features


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 20, 23])
def test_an_extractor_of_any_operator_set_is_joined_with_its_head(tmp_path: Path, opset: int) -> None:
    """The file says one version, the head another: with any but 18 a fit ended when all was trained."""
    path = written(tmp_path / "own.onnx", POOLED, "flat", [CHANNELS], opset=opset)
    backbone = backbones.load(f"onnx:{path}")
    head = exported(Head(), torch.zeros(2, CHANNELS), takes="taken", gives=["out"])
    whole = chained(backbone.graph(), head, "features", "taken")
    assert len(onnx.load_from_string(whole).opset_import) == 1
    found = ort.InferenceSession(whole, providers=["CPUExecutionProvider"]).run(["out"], {"images": PIXELS})[0]
    np.testing.assert_allclose(found, one_by_one(path) + 1, atol=1e-5)


def test_operators_of_onnxruntime_and_functions_of_the_file(tmp_path: Path) -> None:
    """As an optimised export has them, and one of torch's newer exporter."""
    path = written(tmp_path / "own.onnx", [*POOLED, ("Relu", ["flat"], "out", {})], "out", [CHANNELS])
    model = onnx.load(path)
    model.graph.node[-1].op_type, model.graph.node[-1].domain = "Gelu", "com.microsoft"
    pooling = model.graph.node[-3]
    pooling.op_type, pooling.domain = "Mean", "own"
    inner = helper.make_node("GlobalAveragePool", ["a"], ["b"])
    model.functions.append(helper.make_function("own", "Mean", ["a"], ["b"], [inner], model.opset_import))
    model.opset_import.extend([helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("own", 1)])
    onnx.save(model, path)
    np.testing.assert_allclose(served(path), one_by_one(path), atol=1e-5)
