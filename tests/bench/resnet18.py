"""A bundle whose graph is an fp32 ResNet-18 (He et al. 2016) for 224 x 224 pixels, 10 classes, with random weights.

    python -m tests.bench.resnet18 FOLDER            # the new folder becomes the bundle
    python -m tests.bench.resnet18 FOLDER --fp16     # its trunk in fp16, as `export --precision fp16` makes it

What it says about images means nothing; what it costs is what a ResNet-18 costs. Batch normalisation is folded into
the convolutions, as onnxruntime does when it loads a graph.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.contract import bundle, images
from service.contract.bundle import Input
from tests.bench import photos
from tests.service import tiny

SIDE = 224
CLASSES = 10
STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # channels and first stride; two basic blocks each
EXAMPLE = "examples/photo.jpg"


class _Graph:
    """Nodes and weights in the order they are added; every method gives the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(0)

    def node(self, kind: str, *inputs: str, output: str | None = None, **attributes: object) -> str:
        name = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, value: NDArray[np.generic]) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def normal(self, shape: tuple[int, ...], fan_in: int) -> str:
        """He initialisation (He et al. 2015)."""
        return self.constant(self._random.normal(0, (2 / fan_in) ** 0.5, shape).astype(np.float32))

    def conv(self, source: str, channels: tuple[int, int], kernel: int, stride: int) -> str:
        weights = self.normal((channels[1], channels[0], kernel, kernel), channels[0] * kernel * kernel)
        bias = self.constant(np.zeros(channels[1], np.float32))
        pad = kernel // 2
        return self.node("Conv", source, weights, bias, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)

    def block(self, source: str, channels: tuple[int, int], stride: int) -> str:
        inner = self.node("Relu", self.conv(source, channels, 3, stride))
        inner = self.conv(inner, (channels[1], channels[1]), 3, 1)
        if stride != 1 or channels[0] != channels[1]:
            source = self.conv(source, channels, 1, stride)
        return self.node("Relu", self.node("Add", inner, source))


def graph() -> bytes:
    """The serialised ONNX graph: `images` uint8 [N, 224, 224, 3] to `probabilities`, `energy` and `msp`."""
    g = _Graph()
    pixels = g.node("Cast", g.node("Transpose", "images", perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    mean = g.constant(np.array([123.675, 116.28, 103.53], np.float32).reshape(1, 3, 1, 1))
    std = g.constant(np.array([58.395, 57.12, 57.375], np.float32).reshape(1, 3, 1, 1))
    x = g.node("Div", g.node("Sub", pixels, mean), std)
    x = g.node("Relu", g.conv(x, (3, 64), 7, 2))
    x = g.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    before = 64
    for channels, stride in STAGES:
        x = g.block(x, (before, channels), stride)
        x = g.block(x, (channels, channels), 1)
        before = channels
    x = g.node("Flatten", g.node("GlobalAveragePool", x))
    scale = g.constant(np.float32(0.1))  # without batch normalisation the features are large, and one class took all
    logits = g.node("MatMul", g.node("Mul", x, scale), g.normal((before, CLASSES), before))
    axis = g.constant(np.array([1]))
    g.node("Softmax", logits, axis=1, output="probabilities")
    g.node("Neg", g.node("ReduceLogSumExp", logits, axis, keepdims=0), output="energy")
    largest = g.node("ReduceMax", "probabilities", axis, keepdims=0)
    g.node("Sub", g.constant(np.float32(1)), largest, output="msp")
    outputs = {"probabilities": ["N", CLASSES], "energy": ["N"], "msp": ["N"]}
    made = helper.make_graph(
        g.nodes,
        "resnet18",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        g.weights,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    serialised: bytes = model.SerializeToString()
    return serialised


def write(folder: Path, *, half: bool = False) -> Path:
    """Write the bundle to the new `folder`. Raises BundleError when it exists."""
    target = {"height_px": SIDE, "width_px": SIDE, "fit": "crop", "resampling": "bilinear"}
    model, photo = graph(), photos.photo().data
    if half:
        from training.export.half import halved

        model = halved(model)
    pixels = images.load(photo, Input.model_validate(target), max_pixels=1_000_000).pixels
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    probabilities, energy, msp = session.run(["probabilities", "energy", "msp"], {"images": pixels[None]})
    names = [f"class{i}" for i in range(CLASSES)]
    golden = {
        "file": EXAMPLE,
        "label": names[int(probabilities[0].argmax())],
        "probabilities": probabilities[0].tolist(),
        "scores": {"energy": float(energy[0]), "msp": float(msp[0])},
    }
    classes = [
        {"name": name, "train_count": 1000 >> i, "group": tiny.GROUPS[3 * i // CLASSES], "accuracy": None,
         "rejected": None}
        for i, name in enumerate(names)
    ]  # fmt: skip
    precision = "fp16" if half else "fp32"
    fields = tiny.manifest(name="resnet18", input=target, classes=classes, golden=[golden], precision=precision)
    fields["calibration"]["class_shares"] = [1 / CLASSES] * CLASSES
    bundle.write(folder, fields, {"model.onnx": model, EXAMPLE: photo})
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fp16", action="store_true")
    given = parser.parse_args()
    print(write(given.folder, half=given.fp16))
