"""ONNX nodes and constants that are written one by one: at once, where torch's exporter takes seconds."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor


@dataclass
class Nodes:
    """Nodes in their order, and constants by name. All that they name begins with `prefix`, but named outputs."""

    prefix: str
    written: list[NodeProto] = field(default_factory=list)
    constants: dict[str, TensorProto] = field(default_factory=dict)

    def node(self, kind: str, *inputs: str, gives: str | None = None, **attributes: Any) -> str:
        """The name of the one output: `gives`, or one of its own."""
        name = gives or f"{self.prefix}{kind}_{len(self.written)}"
        self.written.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: Any, dtype: DTypeLike = np.int64) -> str:
        """The name of a constant."""
        name = f"{self.prefix}constant_{len(self.constants)}"
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value, dtype), name)
        return name

    def floats(self, value: Tensor | NDArray[Any] | float) -> str:
        """The name of a constant float32."""
        return self.constant(value.detach().numpy() if isinstance(value, Tensor) else value, np.float32)
