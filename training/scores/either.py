"""The larger of two scores, named like "energy|msp": one says that an image is unknown, the other that its class is.

    max((u - a) / b, (v - c) / d)

u is a score of SCORES or the sum of two that says how far an image lies from what was learnt; v is the doubt about its
class, the log-odds of 1 - p with p the largest probability at the calibrated temperature. Refusing what is unknown and
what would be answered wrongly, with one threshold, is selective classification with outliers (Xia & Bouganis 2022;
Narasimhan et al. 2024). a, b, c and d are fitted so that at the default level each part refuses its share of
in-distribution images, and that both shares grow alike when the threshold falls.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.contract.reasons import LEAST_DOUBT, Part
from training.scores.scores import SCORES, Score, find
from training.scores.scores import require_score as require_plain

MARK, DOUBT = "|", "msp"
UNSURE_SHARE = 0.3  # of the refusals of in-distribution images
# Of a part where its share lies beyond, at least: thresholds are raised by a share of themselves against rounding,
# which has the size of the scores.
ORIGIN = 10.0
FURTHER = 4  # times the share at which a part is one less: its scale is how far the score falls until then
LEAST_UNSURE = 0.05  # of 1 - p, where the part is ORIGIN: an image of which the model is surer is not between classes
LEAST_SCALE = 1e-3  # of the span from the 5% to the 95% quantile, where many images share one score
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Either:
    """Two scores made comparable. `temperature` is that of the probabilities whose doubt is taken."""

    unknown: str  # a score of what is unknown, by name
    temperature: float
    unknown_part: Part
    unsure_part: Part
    refused: float = 0.05  # of in-distribution images, which the two shares make up

    @property
    def name(self) -> str:
        return self.unknown + MARK + DOUBT

    @property
    def formula(self) -> str:
        """For the manifest."""
        u, v = self.unknown_part, self.unsure_part
        return (
            f"max(({self.unknown} - {u.at:.6g})/{u.scale:.6g}, (log((1-p)/p) - {v.at:.6g})/{v.scale:.6g}), "
            "p the largest probability"
        )

    def __call__(self, unknown: Tensor, class_logits: Tensor) -> Tensor:
        """[N] from the score of what is unknown [N] and the logits of the classes [N, C]."""
        best = (class_logits / self.temperature).softmax(dim=1).amax(dim=1)
        return larger(unknown, best, self.unknown_part, self.unsure_part)

    def values(self, unknown: NDArray[np.floating[Any]], probabilities: NDArray[np.floating[Any]]) -> Floats:
        """The same of scores [N] and of probabilities [N, C] at the temperature."""
        return np.maximum(*self.parts(unknown, probabilities))

    def parts(
        self, unknown: NDArray[np.floating[Any]], probabilities: NDArray[np.floating[Any]]
    ) -> tuple[Floats, Floats]:
        """The two that `values` is the larger of."""
        u, v = self.unknown_part, self.unsure_part
        return (unknown.astype(np.float64) - u.at) / u.scale, (doubts(probabilities) - v.at) / v.scale

    def record(self) -> dict[str, Any]:
        """For calibration.json; `read` takes it."""
        return {
            "unknown": self.unknown, "temperature": self.temperature, "refused": self.refused,
            "unknown_part": self.unknown_part.model_dump(), "unsure_part": self.unsure_part.model_dump(),
        }  # fmt: skip


def read(record: dict[str, Any] | None) -> Either | None:
    """What `record` wrote."""
    if record is None:
        return None
    parts = {key: Part(**record[key]) for key in ("unknown_part", "unsure_part")}
    return Either(record["unknown"], record["temperature"], **parts, refused=record["refused"])


def larger(unknown: Tensor, best: Tensor, u: Part, v: Part) -> Tensor:
    """[N] from scores of what is unknown and largest probabilities [N], by the part of each."""
    doubt = (1 - best).clamp_min(LEAST_DOUBT).log() - best.log()
    return torch.maximum((unknown - u.at) / u.scale, (doubt - v.at) / v.scale)


def doubts(probabilities: NDArray[np.floating[Any]]) -> Floats:
    """service.contract.reasons.doubt of each row [N, C]."""
    best = probabilities.max(axis=1).astype(np.float64)
    return np.asarray(np.log(np.maximum(1 - best, LEAST_DOUBT)) - np.log(np.maximum(best, LEAST_DOUBT)))


def fit(
    unknown: str, scores: NDArray[np.floating[Any]], probabilities: NDArray[np.floating[Any]], temperature: float, *,
    refused: float = 0.05, unsure_share: float = UNSURE_SHARE, weights: Floats | None = None,
) -> Either:  # fmt: skip
    """The constants from in-distribution images: their scores of what is unknown [N], and probabilities [N, C] at the
    temperature, each counting by its weight [N].

    `refused`: their share that the default level allows to be refused, of which `unsure_share` for being unsure. Raises
    ValueError for an `unsure_share` that is not between 0 and 1.
    """
    if not 0 < refused < 1:
        raise ValueError(f"level {1 - refused:g} is no share of images to keep: give one between 0 and 1, 0.95 say")
    if not 0 < unsure_share < 1:
        raise ValueError(f"--unsure-share {unsure_share:g}: give a share of the refusals between 0 and 1, 0.3 say")
    weights = np.ones(len(scores)) if weights is None else weights
    shares = (refused * (1 - unsure_share), refused * unsure_share)
    at = (
        _place(scores.astype(np.float64), weights, shares[0]),
        _place(doubts(probabilities), weights, shares[1], math.log(LEAST_UNSURE / (1 - LEAST_UNSURE))),
    )
    origin = max(ORIGIN, *(abs(place) / scale for place, scale in at))
    unknown_part, unsure_part = (
        Part(at=place - origin * scale, scale=scale, share=share)
        for (place, scale), share in zip(at, shares, strict=True)
    )
    return Either(unknown, temperature, unknown_part, unsure_part, refused=refused)


def _place(values: Floats, weights: Floats, share: float, least_at: float = -math.inf) -> tuple[float, float]:
    """Where `share` of the images lie beyond, but not below `least_at`; how far further down FURTHER times as many do:
    an exponential tail goes on so."""
    at, below = _beyond(values, weights, share), _beyond(values, weights, min(FURTHER * share, 0.5))
    least = LEAST_SCALE * (_beyond(values, weights, 0.05) - _beyond(values, weights, 0.95))
    if at < least_at:  # hardly any image is unsure: the scale is that of an exponential tail of log-odds
        at, scale = least_at, max(at - below, math.log(FURTHER))
    else:
        scale = max(at - below, least, 1e-9)
    return at, scale


def _beyond(values: Floats, weights: Floats, share: float) -> float:
    """The value above which `share` of the weight lies."""
    order = np.argsort(values, kind="stable")
    up_to = np.cumsum(weights[order])
    places = (up_to - weights[order] / 2) / up_to[-1]
    return float(np.interp(1 - share, places, values[order]))


# ------------------------------------------------------------------------------------------------------- names of them


def unknown_of(name: str) -> str | None:
    """The score of what is unknown in a name like "energy|msp"; None for another name."""
    first, mark, second = name.partition(MARK)
    return first if mark and second == DOUBT else None


def says_unknown(name: str) -> bool:
    """Whether a score, or the sum of two, says that an image is unknown: not where it compares the classes."""
    row = find(name)
    return row is not None and not row.constant_for_one_class


def require_score(name: str, has_reject: bool, num_classes: int | None = None) -> Score:
    """As scores.require_score, of the first score where `name` is like "energy|msp". ValueError where that compares the
    classes, which the second one does, and where there is one class."""
    unknown = unknown_of(name)
    if unknown is None:
        return require_plain(name, has_reject, num_classes)
    row = require_plain(unknown, has_reject, num_classes)
    if row.constant_for_one_class:
        able = ", ".join(other for other in SCORES if says_unknown(other))
        raise ValueError(f"Score {name!r}: {unknown} compares the classes, as {DOUBT} does. Choose from: {able}.")
    if num_classes == 1:
        raise ValueError(f"Score {name!r} compares classes, and these data have one. Choose {unknown} alone.")
    return row
