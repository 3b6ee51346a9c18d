"""Which maps of a graph its features are means of: found by walking back from the features.

Understood are the global mean of CNNs and of transformers that average their tokens, several of them side by side
(the stages of a backbone), each perhaps with a LayerNorm behind it. What else stands between maps and features is
named.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

# What moves values about and changes none, once there is one position: [N, F, 1, 1] → [N, F].
SHAPING = {"Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Cast", "Gather"}


class NotPooledError(ValueError):
    """The features are not means over positions; the message says what they are."""


@dataclass(frozen=True)
class Norm:
    """A LayerNorm behind the mean: γ, β and ε; None where it has none."""

    scale: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    epsilon: float


@dataclass(frozen=True)
class Pooled:
    """Some features in a row: the mean over the `axes` of the tensor `maps`, then `norm`."""

    maps: str
    axes: tuple[int, ...] | None  # perhaps counted from the end; None: all behind the second
    norm: Norm | None


class Walk:
    """Through the graph of `model`, against the arrows."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._maker: dict[str, NodeProto] = {name: node for node in model.graph.node for name in node.output}
        self._constants = {i.name: i for i in model.graph.initializer}

    def parts(self, name: str, norm: Norm | None = None) -> list[Pooled]:
        """The parts of the features `name`, in their order. Raises NotPooledError."""
        node = self._maker.get(name)
        if node is None:
            raise NotPooledError("the features are an input of the graph")
        known = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        kind = node.op_type
        if kind in SHAPING:
            return self.parts(node.input[0], norm)
        if kind == "Concat" and norm is None and known.get("axis") in (1, -1):
            return [part for given in node.input for part in self.parts(given)]
        if kind == "LayerNormalization" and norm is None and known.get("axis", -1) == -1:
            return self.parts(node.input[0], self._norm(node, known))
        if kind == "GlobalAveragePool":
            return [Pooled(node.input[0], None, norm)]
        if kind == "ReduceMean":
            return [Pooled(node.input[0], self._axes(node, known), norm)]
        raise NotPooledError(f"{kind} stands between the last maps and the features")

    def _axes(self, node: NodeProto, known: dict[str, Any]) -> tuple[int, ...]:
        given = known.get("axes") if len(node.input) < 2 else self._value(node.input[1])
        if given is None:
            raise NotPooledError("the features are means over axes that are not fixed")
        return tuple(int(axis) for axis in np.ravel(given))

    def _norm(self, node: NodeProto, known: dict[str, Any]) -> Norm:
        scale = self._value(node.input[1])
        bias = self._value(node.input[2]) if len(node.input) > 2 else None
        if scale is None or (len(node.input) > 2 and bias is None):
            raise NotPooledError("a LayerNorm without fixed weights stands between the last maps and the features")
        as_float = np.asarray(scale, np.float32), None if bias is None else np.asarray(bias, np.float32)
        return Norm(*as_float, float(known.get("epsilon", 1e-5)))

    def _value(self, name: str) -> NDArray[Any] | None:
        if name in self._constants:
            return np.asarray(numpy_helper.to_array(self._constants[name]))
        node = self._maker.get(name)
        if node is not None and node.op_type == "Constant":
            return np.asarray(numpy_helper.to_array(node.attribute[0].t))
        if node is not None and node.op_type in ("Cast", "Identity"):
            return self._value(node.input[0])
        return None
