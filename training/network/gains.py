"""The logit of the predicted class as a sum over features: what every one of them has brought, for this image.

    gains, rest = write(nodes, trunk, head, raw, probabilities)      # logit = gains · raw + rest + the head's bias

`raw` is what the trunk gives before standardisation, a mean over positions of its last maps: a mean may be taken apart
again, so `gains · map(x, y) + rest` is what one position has brought (training/export/heat_map.py). No gradient is
taken, and nothing is approximated: lengths, roots and the adapter's ReLU stand as they are for the image.
"""

import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor, nn

from training.network.network import CosineHead, FeatureTrunk, Trunk
from training.network.nodes import Nodes

LEAST_LENGTH = 1e-12  # that of F.normalize


def linear_map(head: nn.Module) -> tuple[Tensor, Tensor]:
    """(weight [C, F], bias [C]) of a head as a linear map of features; a scale by class stands behind it or not."""
    if isinstance(head, nn.Sequential):
        weight, bias = linear_map(head[0])
        scales: Tensor = head[1].scales  # type: ignore[assignment]
        return scales[:, None] * weight, scales * bias
    assert isinstance(head, nn.Linear)
    if isinstance(head, CosineHead):
        return head.scale * F.normalize(head.weight, dim=1), head.bias
    return head.weight, head.bias


def write(
    nodes: Nodes, trunk: Trunk | FeatureTrunk, head: nn.Module, raw: str, probabilities: str
) -> tuple[str, str]:  # fmt: skip
    """(gains [N, F], rest [N]) of the most probable class, of equals the first, from `raw` float32 [N, F] and
    `probabilities` [N, C]: names of tensors, all of them. For operator sets from 18 on."""
    best = nodes.node("ArgMax", probabilities, axis=1, keepdims=0)
    gains = nodes.node("Gather", nodes.floats(linear_map(head)[0]), best, axis=0)  # of the features the head takes
    if isinstance(trunk, FeatureTrunk):
        return _Back(nodes, trunk).through(raw, gains)
    if trunk.unit_norm:
        gains = nodes.node("Div", gains, _length(nodes, raw))
    return gains, nodes.node("ConstantOfShape", nodes.node("Shape", best))  # of zeros


def _length(nodes: Nodes, rows: str) -> str:
    """[N, 1] of [N, F]."""
    return nodes.node("Max", nodes.node("ReduceL2", rows, nodes.constant([1])), nodes.floats(LEAST_LENGTH))


class _Back:
    """From the features that the head takes back to `raw`, step by step, as FeatureTrunk has made them of it."""

    def __init__(self, nodes: Nodes, trunk: FeatureTrunk) -> None:
        self.nodes, self.trunk = nodes, trunk

    def through(self, raw: str, gains: str) -> tuple[str, str]:
        node, floats, trunk = self.nodes.node, self.nodes.floats, self.trunk
        rooted = bool(trunk.rooted)
        root = node("Sqrt", node("Max", raw, floats(trunk.LEAST_ROOTED))) if rooted else raw
        mean, deviation = floats(trunk.mean), floats(trunk.deviation)
        form = node("Div", node("Sub", root, mean), deviation)
        length = _length(self.nodes, form)
        aside = None
        if trunk.adapter is not None:
            gains, aside = self._adapter(trunk.adapter, node("Div", form, length), gains)
        gains = node("Div", node("Div", gains, length), deviation)
        rest = node("Neg", self._sum(gains, mean))
        if aside is not None:
            rest = node("Add", aside, rest)
        if rooted:  # a root is shared out over the positions as the feature itself is
            there, zero = node("Greater", raw, floats(0)), floats(0)
            shared = node("Mul", gains, root)
            rest = node("Add", rest, self._sum(node("Where", there, zero, shared)))
            gains = node("Where", there, node("Div", shared, node("Where", there, raw, floats(1))), zero)
        return gains, rest

    def _adapter(self, adapter: nn.Sequential, x: str, gains: str) -> tuple[str, str]:
        """(gains, rest) before a residual bottleneck, of gains behind it."""
        node, floats = self.nodes.node, self.nodes.floats
        into, _, out = adapter
        assert isinstance(into, nn.Linear)
        assert isinstance(out, nn.Linear)
        in_weight, in_bias, out_weight, out_bias = (floats(p) for p in (into.weight, into.bias, out.weight, out.bias))
        inner = node("Gemm", x, in_weight, in_bias, transB=1)
        added = node("Gemm", node("Relu", inner), out_weight, out_bias, transB=1)
        gains = node("Div", gains, _length(self.nodes, node("Add", x, added)))
        open_ = node("Cast", node("Greater", inner, floats(0)), to=TensorProto.FLOAT)
        back = node("Mul", node("MatMul", gains, out_weight), open_)
        rest = node("Add", self._sum(gains, out_bias), self._sum(back, in_bias))
        return node("Add", gains, node("MatMul", back, in_weight)), rest

    def _sum(self, rows: str, weights: str | None = None) -> str:
        """[N] of [N, F], each feature times its weight."""
        rows = rows if weights is None else self.nodes.node("Mul", rows, weights)
        return self.nodes.node("ReduceSum", rows, self.nodes.constant([1]), keepdims=0)
