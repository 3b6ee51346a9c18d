"""An exported graph with its trunk in fp16 and all that follows, head, softmax and scores, in fp32.

    smaller = halved(graph)     # the same inputs and outputs, about half the bytes

A GPU computes the trunk in fp16; a CPU has no such kernels, and onnxruntime goes back to fp32 there. Blocking nodes in
onnxruntime's converter would still round to fp16 between them, so the trunk is cut out, converted, and set back.
"""

from collections.abc import Iterable

import onnx
from onnx import NodeProto, TensorProto, helper

from training.network.onnx_graph import BACKBONE

SCOPES = "pkg.torch.onnx.name_scopes"  # where torch's exporter notes the modules that a node came from


class HalfError(ValueError):
    """The graph has no trunk that could be in fp16."""


def halved(graph: bytes) -> bytes:
    """`graph`, images uint8 → float32 outputs, its trunk in fp16. Raises HalfError where no trunk is found."""
    from onnxruntime.transformers.float16 import convert_float_to_float16  # a second to import, for this alone

    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph))
    inside = _trunk(list(model.graph.node))
    front = [node for node in model.graph.node if node.output[0] in inside]
    back = [node for node in model.graph.node if node.output[0] not in inside]
    if not front:
        raise HalfError("--precision fp16: no convolution and no backbone was found in the graph; use fp32")
    given = {i.name for i in model.graph.initializer}
    shared = given & _taken(front) & (_taken(back) | {o.name for o in model.graph.output})
    for node in front:  # a constant that both sides use becomes two
        node.input[:] = [f"{name}/half" if name in shared else name for name in node.input]
    converted = convert_float_to_float16(_cut_out(model, front, back, shared), keep_io_types=True)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:], made.graph.initializer[:], made.graph.value_info[:]
    made.graph.node.extend([*converted.graph.node, *back])
    made.graph.initializer.extend(converted.graph.initializer)
    needed = _taken(back)
    made.graph.initializer.extend(i for i in model.graph.initializer if i.name in needed)
    onnx.checker.check_model(made)
    content: bytes = made.SerializeToString()
    return content


def _trunk(nodes: list[NodeProto]) -> set[str]:
    """First outputs of the nodes of the trunk: a backbone's, and all that a convolution needs."""
    maker = {name: node for node in nodes for name in node.output}
    waiting = [node for node in nodes if node.op_type == "Conv" or _of_backbone(node)]
    inside: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node.output[0] not in inside:
            inside.add(node.output[0])
            waiting.extend(maker[name] for name in node.input if name in maker)
    return inside


def _of_backbone(node: NodeProto) -> bool:
    """Whether `node` lies in a pretrained part: of a chained graph by its name, of a tuned trunk by its module.

    TunedTrunk calls that module by the same word.
    """
    scopes = next((p.value for p in node.metadata_props if p.key == SCOPES), "")
    return node.name.startswith(f"{BACKBONE}/") or f".{BACKBONE}." in scopes or f".{BACKBONE}'" in scopes


def _taken(nodes: Iterable[NodeProto]) -> set[str]:
    return {name for node in nodes for name in node.input if name}


def _cut_out(
    model: onnx.ModelProto, front: list[NodeProto], back: list[NodeProto], shared: set[str]
) -> onnx.ModelProto:
    """The nodes `front` as a model of their own; what `back` and the model give on of theirs are its outputs."""
    wanted = _taken(back) | {o.name for o in model.graph.output}
    known = {v.name: v for v in (*model.graph.value_info, *model.graph.output)}
    outputs = [
        known.get(name) or helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for node in front
        for name in node.output
        if name in wanted
    ]
    constants = []
    needed = _taken(front)
    for constant in model.graph.initializer:
        copy = TensorProto()
        copy.CopyFrom(constant)
        copy.name = f"{constant.name}/half" if constant.name in shared else constant.name
        if copy.name in needed:
            constants.append(copy)
    cut = helper.make_graph(front, "trunk", list(model.graph.input), outputs, constants)
    return helper.make_model(cut, opset_imports=list(model.opset_import), ir_version=model.ir_version)
