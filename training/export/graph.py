"""Networks → an ONNX graph: BatchNorm folded, and run on the CPU as the service runs it."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.fusion import fuse_conv_bn_eval

from service.contract.embedding import EMBEDDING
from training.evaluation.predict import Deployed, Predict, in_batches
from training.network.network import Block, Trunk
from training.network.onnx_graph import FEATURES, chained, exported, with_outputs
from training.network.session import session

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # uint8 [N, H, W, 3] → [N, D] of length 1


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
    """The fp32 graph: images uint8 [N, H, W, 3], N dynamic → probabilities, the scores, the embedding if it has one,
    and FEATURES.

    `backbone` is the graph of a frozen one, images → features, behind which `module`, which takes features, is set.
    """
    module = copy.deepcopy(module)
    gives = ["probabilities", *module.score_names, *([EMBEDDING] if module.embedding is not None else [])]
    if backbone is not None:
        head = exported(module, torch.zeros(2, module.scoring.trunk.features), takes="trunk_features", gives=gives)
        return with_outputs(chained(backbone, head, FEATURES, "trunk_features"), [*gives, FEATURES])
    module.gives_raw = True
    gives.append(FEATURES)
    for trunk in (module.scoring.trunk, module.trunk):
        if isinstance(trunk, Trunk):
            fold_norms(trunk)
    sample = torch.zeros(2, size_px, size_px, 3, dtype=torch.uint8)
    return exported(module, sample, takes="images", gives=gives)


def onnx_predict(graph: bytes, *, workers: int = 1) -> Predict:
    """Predict with onnxruntime on the CPU, `workers` batches at once."""
    opened = session(graph)
    names = [output.name for output in opened.get_outputs() if output.name not in (EMBEDDING, FEATURES)]

    def run(images: NDArray[Any]) -> list[NDArray[Any]]:
        return [np.asarray(output) for output in opened.run(names, {"images": images})]

    return in_batches(run, names[1:], workers=workers)


def onnx_embed(graph: bytes) -> Embed:
    """The embedding by a graph that gives one, on the CPU, a batch at a time."""
    opened = session(graph)
    return lambda images: np.asarray(opened.run([EMBEDDING], {"images": images})[0])
