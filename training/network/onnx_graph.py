"""torch modules as ONNX, and one graph set behind another."""

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import compose, helper, version_converter
from torch import Tensor, nn

OPSET = 18
BACKBONE = "backbone"  # what chained puts before the names of the graph in front
FEATURES = "features"  # the tensor that the trunk behind the probabilities gives, in every graph that is exported


def exported(
    module: nn.Module, sample: Tensor | tuple[Any, ...], *, takes: str | Sequence[str], gives: Sequence[str]
) -> bytes:
    """`module` as ONNX: inputs like `sample` [2, ...], their first dimension N dynamic; the outputs `gives`.

    Several inputs are a tuple of tensors and lists of tensors, `takes` the names of all in their order.
    """
    samples = (sample,) if isinstance(sample, Tensor) else sample
    names = [takes] if isinstance(takes, str) else [*takes]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder, _out_of_place(module):
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            module.eval(), samples, path, dynamo=True, external_data=False, input_names=names,
            output_names=[*gives], verbose=False, opset_version=OPSET, dynamic_shapes=_shapes(samples),
        )  # fmt: skip
        return path.read_bytes()


def _shapes(sample: Any) -> Any:
    """The dynamic dimension of each tensor, in the order that the exporter expects them in."""
    if isinstance(sample, Tensor):
        return {0: torch.export.Dim("N")}
    return type(sample)(_shapes(part) for part in sample)


@contextmanager
def _out_of_place(module: nn.Module) -> Iterator[None]:
    """Activations that overwrite their input write a new tensor: the graph is the same, and the exporter, which takes
    each such operation apart in Python, needs less than half the time for a MobileNet."""
    inplace: list[Any] = [part for part in module.modules() if getattr(part, "inplace", False) is True]
    for part in inplace:
        part.inplace = False
    try:
        yield
    finally:
        for part in inplace:
            part.inplace = True


def chained(first: bytes, second: bytes, output: str, taken_as: str) -> bytes:
    """One graph: `second` behind `first`, whose `output` is what `second` takes as `taken_as`.

    Inner names of `first` get a prefix, so that the two may use the same. Inputs are those of `first`, outputs those of
    `second`. Operator sets are brought to the newer one.
    """
    front, back = onnx.load_from_string(first), onnx.load_from_string(second)
    opset = max(opset_of(front), opset_of(back))
    front, back = brought_to(front, opset), brought_to(back, opset)
    front.ir_version = back.ir_version = max(front.ir_version, back.ir_version)
    front = compose.add_prefix(front, f"{BACKBONE}/", rename_inputs=False, rename_outputs=False)
    merged = compose.merge_models(front, back, [(output, taken_as)])
    _name_once(merged, opset)
    onnx.checker.check_model(merged)
    content: bytes = merged.SerializeToString()
    return content


def brought_to(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """`model` with the standard operators of that version. Raises what the converter raises."""
    if opset_of(model) != opset:
        model = version_converter.convert_version(model, opset)
    del model.functions[:]  # what the exporter notes of its own functions clashes between two graphs
    _name_once(model, opset)
    return model


def _name_once(model: onnx.ModelProto, opset: int) -> None:
    """Standard operators have one version: merging names it once for each graph, and converting changes one of them.

    Other sets of operators, such as onnxruntime's own, stay where a node uses one.
    """
    used = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    others = {o.domain: o.version for o in model.opset_import if o.domain in used}
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(name, version) for name, version in {"": opset, **others}.items())


def with_outputs(graph: bytes, names: Sequence[str]) -> bytes:
    """`graph` with the outputs `names` alone, which it computes already."""
    model = onnx.load_from_string(graph)
    known = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    kept = [known.get(name) or onnx.ValueInfoProto(name=name) for name in names]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    content: bytes = model.SerializeToString()
    return content


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators that a model uses."""
    return next((int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")), OPSET)
