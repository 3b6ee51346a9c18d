"""What of a float ONNX graph becomes integers, and the same graph with its pixels put in front of a convolution."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper
from onnxruntime import quantization

from training.network.session import session

BATCH_IMAGES = 16
ELEMENTWISE = {"Transpose", "Cast", "Sub", "Div", "Mul", "Add", "Identity"}
PIXELS = "int8/pixels"  # the tensor of pixels less a whole number
PLANES = f"{PIXELS}/planes"  # and as they come, uint8 [N, 3, H, W]
Images = NDArray[np.uint8]  # [N, H, W, 3]


@dataclass
class Plan:
    """A float graph, and which of its tensors become integers."""

    model: onnx.ModelProto
    constants: dict[str, NDArray[Any]] = field(init=False)
    activations: dict[str, NodeProto] = field(init=False)  # by the convolution's output: the ReLU that a range replaces
    convolutions: list[NodeProto] = field(init=False)
    sums: list[NodeProto] = field(init=False)
    zero: int | None = None  # what PIXELS are less; None where the graph's own preparation of them stays

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
        readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        given = {output.name for output in graph.output}
        self.convolutions = [
            n for n in graph.node
            if n.op_type == "Conv" and getattr(self.constants.get(n.input[1]), "ndim", 0) == 4
            and all(i in self.constants for i in n.input[2:]) and n.output[0] not in given
        ]  # fmt: skip
        self.activations = {
            n.output[0]: readers[n.output[0]][0] for n in self.convolutions
            if len(readers.get(n.output[0], [])) == 1 and self._cuts_at_zero(readers[n.output[0]][0])
        }  # fmt: skip
        ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in graph.value_info}
        self.sums = [
            n for n in graph.node
            if n.op_type == "Add" and ranks.get(n.output[0]) == 4 and not any(i in self.constants for i in n.input)
        ]  # fmt: skip

    @property
    def nodes(self) -> list[NodeProto]:
        return list(self.model.graph.node)

    def _cuts_at_zero(self, node: NodeProto) -> bool:
        least = self.constants.get(node.input[1]) if node.op_type == "Clip" and len(node.input) > 1 else None
        return node.op_type == "Relu" or (least is not None and float(least) == 0)

    def output(self, convolution: NodeProto) -> str:
        """The tensor behind the convolution and its ReLU."""
        name = convolution.output[0]
        return str(self.activations[name].output[0] if name in self.activations else name)

    def integers(self) -> list[str]:
        """The tensors that become uint8."""
        names = [name for n in self.convolutions for name in (n.input[0], self.output(n))]
        names += [name for n in self.sums for name in (*n.input, n.output[0])]
        return list(dict.fromkeys(names))


def prepared(graph: bytes) -> onnx.ModelProto:
    """Shapes inferred, constants folded, BatchNorm taken into the convolutions."""
    with tempfile.TemporaryDirectory() as folder:
        source, prepared = (Path(folder) / f"{name}.onnx" for name in ("source", "prepared"))
        source.write_bytes(graph)
        quantization.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        return onnx.load(prepared)


def run(graph: bytes, images: Images, *, optimised: bool = True) -> Iterator[dict[str, Any]]:
    """Every output for each batch in turn, on one thread: the order of sums, and so the bits, depend on nothing."""
    opened = session(graph, optimised=optimised)
    names = [o.name for o in opened.get_outputs()]
    for start in range(0, len(images), BATCH_IMAGES):
        yield dict(zip(names, opened.run(names, {"images": images[start : start + BATCH_IMAGES]}), strict=True))


def seen(model: onnx.ModelProto, names: Sequence[str], images: Images) -> Iterator[dict[str, Any]]:
    """The tensors `names` for each batch in turn."""
    with_more = onnx.ModelProto()
    with_more.CopyFrom(model)
    del with_more.graph.output[:]
    with_more.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    yield from run(with_more.SerializeToString(), images)


def with_pixels_in_front(plan: Plan) -> Plan:
    """The same function, the convolutions at the front taking pixels less one whole number, where that can be.

    What stands before them must be a·pixel + b by channel, and b/a nearly the same for all: padding is that number.
    """
    reached, front = {"images"}, []
    for node in plan.nodes:
        variable = [i for i in node.input if i not in plan.constants]
        if node.op_type in ELEMENTWISE and variable and set(variable) <= reached:
            reached.update(node.output)
        elif node in plan.convolutions and node.input[0] in reached and plan.constants[node.input[1]].shape[1] == 3:
            front.append(node)
    if not front or len({n.input[0] for n in front}) != 1:
        return plan
    name, side = front[0].input[0], plan.model.graph.input[0].type.tensor_type.shape.dim
    black, white = (
        next(seen(plan.model, [name], np.full((1, side[1].dim_value, side[2].dim_value, 3), value, np.uint8)))[name]
        for value in (0, 255)
    )
    if any(np.ptp(x, axis=(2, 3)).max() > 1e-5 for x in (black, white)):
        return plan
    offset, slope = black[0, :, 0, 0].astype(np.float64), (white - black)[0, :, 0, 0].astype(np.float64) / 255
    zero = round(float(np.mean(-offset / slope)))
    if np.abs(zero + offset / slope).max() > 1 or not 0 <= zero <= 255:
        return plan
    return _pixels_first(plan, front, slope, offset, zero)


def _pixels_first(
    plan: Plan, front: list[NodeProto], slope: NDArray[np.float64], offset: NDArray[np.float64], zero: int
) -> Plan:
    model = onnx.ModelProto()
    model.CopyFrom(plan.model)
    nodes = [
        helper.make_node("Transpose", ["images"], [PLANES], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", [PLANES], [f"{PIXELS}/float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Sub", [f"{PIXELS}/float", f"{PIXELS}/zero"], [PIXELS]),
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.array(zero, np.float32), f"{PIXELS}/zero"))
    changed = {n.output[0] for n in front}
    for node in model.graph.node:
        if node.output[0] in changed:
            weight = plan.constants[node.input[1]].astype(np.float64)
            bias = plan.constants[node.input[2]] if len(node.input) > 2 else 0.0
            new = {
                f"{node.output[0]}/weight": weight * slope[:, None, None],
                f"{node.output[0]}/bias": bias + (weight * (slope * zero + offset)[:, None, None]).sum(axis=(1, 2, 3)),
            }
            model.graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), k) for k, v in new.items())
            node.input[:] = [PIXELS, *new]
        nodes.append(node)
    set_nodes(model, nodes)
    return Plan(model, zero)


def set_nodes(model: onnx.ModelProto, nodes: list[NodeProto]) -> None:
    """`nodes` in the place of the model's, less those, and those constants, that nothing reads."""
    kept: list[NodeProto] = []
    needed = {output.name for output in model.graph.output}
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.insert(0, node)
    constants = [i for i in model.graph.initializer if i.name in needed]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(constants)
