"""Pixel measures behind a graph's other outputs: what a picture must have before anything can be said of it.

    larger = with_quality(graph, spacing)    # one more output, `quality` float32 [N, 3]

Of the grey picture of the model's input (BT.601, 0 to 1): its mean, its standard deviation, and the variance of its
Laplacian, which falls where a picture is blurred (Pech-Pacheco et al. 2000). Where uploads are smaller than the input,
neighbours are `spacing` pixels apart: those between were made by the resize and say nothing. Both are sampled, about
LEAST_SAMPLES on a side, by one convolution over the interleaved channels: a graph gives all of its outputs, asked for
or not, so every request pays for it (0.08 ms at 224 px, a sixtieth of EfficientNet-Lite0 in int8). Appended to the
finished graph, so that they stay in float32 whatever the precision of the trunk.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from service.contract.reasons import MEASURES, QUALITY
from training.network.onnx_graph import OPSET
from training.network.session import session

GREY = np.array([0.299, 0.587, 0.114]) / 255
LEAST_SAMPLES = 64  # of a side; every pixel of smaller pictures

Measure = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def with_quality(graph: bytes, spacing: int = 1) -> bytes:
    """`graph`, images uint8 [N, H, W, 3], with the output QUALITY [N, 3] beside its own."""
    model = onnx.load_from_string(graph)
    height, width = (d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:3])
    _append(model, height, width, spacing)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def measurer(height: int, width: int, spacing: int = 1) -> Measure:
    """The same measures alone: uint8 [N, height, width, 3] → float32 [N, 3]."""
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", height, width, 3])
    model = helper.make_model(
        helper.make_graph([], QUALITY, [images], []), opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9
    )
    _append(model, height, width, spacing)
    opened: Any = session(model.SerializeToString())
    return lambda pixels: np.asarray(opened.run([QUALITY], {"images": pixels})[0])


def _append(model: onnx.ModelProto, height: int, width: int, spacing: int) -> None:
    spacing = max(1, min(spacing, min(height, width) // 8))
    height, width = -(-height // spacing), -(-width // spacing)
    kernel = np.zeros((2, 1, 3, 9))  # two filters over 3 rows of 3 pixels of 3 channels
    kernel[0, 0, 1, 3:6] = GREY
    for row, column, weight in ((0, 1, 1), (1, 0, 1), (1, 2, 1), (2, 1, 1), (1, 1, -4)):
        kernel[1, 0, row, 3 * column : 3 * column + 3] = weight * GREY
    step_y, step_x = (max(1, side // LEAST_SAMPLES) for side in (height, width))
    constants = {
        "kernel": kernel.astype(np.float32), "rows": np.array([-1, 1, height, 3 * width]), "plane": np.array([2, 3]),
        "begin": np.array([0, 0]), "end": np.array([2**31, 2**31]), "sides": np.array([1, 2]),
        "spacing": np.array([spacing, spacing]), "wanted": np.array([0, 2, 3]),
        "powers": np.array([1, 0.5, 1], np.float32),
    }  # fmt: skip
    model.graph.initializer.extend(numpy_helper.from_array(v, f"{QUALITY}/{k}") for k, v in constants.items())
    model.graph.node.extend([
        _node("Slice", ["images", "begin", "end", "sides", "spacing"], "apart"),
        _node("Reshape", ["apart", "rows"], "interleaved"),
        _node("Cast", ["interleaved"], "float", to=TensorProto.FLOAT),
        _node("Conv", ["float", "kernel"], "planes", strides=[step_y, 3 * step_x]),  # grey, and its Laplacian
        _node("ReduceMean", ["planes", "plane"], "mean"),
        _node("Sub", ["planes", "mean"], "centred"),
        _node("Mul", ["centred", "centred"], "squares"),
        _node("ReduceMean", ["squares", "plane"], "variance"),
        _node("Concat", ["mean", "variance"], "moments", axis=1),
        _node("Squeeze", ["moments", "plane"], "flat"),
        _node("Gather", ["flat", "wanted"], "variances", axis=1),
        _node("Pow", ["variances", "powers"], ""),  # the contrast is a standard deviation
    ])  # fmt: skip
    model.graph.output.append(helper.make_tensor_value_info(QUALITY, TensorProto.FLOAT, ["N", len(MEASURES)]))


def _node(kind: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
    """A node whose names, but for the graph's input, lie under QUALITY."""
    given = [name if name == "images" else f"{QUALITY}/{name}" for name in inputs]
    made = f"{QUALITY}/{output}" if output else QUALITY
    return helper.make_node(kind, given, [made], name=f"{made}/{kind}", **attributes)
