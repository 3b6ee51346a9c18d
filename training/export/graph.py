"""Networks → an ONNX graph: BatchNorm folded, fp32 or int8, and run on the CPU as the service runs it."""

import copy
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnxruntime import quantization
from torch.nn.utils.fusion import fuse_conv_bn_eval

from service.contract.bundle import Input
from training.data.readers import Pixels
from training.evaluation.predict import Deployed, Predict, in_batches
from training.network.frozen import resized
from training.network.network import Block, Trunk
from training.network.onnx_graph import chained, exported


def fold_norms(trunk: Trunk) -> None:
    """Fold each BatchNorm into the convolution before it (eval mode): the same function, fewer operations."""
    identity = torch.nn.Identity()
    trunk.conv, trunk.bn = fuse_conv_bn_eval(trunk.conv, trunk.bn), identity  # type: ignore[assignment]
    for block in trunk.stages:
        assert isinstance(block, Block)
        block.conv1, block.bn1 = fuse_conv_bn_eval(block.conv1, block.bn1), identity  # type: ignore[assignment]
        block.conv2, block.bn2 = fuse_conv_bn_eval(block.conv2, block.bn2), identity  # type: ignore[assignment]
        if len(block.shortcut):
            fused = fuse_conv_bn_eval(block.shortcut[0], block.shortcut[1])  # type: ignore[arg-type, type-var]
            block.shortcut = torch.nn.Sequential(fused)


def to_onnx(module: Deployed, size_px: int, backbone: bytes | None = None) -> bytes:
    """The fp32 graph: images uint8 [N, H, W, 3], N dynamic → probabilities, then the scores.

    `backbone` is the graph of a frozen one, images → features, behind which `module`, which takes features, is set.
    """
    module = copy.deepcopy(module)
    gives = ["probabilities", *module.score_names]
    if backbone is not None:
        head = exported(module, torch.zeros(2, module.scoring.trunk.features), takes="trunk_features", gives=gives)
        return chained(backbone, head, "features", "trunk_features")
    for trunk in (module.scoring.trunk, module.trunk):
        if isinstance(trunk, Trunk):
            fold_norms(trunk)
    sample = torch.zeros(2, size_px, size_px, 3, dtype=torch.uint8)
    return exported(module, sample, takes="images", gives=gives)


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc, unused-ignore]
    def __init__(self, images: Pixels) -> None:
        self.batches: Iterator[dict[str, Any]] = iter(
            [{"images": images[i : i + 64]} for i in range(0, len(images), 64)]
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


def sums_outside_trunk(model: onnx.ModelProto) -> list[str]:
    """Names of the Add nodes whose sum is no feature map [N, C, H, W]: those of logits and scores."""
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.value_info}
    return [node.name for node in model.graph.node if node.op_type == "Add" and ranks.get(node.output[0]) != 4]


def quantize(graph: bytes, images: Pixels) -> bytes:
    """Static int8 in QDQ form: uint8 activations, int8 weights per channel; heads, softmax and scores stay fp32.

    Weights use 7 of their 8 bits (reduce_range): on CPUs without VNNI the 8-bit product saturates in 16 bits, and a
    bundle would decide one way on the machine that calibrated it and another on the one that serves it.
    """
    logging.getLogger().setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        source, prepared, target = (str(Path(folder) / f"{n}.onnx") for n in ("source", "prepared", "target"))
        Path(source).write_bytes(graph)
        quantization.quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared, target, _Reader(images), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            reduce_range=True, activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["Conv", "Add"], nodes_to_exclude=sums_outside_trunk(onnx.load(prepared)),
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )  # fmt: skip
        return Path(target).read_bytes()


def onnx_predict(graph: bytes, target: Input | None = None, *, workers: int = 1) -> Predict:
    """Predict with onnxruntime on the CPU, `workers` batches at once; images are first brought to `target`."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: NDArray[Any]) -> list[NDArray[Any]]:
        if target is not None:
            images = resized(images, target)
        return [np.asarray(output) for output in session.run(names, {"images": images})]

    return in_batches(run, names[1:], workers=workers)
