"""Cross-fitting: every training and calibration image judged by a head that saw neither it nor what belongs with it.

The heads stand on features that are computed already, so each takes seconds. Two things come from what they say:

    figures      where there is no test part: nothing is taken away, and each image is a test image once
    thresholds   cross-conformal (Vovk 2015): all these scores together, not those of the calibration split alone

What such thresholds promise. A p-value is read among scores of heads that learnt from (K - 1)/K of the images, and the
image is scored by the head that ships. For K heads at once CV+ bounds the refusals of in-distribution images at the
level 1 - a by 2a and a little (Barber et al. 2021); for the one head that ships nothing is proved, and they come to
about a where the heads are alike. Measured (training/LOG.md), they are nearer to it than the split's, which is exact on
average and rests in a tail on a few dozen images.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from service.contract.calibration.calibrate import Scored
from training.data.loading import Data
from training.data.readers import DataError, ImageSet
from training.data.splits import folds
from training.evaluation import left_out, predict
from training.evaluation.evaluate import ood_results, results_of
from training.evaluation.predict import Outputs
from training.methods.methods import build_network
from training.network.network import Network
from training.runs import checkpoint
from training.runs.checkpoint import Run
from training.runs.files import Json
from training.scores.either import Either
from training.scores.scores import span, span_step

FOLDS = 5
NAMED = f"cross-fitted over {FOLDS} folds"
HEADS_FILE = "cross-fit.pt"
MOST_AWAY = 0.01  # of the span of a score; rounding is some ten thousandths of it
ROUNDING = 1e-6  # of a score in float32: one calibration image, or scores that are all alike, have no span
ONLY_IN_TRAINING = "projection."  # parameters that no score reads
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Judged:
    """What the heads say of the N images that each has not seen: labels and folds [N], outputs, and of each OOD set."""

    labels: Ints
    folds: Ints
    outputs: Outputs
    ood: tuple[dict[str, Outputs], ...]  # by head
    train_counts: list[int]
    unfit: NDArray[np.bool_]  # [N]
    figures: str = NAMED

    def results(self, score: str) -> Json:
        """As evaluate gives them: accuracy over all images, detection of each head by itself, then the mean."""
        scores, right = self.outputs.scores[score], self.outputs.predictions
        by_head = [
            {
                name: ood_results(self.labels[own], right[own], scores[own], out.scores[score], self.train_counts)
                for name, out in sets.items()
            }
            for sets, own in zip(self.ood, map(self.of, range(FOLDS)), strict=True)
        ]
        found = {name: mean([sets[name] for sets in by_head]) for name in by_head[0]}
        return results_of(self.labels, self.outputs, found, self.train_counts, score) | {"figures": self.figures}

    def of(self, fold: int) -> Ints:
        return np.flatnonzero(self.folds == fold)

    def scored(self, score: str, rows: Ints) -> Scored:
        return Scored(
            self.outputs.scores[score][rows].astype(np.float64), self.outputs.predictions[rows], self.labels[rows]
        )  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    """The heads that are kept; nothing where there are none or the file is damaged: they are trained again."""
    try:
        found: dict[str, Any] = torch.load(path, weights_only=True)
    except Exception:  # unpicklers raise nearly anything
        return {}
    return found


@dataclass(frozen=True)
class CrossFit:
    """The heads of a finished run on `data`, trained when they are first asked for and kept in the run's folder."""

    run: Run
    data: Data
    device: torch.device

    parted: ClassVar[bool] = True  # images that thresholds rest on were learnt from, though not by the head that judges
    figures: ClassVar[str] = NAMED
    calibrated_on: ClassVar[str] = f"the training and calibration images, {NAMED}"

    @cached_property
    def images(self) -> ImageSet:
        """Training images, then calibration images, each as it is."""
        train, held = self.data.train, self.data.calibration
        return ImageSet(
            np.concatenate([train.images[:, :1], held.images[:, :1]]), np.concatenate([train.labels, held.labels]),
            train.classes, np.concatenate([train.keys, held.keys]),
        )  # fmt: skip

    @cached_property
    def fold(self) -> Ints:
        """int64 [N] of `images`; -1: judged by none."""
        groups = self.data.choice.groups_of(self.images.keys)
        assert groups is not None
        learnt = np.arange(len(self.images.labels)) < len(self.data.train.labels)
        return folds(groups, self.images.labels, learnt, FOLDS)

    @property
    def judged_images(self) -> ImageSet:
        return self.images.take(np.flatnonzero(self.fold >= 0))

    @cached_property
    def heads(self) -> list[Run]:
        parts = [self.data.train.take(np.flatnonzero(self.fold[: len(self.data.train.labels)] != k))
                 for k in range(FOLDS)]  # fmt: skip
        return [
            replace(self.run, train_counts=part.counts.tolist(), scoring=network, classifying=network)
            for part, network in zip(parts, self._networks(parts), strict=True)
        ]

    def _networks(self, parts: list[ImageSet]) -> list[Network]:
        digest = hashlib.sha256(self.fold.tobytes() + self.images.keys.tobytes())
        digest.update(self.run.config.model_dump_json().encode())
        path, features = self.run.folder / HEADS_FILE, self.data.train.images.shape[2]
        kept = _read(path)
        if kept.get("of") != digest.hexdigest():
            made = [
                left_out.trained(self.run, replace(self.data, train=part), self.device, f"fold {k} of {FOLDS}")
                for k, part in enumerate(parts, 1)
            ]
            states = [{k: v for k, v in network.state_dict().items() if not k.startswith(ONLY_IN_TRAINING)}
                      for network in made]  # fmt: skip
            kept = {"of": digest.hexdigest(), "networks": states}
            checkpoint.write(path, kept)
        networks = []
        for state in kept["networks"]:
            network = build_network(self.run.method, len(self.run.classes), self.run.config.width, features)
            network.load_state_dict(network.state_dict() | state)
            networks.append(network.to(self.device).eval())
        return networks

    def require_same_scores(self, score: str, seen: NDArray[np.float32], either: Either | None = None) -> None:
        """ValueError unless the scores `seen` [M] of the calibration images are those of the run on its features.

        They are not for a graph that was made smaller after training, for which these heads say nothing.
        """
        module = predict.deployed(self.run, scores=[score], train=self.data.train, device=self.device, either=either)
        predicted = predict.torch_predict(module, self.device)
        own = predicted(self.data.calibration.images).scores[score]
        learnt = predicted(self.images.images[:: span_step(len(self.images.labels))]).scores[score]
        away = float(np.median(np.abs(own - seen)))
        allowed = max(MOST_AWAY * span(own), MOST_AWAY * span(learnt), ROUNDING * float(np.median(np.abs(own))))
        if not away <= allowed:
            raise ValueError(
                f"scores of the exported graph are {away:.3g} from those of the run that was cross-fitted, too far for "
                "its thresholds: train with --backbone-precision int8, or export with --precision fp32"
            )

    def judge(
        self, score: str, temperature: float = 1.0, either: Either | None = None,
        unfit: NDArray[np.bool_] | None = None,
    ) -> Judged:  # fmt: skip
        """`either` is what stands behind a name like "energy|msp"; `unfit`: which of `judged_images` are, not given:
        none. DataError where no image can be left out, as each class has one image or one group of them.
        """
        rows = np.flatnonzero(self.fold >= 0)
        if len(np.unique(self.fold[rows])) < FOLDS:
            raise DataError(
                f"{len(rows)} images in groups of their own do not fill {FOLDS} folds: give a test part, or "
                "--test-fraction"
            )
        parts, sets = [], list[dict[str, Outputs]]()
        for k, head in enumerate(self.heads):
            if self.parted or not sets:  # else one run judges every fold
                train = self.data.train.take(np.flatnonzero(self.fold[: len(self.data.train.labels)] != k))
                module = predict.deployed(
                    head, temperature, scores=[score], train=train, device=self.device, either=either
                )  # fmt: skip
                model = predict.torch_predict(module, self.device)
                outside = {name: model(images) for name, images in self.data.ood.items()}
            parts.append((np.flatnonzero(self.fold == k), model(self.images.images[self.fold == k])))
            sets.append(outside)
        order = np.argsort(np.concatenate([own for own, _ in parts]))
        outputs = Outputs(
            np.concatenate([found.probabilities for _, found in parts])[order],
            {name: np.concatenate([found.scores[name] for _, found in parts])[order] for name in parts[0][1].scores},
        )  # fmt: skip
        unfit = np.zeros(len(rows), bool) if unfit is None else unfit
        return Judged(
            self.images.labels[rows], self.fold[rows], outputs, tuple(sets), self.run.train_counts, unfit, self.figures
        )


def mean(rows: list[Json], missing: float | None = float("nan")) -> Json:
    """The mean of each number over the folds that have it, `missing` where none has; whole numbers as in the first."""
    out: Json = {}
    for key, value in rows[0].items():
        values = [row[key] for row in rows]
        if isinstance(value, dict):
            out[key] = mean(values, missing)
        elif isinstance(value, int):
            out[key] = value
        else:
            there = [v for v in values if v is not None and not np.isnan(v)]
            out[key] = float(np.mean(there)) if there else missing
    return out
