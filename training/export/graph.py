"""Networks → an ONNX graph, run on the CPU as the service runs it."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.contract.embedding import EMBEDDING
from training.evaluation.predict import Deployed, Predict, in_batches
from training.network.network import Trunk
from training.network.onnx_graph import FEATURES, chained, exported, with_outputs
from training.network.session import session
from training.network.trunk_graph import behind_trunks

SCORING_FEATURES = "scoring_features"  # of the trunk of stage 1, where that behind the probabilities is another
Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # uint8 [N, H, W, 3] → [N, D] of length 1


class Behind(nn.Module):
    """What a module to be exported has behind its trunks: from raw features [N, F], of two trunks where it has two."""

    def __init__(self, module: Deployed) -> None:
        super().__init__()
        self.module = module

    def forward(self, raw: Tensor, own: Tensor | None = None) -> tuple[Tensor, ...]:
        return self.module.behind(raw, raw if own is None else own)


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
    first, own = module.scoring.trunk, module.classifying_trunk
    if isinstance(first, Trunk) and isinstance(own, Trunk):
        trunks = {FEATURES: own} if first is own else {SCORING_FEATURES: first, FEATURES: own}
        samples = tuple(torch.zeros(2, trunk.features) for trunk in trunks.values())
        head = exported(Behind(module), samples, takes=[*trunks], gives=gives)
        return with_outputs(behind_trunks(head, trunks, size_px), [*gives, FEATURES])
    module.gives_raw = True
    sample = torch.zeros(2, size_px, size_px, 3, dtype=torch.uint8)
    return exported(module, sample, takes="images", gives=[*gives, FEATURES])


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
