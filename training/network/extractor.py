"""An exported feature extractor of any framework: what its ONNX file says of itself, and its normalisation put inside.

The input is one tensor of RGB, [N, 3, H, W] or [N, H, W, 3]: float32 or float16, normalised, or uint8 as it is. The
output that is taken is [N, F], or a feature map that is averaged over its positions. Size, mean and std are given, or
read from the file's metadata_props (`size`, `mean`, `std`, `layout`; numbers separated by commas).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.inliner import inline_local_functions

from service.contract.lines import one_line
from training.network.extractor_graph import (
    of_any_number,
    tried,
    two_images,
    with_float_input,
    with_one_output,
    with_usual_operators,
)
from training.network.onnx_graph import chained, opset_of
from training.network.preprocessing import PLAIN, BackboneError, Preprocessing, three
from training.network.pretrained import digest

Layout = Literal["NCHW", "NHWC"]
EXTERNAL = "external_data_sha256"
KINDS = ("FLOAT", "FLOAT16", "UINT8")


@dataclass(frozen=True)
class Extractor:
    """A verified file: `graph` takes float [N, 3, H, W] or [N, H, W, 3] and gives `features` float32 [N, F]."""

    graph: bytes
    preprocessing: Preprocessing
    layout: Layout
    features: int
    provenance: dict[str, str]


def read(
    path: Path, size_px: int | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None,
    layout: Layout | None,
) -> Extractor:  # fmt: skip
    """The extractor in `path`. Raises BackboneError where the file, or what is known of its input, does not do."""
    model = _model(path)
    said = {entry.key.lower(): entry.value for entry in model.metadata_props}
    image = _input(path, model)
    shape = [d.dim_value if d.HasField("dim_value") else 0 for d in image.type.tensor_type.shape.dim]
    layout = layout or _layout(path, shape, said.get("layout"))
    sides = shape[2:] if layout == "NCHW" else shape[1:3]
    size = _size(path, sides, size_px or _number(path, said.get("size")))
    if image.type.tensor_type.elem_type == TensorProto.UINT8:
        if given := next((f"--backbone-{key}" for key, value in (("mean", mean), ("std", std)) if value), None):
            raise BackboneError(f"{given}: {path} takes pixels as they are, uint8, and normalises them: leave it out")
        mean, std = (0.0, 0.0, 0.0), PLAIN
    mean = mean or _numbers(path, said, "mean")
    std = std or _numbers(path, said, "std")
    if mean is None or std is None:
        raise BackboneError(
            f"{path} does not say the mean and std that its pixels are normalised with: give --backbone-mean and "
            "--backbone-std, of RGB in [0, 1] (0,0,0 and 1,1,1 for plain [0, 1])"
        )
    preprocessing = Preprocessing(size, three(mean, "mean"), three(std, "std"))
    pixels = two_images(preprocessing, layout)
    own = with_one_output(path, of_any_number(with_float_input(model, image)), pixels)
    model = with_usual_operators(path, own)
    features = tried(path, own, model, pixels)
    provenance = {
        "backbone": path.name,
        "weights": path.name,
        "weights_sha256": digest(path),
        **_beside(path),
        "licence": said.get("licence") or said.get("license") or "not stated by the file",
    }
    return Extractor(model.SerializeToString(), preprocessing, layout, features, provenance)


def _beside(path: Path) -> dict[str, str]:
    """`external_data_sha256` of the files in which the weights lie, as exporters write large ones; else nothing."""
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    names = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    found = "".join(digest(path.parent / name) for name in sorted(names))
    return {EXTERNAL: hashlib.sha256(found.encode()).hexdigest()} if names else {}


def with_normalisation(graph: bytes, preprocessing: Preprocessing, layout: Layout) -> bytes:
    """ONNX: images uint8 [N, H, W, 3] → features float32 [N, F]. `graph` is that of an Extractor."""
    inner = onnx.load_from_string(graph)
    image = inner.graph.input[0]
    size = preprocessing.size_px
    shape: list[str | int | None] = ["N", size, size, 3]
    scale = np.array([1 / (255 * s) for s in preprocessing.std], np.float32)
    shift = np.array([-m / s for m, s in zip(preprocessing.mean, preprocessing.std, strict=True)], np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["normalised" if layout == "NHWC" else "shifted"]),
    ]
    if layout == "NCHW":
        nodes.append(helper.make_node("Transpose", ["shifted"], ["normalised"], perm=[0, 3, 1, 2]))
    inner_shape: list[str | int | None] = ["N", 3, size, size] if layout == "NCHW" else shape
    front = helper.make_model(
        helper.make_graph(
            nodes, "normalise", [helper.make_tensor_value_info("images", TensorProto.UINT8, shape)],
            [helper.make_tensor_value_info("normalised", TensorProto.FLOAT, inner_shape)],
            [numpy_helper.from_array(scale, "scale"), numpy_helper.from_array(shift, "shift")],
        ),
        opset_imports=[helper.make_opsetid("", opset_of(inner))], ir_version=inner.ir_version,
    )  # fmt: skip
    return chained(front.SerializeToString(), graph, "normalised", image.name)


def _model(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise BackboneError(f"--backbone onnx:{path}: there is no such file")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
        model = inline_local_functions(model)
    except Exception as error:  # protobuf, checker and missing external data raise unrelated classes
        raise BackboneError(f"--backbone onnx:{path} is no ONNX model that can be read: {one_line(error)}") from error
    return model


def _input(path: Path, model: onnx.ModelProto) -> Any:
    constants = {i.name for i in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    kinds = [(i.name, TensorProto.DataType.Name(i.type.tensor_type.elem_type)) for i in inputs]
    if len(inputs) != 1 or kinds[0][1] not in KINDS or len(inputs[0].type.tensor_type.shape.dim) != 4:
        raise BackboneError(
            f"{path} takes {kinds}: one tensor of images [N, 3, H, W] or [N, H, W, 3] is needed, {', '.join(KINDS)}"
        )
    return inputs[0]


def _layout(path: Path, shape: list[int], said: str | None) -> Layout:
    if said and said.upper() in ("NCHW", "NHWC"):
        return said.upper()  # type: ignore[return-value]
    if (shape[1] == 3) != (shape[3] == 3):
        return "NCHW" if shape[1] == 3 else "NHWC"
    raise BackboneError(f"{path} takes {shape} and does not say where its channels are: give --backbone-layout")


def _size(path: Path, sides: list[int], wanted: int | None) -> int:
    fixed = {side for side in sides if side}
    if len(fixed) > 1:
        raise BackboneError(f"{path} takes images of {sides[0]} x {sides[1]} pixels: only squares are supported")
    if fixed and wanted not in (None, *fixed):
        raise BackboneError(f"--image-size-px {wanted}: {path} takes {fixed.pop()} pixels and no other size")
    size = wanted or next(iter(fixed), None)
    if size is None:
        raise BackboneError(f"{path} takes images of any size and does not say its own: give --image-size-px")
    return size


def _number(path: Path, said: str | None) -> int | None:
    if said is None:
        return None
    if not said.isdecimal() or int(said) < 1:
        raise BackboneError(f"{path}: its metadata give the size {said!r}, no number: give --image-size-px")
    return int(said)


def _numbers(path: Path, said: Mapping[str, str], key: str) -> tuple[float, ...] | None:
    if key not in said:
        return None
    try:
        return tuple(float(part) for part in said[key].strip("[]() ").split(","))
    except ValueError:
        raise BackboneError(
            f"{path}: its metadata give the {key} {said[key]!r}, not three numbers: give --backbone-{key}"
        ) from None
