"""The trunk of a network from scratch as ONNX, its BatchNorms folded into the convolutions before them.

    graph = behind_trunks(head, {"features": trunk}, size_px)     # head takes `features`

Written node by node: torch's exporter needs longer for these convolutions than for all that stands behind them.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from training.network.network import Block, Trunk
from training.network.nodes import Nodes

PREFIX = "trunk/"


def behind_trunks(head: bytes, trunks: Mapping[str, Trunk], size_px: int) -> bytes:
    """`images` uint8 [N, size_px, size_px, 3], N dynamic → what `head` gives. `trunks` in eval mode, by the name of the
    input [N, F] of `head` that the trunk's `raw` is; those are tensors of the graph under the same names."""
    nodes = Nodes(PREFIX)
    pixels = nodes.node("Transpose", "images", perm=[0, 3, 1, 2])
    pixels = nodes.node("Div", nodes.node("Cast", pixels, to=TensorProto.FLOAT), nodes.floats(255.0))
    for name, trunk in trunks.items():
        _write(nodes, trunk, pixels, name)
    model = onnx.load_from_string(head)
    graph = model.graph
    assert {given.name for given in graph.input} == set(trunks)
    behind = [*graph.node]
    del graph.node[:], graph.input[:]
    graph.node.extend([*nodes.written, *behind])
    graph.initializer.extend(nodes.constants.values())
    shape: list[str | int | None] = ["N", size_px, size_px, 3]
    graph.input.append(helper.make_tensor_value_info("images", TensorProto.UINT8, shape))
    for name, trunk in trunks.items():
        graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", trunk.features]))
    content: bytes = model.SerializeToString()
    return content


def _write(nodes: Nodes, trunk: Trunk, pixels: str, gives: str) -> None:
    """What Trunk.raw does, node by node."""
    x = nodes.node("Relu", _convolution(nodes, pixels, trunk.conv, trunk.bn))
    for block in trunk.stages:
        assert isinstance(block, Block)
        y = nodes.node("Relu", _convolution(nodes, x, block.conv1, block.bn1))
        y = _convolution(nodes, y, block.conv2, block.bn2)
        x = nodes.node("Relu", nodes.node("Add", y, _convolution(nodes, x, *block.shortcut)))
    nodes.node("ReduceMean", x, nodes.constant([2, 3]), gives=gives, keepdims=0)


def _convolution(nodes: Nodes, x: str, conv: nn.Module | None = None, norm: nn.Module | None = None) -> str:
    """`x` itself where there is no convolution, as in an empty shortcut."""
    if conv is None:
        return x
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    fused = fuse_conv_bn_eval(conv, norm)
    assert fused.bias is not None
    padding = np.broadcast_to(fused.padding, 2).tolist()
    return nodes.node(
        "Conv", x, nodes.floats(fused.weight), nodes.floats(fused.bias),
        strides=list(fused.stride), pads=[*padding, *padding],
    )  # fmt: skip
