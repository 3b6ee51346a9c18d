"""Predictions of a network or of an exported graph through one interface, so that both are measured alike."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.contract.progress import Progress
from service.contract.reasons import QUALITY
from training.data.readers import Images, ImageSet
from training.network.network import FeatureTrunk, Network, Trunk, place, to_input
from training.runs.checkpoint import Run
from training.scores.either import Either, unknown_of
from training.scores.scores import Fitted, Reference, Seen, find, fitted

BATCH_IMAGES = 200


@dataclass(frozen=True)
class Outputs:
    """Of N images: probabilities [N, C], one array [N] per score, and the measures of their pixels [N, 3] where the
    graph gives them."""

    probabilities: NDArray[np.float32]
    scores: dict[str, NDArray[np.float32]]
    quality: NDArray[np.float32] | None = None

    @property
    def predictions(self) -> NDArray[np.int64]:
        return np.asarray(self.probabilities.argmax(axis=1), np.int64)

    def take(self, rows: NDArray[np.int64]) -> "Outputs":
        quality = None if self.quality is None else self.quality[rows]
        return Outputs(self.probabilities[rows], {name: values[rows] for name, values in self.scores.items()}, quality)


Predict = Callable[[Images], Outputs]  # uint8 [N, H, W, 3], or float32 [N, V, F] → Outputs


class Deployed(nn.Module):
    """The module that is exported: uint8 [N, H, W, 3] → probabilities [N, C], then one [N] per score of `score_names`,
    then what `embedding`, where one is set, makes of the features of stage 1, then, where `gives_raw`, what the trunk
    behind the probabilities gives before it is brought to the form that the head takes [N, F].

    Scores come from the stage-1 network, probabilities from the stage-2 logits divided by the temperature. Where only
    the head differs the trunk runs once. `shift` [C] is added to the class logits that scores see. `either` adds the
    score that it makes of one of `scores` and the class logits.
    """

    def __init__(
        self, scoring: Network, classifying: Network, scores: Mapping[str, Fitted], *, passes: int, temperature: float,
        shift: Tensor | None = None, either: Either | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.scoring, self.passes, self.temperature = scoring, passes, temperature
        self.trunk = classifying.trunk if passes == 2 else None
        self.head = classifying.head
        self.shared = classifying.head is scoring.head
        self.either = either
        self.score_names = (*scores, *([either.name] if either else []))
        self.scores = nn.ModuleList(scores.values())
        self.register_buffer("shift", shift, persistent=False)
        self.embedding: nn.Module | None = None
        self.gives_raw = False

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = to_input(images)
        raw = self.scoring.trunk.raw(x)
        own = raw if self.trunk is None else self.trunk.raw(x)
        found = self.behind(raw, own)
        return (*found, own) if self.gives_raw else found

    def behind(self, raw: Tensor, own: Tensor) -> tuple[Tensor, ...]:
        """What stands behind the trunks, from what that of stage 1 and that behind the probabilities give [N, F]."""
        features = self.scoring.trunk.finished(raw)
        logits = self.scoring.head(features)
        own_features = features if self.trunk is None else self.trunk.finished(own)
        class_logits = logits if self.shared else self.head(own_features)
        seen = Seen(
            features, logits if self.shift is None else logits + self.shift, self.scoring.rejects(features)
        )  # fmt: skip
        found = [score(seen) for score in self.scores]
        if self.either is not None:
            found.append(self.either(found[self.score_names.index(self.either.unknown)], class_logits))
        more = [] if self.embedding is None else [self.embedding(features)]
        return (class_logits / self.temperature).softmax(dim=1), *found, *more

    @property
    def classifying_trunk(self) -> Trunk | FeatureTrunk:
        """The trunk behind the probabilities: that of stage 2 where it has its own."""
        return self.scoring.trunk if self.trunk is None else self.trunk


ALWAYS = ("energy", "msp")  # every bundle gives these beside the deciding score


def deployed(
    run: Run, temperature: float = 1.0, *, scores: Sequence[str] = (), train: ImageSet | None = None,
    device: torch.device | None = None, either: Either | None = None,
) -> Deployed:  # fmt: skip
    """The module of a finished run, in eval mode, with energy, MSP, and `scores` (not given: the method's).

    `train` are the images that scores with constants are fitted on, on `device` (not given: the network's). `either` is
    what stands behind a name like "energy|msp" among `scores`. Raises ValueError where a score does not fit the
    network, or needs `train` or `either`.
    """
    wanted = [*ALWAYS, *(scores or [run.method.score])]
    two = [name for name in wanted if unknown_of(name)]
    if any(either is None or name != either.name for name in two):
        raise ValueError(f"{two[0]} is calibrated before it can be computed: calibrate the run with --score {two[0]}")
    names = list(dict.fromkeys(unknown_of(name) or name for name in wanted))
    shift = None
    if run.method.score_tau:
        counts = torch.tensor(run.train_counts)
        shift = -run.method.score_tau * (counts / counts.sum()).log()
    reference = None
    if train is not None and any(row.fit for name in names if (row := find(name))):
        reference = refer(run.scoring, train, shift, device)
    has_reject = run.scoring.reject is not None
    built = {name: fitted(name, reference, has_reject) for name in names}
    return Deployed(
        run.scoring, run.classifying, built, passes=run.method.passes, temperature=temperature, shift=shift,
        either=either if two else None,
    ).eval()  # fmt: skip


@torch.no_grad()
def refer(network: Network, train: ImageSet, shift: Tensor | None, device: torch.device | None = None) -> Reference:
    """Features and logits of the training images as they are, and the head; on `device`, not given the network's."""
    device = device or next(network.parameters()).device
    weight, bias = (t.detach().to(device) for t in network.linear())
    bias = bias if shift is None else bias + shift.to(device)
    features = torch.from_numpy(embed(network, train.images, device)).to(device)
    labels = torch.from_numpy(train.labels).to(device)
    reject = None if network.reject is None else network.reject.to(device)(features)
    return Reference(features, features @ weight.T + bias, labels, weight, bias, reject)


@torch.no_grad()
def embed(network: Network, images: Images, device: torch.device) -> NDArray[np.float32]:
    """Features [N, F] of images as they are, in eval mode and full precision."""
    trunk = network.eval().trunk.to(device)
    starts = Progress(range(0, len(images), BATCH_IMAGES), desc="embed", leave=False, disable=len(images) < 2000)
    batches = (torch.from_numpy(np.ascontiguousarray(images[s : s + BATCH_IMAGES])) for s in starts)
    features = [trunk(to_input(batch.to(device))).float().cpu().numpy() for batch in batches]
    return np.concatenate(features) if features else np.empty((0, trunk.features), np.float32)


def torch_predict(module: Deployed, device: torch.device) -> Predict:
    module = place(module, device)

    def run(images: NDArray[Any]) -> list[NDArray[Any]]:
        with torch.inference_mode():
            return [t.float().cpu().numpy() for t in module(torch.from_numpy(images).to(device))]

    return in_batches(run, module.score_names)


def in_batches(
    run: Callable[[NDArray[Any]], list[NDArray[Any]]], scores: Sequence[str], *, workers: int = 1
) -> Predict:
    """Predict from a function that gives [probabilities, *scores in the order of `scores`] of one batch; one of these
    may be QUALITY, which is no score.

    With `workers` above 1 so many threads run batches at once: `run` must allow it.
    """

    def predict(images: Images) -> Outputs:
        def part(start: int) -> list[NDArray[Any]]:
            return run(np.ascontiguousarray(images[start : start + BATCH_IMAGES]))

        starts = range(0, len(images), BATCH_IMAGES)
        bar = partial(
            Progress, total=len(starts), desc="predict", unit="batch", leave=False, disable=len(images) < 2000
        )
        if workers == 1:
            parts = [*bar(map(part, starts))]
        else:
            with ThreadPoolExecutor(workers) as pool:
                parts = [*bar(pool.map(part, starts))]
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        named = dict(zip(scores, columns[1:], strict=True))
        return Outputs(columns[0], quality=named.pop(QUALITY, None), scores=named)

    return predict
