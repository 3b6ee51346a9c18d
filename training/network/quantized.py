"""Convolutional ONNX graphs in int8: what makes the same answers in less time on a CPU (static, QDQ form).

    smaller = quantize(graph, images)     # images uint8 [N, H, W, 3] → the same outputs, convolutions in int8

Activations are uint8 between the least and the largest value seen in `images`, weights int8 per output channel with
rounding and bias made good (rounding.py). What is neither a convolution nor a sum of feature maps stays float: heads,
softmax, scores. ReLU and ReLU6 cost nothing: the range of the quantiser ends where they do. The uint8 pixels enter the
first convolution as they are, its weights taking in what is done to them before.
"""

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from training.network.integers import (
    BATCH_IMAGES,
    PIXELS,
    PLANES,
    Images,
    Plan,
    prepared,
    run,
    seen,
    set_nodes,
    with_pixels_in_front,
)
from training.network.preprocessing import BackboneError
from training.network.rounding import Moments, moments_of, rounded

MOST_NOISE = 0.1  # share of a feature's variance; that of int8 EfficientNet-Lite0 is .013
Floats = NDArray[np.float32]


def quantize(graph: bytes, images: Images) -> bytes:
    """`graph`, one input `images` uint8 [N, H, W, 3], with its convolutions in int8, ranges as seen in `images`.

    The same graph and images give the same bytes. Raises BackboneError where the graph holds no convolution with fixed
    weights (a vision transformer), and where onnxruntime does not run the result as it is written.
    """
    plan = Plan(prepared(graph))
    if len(plan.convolutions) * 2 < sum(n.op_type == "MatMul" for n in plan.nodes):
        raise BackboneError(
            "int8 is for convolutional networks; a transformer gains little by it, or its answer to an image would "
            "depend on the others of the batch: use fp32"
        )
    if not plan.convolutions:
        raise BackboneError("int8 is for convolutional networks, and this graph holds no convolution: use fp32")
    plan = with_pixels_in_front(plan)
    ranges, moments = _observe(plan, images)
    model = _written(plan, ranges, moments)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    noise = noise_share(outputs_of(content, images[:BATCH_IMAGES]), outputs_of(content, images[:BATCH_IMAGES], False))
    if noise > MOST_NOISE:
        raise BackboneError(
            f"onnxruntime {ort.__version__} changes this int8 graph when it optimises it ({noise:.0%} of the variance "
            "of its first output): use fp32"
        )
    return content


def noise_share(these: Floats, those: Floats) -> float:
    """Mean square of the difference of two outputs [N, F] over the variance of the second one."""
    spread = float(((those - those.mean(axis=0)) ** 2).sum())
    return float(((these - those) ** 2).sum()) / max(spread, 1e-12)


def outputs_of(graph: bytes, images: Images, optimised: bool = True) -> Floats:
    """The first output for every image."""
    return np.concatenate([next(iter(batch.values())) for batch in run(graph, images, optimised=optimised)])


def _observe(plan: Plan, images: Images) -> tuple[dict[str, tuple[float, float]], dict[str, Moments]]:
    """(least and largest value of each tensor, moments of each convolution's input patches)."""
    ranges = dict.fromkeys(plan.integers(), (0.0, 0.0))  # zero is a value that padding needs
    moments: dict[str, Moments] = {}
    random = np.random.default_rng(0)
    for batch in seen(plan.model, list(ranges), images):
        for name, (least, largest) in ranges.items():
            ranges[name] = min(least, float(batch[name].min())), max(largest, float(batch[name].max()))
        for node in plan.convolutions:
            found = moments_of(batch[node.input[0]], node, plan.constants[node.input[1]].shape, random)
            name = node.output[0]
            moments[name] = moments[name] + found if name in moments else found
    return ranges, moments


class _Writer:
    """The nodes and constants of the int8 graph of a plan, in order."""

    def __init__(self, plan: Plan, ranges: dict[str, tuple[float, float]]) -> None:
        self.plan = plan
        self.nodes: list[NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.steps: dict[str, tuple[np.float32, np.uint8]] = {}
        for name, (least, largest) in ranges.items():
            step = np.float32(max((largest - least) / 255, 1e-8))
            self.steps[name] = step, np.uint8(np.clip(round(-least / float(step)), 0, 255))
        if plan.zero is not None:
            self.steps[PIXELS] = np.float32(1), np.uint8(plan.zero)

    def constant(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def dequantized(self, name: str, integers: NDArray[np.generic], scale: Floats) -> str:
        """A constant of integers, `scale` by output channel; the name of its float values."""
        zeros = np.zeros(len(scale), integers.dtype)
        parts = {"int": integers, "scale": scale, "zero": zeros}
        inputs = [self.constant(f"{name}/{part}", value) for part, value in parts.items()]
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}/float"], axis=0))
        return f"{name}/float"

    def passed_through_uint8(self, name: str) -> None:
        """Q and DQ behind the tensor `name`; of pixels, which are uint8 already, DQ alone."""
        step, zero = self.steps[name]
        by = [self.constant(f"{name}/step", step), self.constant(f"{name}/zero_point", zero)]
        integers = PLANES if name == PIXELS else f"{name}/uint8"
        if name != PIXELS:
            self.nodes.append(helper.make_node("QuantizeLinear", [name, *by], [integers]))
        self.nodes.append(helper.make_node("DequantizeLinear", [integers, *by], [f"{name}/dequantized"]))

    def convolution(self, node: NodeProto, moments: Moments) -> NodeProto:
        """`node` with integer weights and bias, giving what its ReLU gave."""
        weight = self.plan.constants[node.input[1]]
        bias = self.plan.constants[node.input[2]] if len(node.input) > 2 else np.zeros(len(weight), np.float32)
        step = float(self.steps[node.input[0]][0])
        integers, scale, bias = rounded(weight, bias, moments, step)
        unit = (scale.astype(np.float64) * step).astype(np.float32)
        inputs = [
            self.dequantized(f"{node.output[0]}/weights", integers, scale),
            self.dequantized(
                f"{node.output[0]}/biases", np.round(bias / unit.astype(np.float64)).astype(np.int32), unit
            ),
        ]
        new = NodeProto()
        new.CopyFrom(node)
        del new.input[1:], new.output[:]
        new.input.extend(inputs)
        new.output.append(self.plan.output(node))
        return new


def _written(plan: Plan, ranges: dict[str, tuple[float, float]], moments: dict[str, Moments]) -> onnx.ModelProto:
    """The plan's graph in QDQ form."""
    writer = _Writer(plan, ranges)
    replaced = {node.output[0] for node in plan.activations.values()}
    convolutions = {node.output[0] for node in plan.convolutions}
    for node in plan.nodes:
        if node.output[0] in replaced:
            continue
        new = NodeProto()
        new.CopyFrom(node)
        if node.output[0] in convolutions:
            new = writer.convolution(node, moments[node.output[0]])
        new.input[:] = [f"{name}/dequantized" if name in writer.steps else name for name in new.input]
        writer.nodes.append(new)
        for name in new.output:
            if name in writer.steps:
                writer.passed_through_uint8(name)
    model = onnx.ModelProto()
    model.CopyFrom(plan.model)
    del model.graph.value_info[:]
    model.graph.initializer.extend(writer.constants)
    set_nodes(model, writer.nodes)
    return model
