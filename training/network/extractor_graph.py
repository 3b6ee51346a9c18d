"""The graph of an exported feature extractor: brought to one form, and tried on two images before anything is computed.

The form: one float32 input of normalised pixels, any number of images, one output `features` float32 [N, F].
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper

from service.contract.lines import one_line
from training.network.onnx_graph import BACKBONE, OPSET, brought_to, opset_of
from training.network.preprocessing import PLAIN, BackboneError, Preprocessing

Floats = NDArray[np.float32]
PREFERRED = ("features", "embedding", "embeddings", "pooled")  # names of the output to take where there are several
SAME = 0.01  # of the largest feature, between an image alone and beside another: rounding of float16 stays below


def with_float_input(model: onnx.ModelProto, image: Any) -> onnx.ModelProto:
    """`model`, which takes `image`, with a float32 input in its place."""
    if image.type.tensor_type.elem_type == TensorProto.FLOAT:
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    taken = next(value for value in made.graph.input if value.name == image.name)
    cast = helper.make_node("Cast", [f"{image.name}.float32"], [image.name], to=taken.type.tensor_type.elem_type)
    made.graph.node.insert(0, cast)
    taken.name, taken.type.tensor_type.elem_type = f"{image.name}.float32", TensorProto.FLOAT
    return made


def of_any_number(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` for N images, where it was exported for one, say. Whether its inner shapes allow that, `tried` sees."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    constants = {i.name for i in made.graph.initializer}
    ends = [*(i for i in made.graph.input if i.name not in constants), *made.graph.output]
    if all(not end.type.tensor_type.shape.dim[:1] or end.type.tensor_type.shape.dim[0].dim_param for end in ends):
        return model
    for end in ends:
        if end.type.tensor_type.shape.dim:
            end.type.tensor_type.shape.dim[0].dim_param = "N"
    del made.graph.value_info[:]  # shapes of inner tensors, for the number that was
    return made


def with_one_output(path: Path, model: onnx.ModelProto, pixels: Floats) -> onnx.ModelProto:
    """`model` with the one output `features` float32 [N, F]: the preferred name, else the only output of rank 2, else a
    map, whose channels are where its two sides, which are equal as those of `pixels` are, are not."""
    ranks = {o.name: len(o.type.tensor_type.shape.dim) for o in model.graph.output}
    named = [name for name in PREFERRED if ranks.get(name) in (2, 4)]
    flat, maps = ([name for name, rank in ranks.items() if rank == wanted] for wanted in (2, 4))
    chosen = (named or (flat if len(flat) == 1 else []) or (maps if not flat and len(maps) == 1 else []))[:1]
    if not chosen:
        raise BackboneError(
            f"{path} gives {ranks} (name: rank): name one output [N, F], or one feature map, `features`"
        )
    made = onnx.ModelProto()
    made.CopyFrom(model)
    source, target = f"{BACKBONE}/{chosen[0]}", "features"
    made = compose.add_prefix(made, f"{BACKBONE}/", rename_inputs=False)  # an inner tensor may be called features
    if ranks[chosen[0]] == 4:
        _, first, middle, last = _run(path, model, chosen[0], pixels).shape
        if (first == middle) == (middle == last):
            raise BackboneError(f"{path} gives a feature map of {first} x {middle} x {last}, and which of these are "
                                "its channels cannot be told: export it with the mean over its positions")  # fmt: skip
        if first == middle:
            made.graph.node.append(helper.make_node("Transpose", [source], ["features.nchw"], perm=[0, 3, 1, 2]))
            source = "features.nchw"
        made.graph.node.append(helper.make_node("GlobalAveragePool", [source], ["features.pooled"]))
        made.graph.node.append(helper.make_node("Flatten", ["features.pooled"], ["features.flat"], axis=1))
        source = "features.flat"
    made.graph.node.append(helper.make_node("Cast", [source], [target], to=TensorProto.FLOAT))
    del made.graph.output[:]
    made.graph.output.append(helper.make_tensor_value_info(target, TensorProto.FLOAT, ["N", None]))
    return made


def with_usual_operators(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with the operators of OPSET or a later set, which the head behind it is exported in."""
    try:
        made = onnx.ModelProto()
        made.CopyFrom(model)
        return brought_to(made, max(OPSET, opset_of(model)))
    except Exception as error:  # of the converter, which is not written in Python
        raise BackboneError(
            f"{path} uses operators of opset {opset_of(model)}, which cannot be brought to {OPSET}: export it with "
            f"opset {OPSET} ({one_line(error)})"
        ) from error


def two_images(preprocessing: Preprocessing, layout: str) -> Floats:
    """Two different images as the extractor takes them: noise, and colours that change from side to side."""
    side = preprocessing.size_px
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3)).astype(np.float64)
    images[1] = np.linspace((0, 255, 64), (255, 0, 192), side).round()
    pixels = (images / 255 - preprocessing.mean) / preprocessing.std
    pixels = pixels.round() if preprocessing.std == PLAIN else pixels  # of uint8
    return (pixels.transpose(0, 3, 1, 2) if layout == "NCHW" else pixels).astype(np.float32)


def _run(path: Path, model: onnx.ModelProto, output: str, pixels: Floats) -> Floats:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found: Floats = session.run([output], {session.get_inputs()[0].name: pixels})[0]
    except Exception as error:  # onnxruntime raises a dozen unrelated classes
        raise BackboneError(
            f"{path} does not run on {len(pixels)} images, as {list(pixels.shape)} (where it was made for one: export "
            f"it with N dynamic): {one_line(error)}"
        ) from error
    return found


def tried(path: Path, own: onnx.ModelProto, model: onnx.ModelProto, pixels: Floats) -> int:
    """The number of features that `model` gives, which is made from `own`.

    Raises BackboneError where a run on two images fails, tells nothing of them, or gives one what `own` alone does not.
    """
    features = _run(path, model, "features", pixels)
    if features.ndim != 2 or len(features) != 2:
        raise BackboneError(f"{path} gives {list(features.shape)} for two images, not [2, F]: export it with N dynamic")
    if not np.isfinite(features).all():
        raise BackboneError(f"{path} gives features that are not finite: export it again, in float32")
    if np.array_equal(features[0], features[1]):
        raise BackboneError(f"{path} gives the same features for two different images: export the trained model")
    alone = np.concatenate([_run(path, own, "features", pixels[i : i + 1]) for i in range(2)])
    if np.abs(alone - features).max() > SAME * np.abs(features).max():
        raise BackboneError(f"{path} gives other features for an image when another stands beside it: export it for "
                            f"inference (model.eval()), without statistics of the batch, in opset {OPSET}")  # fmt: skip
    return int(features.shape[1])
