"""From a network, or an exported graph, to what a decision needs: one interface for evaluating and calibrating both."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from training.checkpoint import Run
from training.network import Network, place, to_input
from training.readers import Pixels
from training.scores import SCORES

BATCH_IMAGES = 200


@dataclass(frozen=True)
class Outputs:
    """Of N images: probabilities [N, C], and one array [N] per score."""

    probabilities: NDArray[np.float32]
    scores: dict[str, NDArray[np.float32]]

    @property
    def predictions(self) -> NDArray[np.int64]:
        return np.asarray(self.probabilities.argmax(axis=1), np.int64)


Predict = Callable[[Pixels], Outputs]  # uint8 [N, H, W, 3] → Outputs


class Deployed(nn.Module):
    """The graph that ships: uint8 [N, H, W, 3] → probabilities [N, C], then one [N] per score of SCORES.

    Scores come from the stage-1 logits, probabilities from the stage-2 logits divided by the temperature. Where only
    the head differs the trunk runs once.
    """

    def __init__(self, scoring: Network, classifying: Network, *, passes: int, temperature: float) -> None:
        super().__init__()
        self.scoring, self.passes, self.temperature = scoring, passes, temperature
        self.shared = classifying is scoring
        self.trunk = classifying.trunk if passes == 2 else None
        self.head = classifying.head

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = to_input(images)
        features = self.scoring.trunk(x)
        logits = self.scoring.head(features)
        class_logits = logits if self.shared else self.head(self.trunk(x) if self.trunk is not None else features)
        return ((class_logits / self.temperature).softmax(dim=1), *(score(logits) for score in SCORES.values()))


def deployed(run: Run, temperature: float = 1.0) -> Deployed:
    """The module of a finished run, in eval mode."""
    classifying = run.classifying if run.method.stage2 else run.scoring
    return Deployed(run.scoring, classifying, passes=run.passes, temperature=temperature).eval()


def torch_predict(module: Deployed, device: torch.device) -> Predict:
    module = place(module, device)

    def run(images: NDArray[np.uint8]) -> list[NDArray[Any]]:
        with torch.inference_mode():
            return [t.float().cpu().numpy() for t in module(torch.from_numpy(images).to(device))]

    return in_batches(run)


def in_batches(run: Callable[[NDArray[np.uint8]], list[NDArray[Any]]]) -> Predict:
    """Predict from a function that gives [probabilities, *scores in the order of SCORES] of one batch."""

    def predict(images: Pixels) -> Outputs:
        starts = range(0, len(images), BATCH_IMAGES)
        bar = tqdm(starts, desc="predict", unit="batch", leave=False, disable=len(images) < 2000)
        parts = [run(np.ascontiguousarray(images[s : s + BATCH_IMAGES])) for s in bar]
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        return Outputs(columns[0], dict(zip(SCORES, columns[1:], strict=True)))

    return predict
