"""Which score decides? Chosen on calibration data by a rule that was fixed before any test image was looked at.

A stream holds two kinds of unknown things, and calibration data can stand for both:

    outliers    the outliers held back from training, against calibration images
    left out    classes left out in turn (left_out.py): their calibration images against those of the others

A score is worth the mean of its AUROCs over the kinds there are. The best one is taken; of those within TIE of it the
first in SCORES, which runs from simple to costly. The sum of two is taken only where it is better than the best single
one by PAIR_MARGIN, because among so many sums the best one is partly luck.

So that a refusal can say why, the best score of what is unknown is then joined with the doubt about the class, as the
larger of the two ("energy|msp", training/scores/either.py): the scores that compare classes are themselves such doubts
and stand back here. It decides unless it is worth less than the best score of all by more than EITHER_MARGIN.

Without a frozen backbone no class is left out: a network from scratch would have to be trained again for hours. Where
there are no outliers either, the method's own score decides, and the record says that nothing was compared.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.loading import Data
from training.data.readers import Images
from training.evaluation import left_out, predict
from training.evaluation.measure import require_calibration_images
from training.methods.outliers import OUTLIER_TERMS
from training.network.network import FeatureTrunk
from training.runs.checkpoint import Run
from training.runs.files import Json
from training.scores import either
from training.scores.either import DOUBT, MARK, says_unknown
from training.scores.scores import SCORES, span, span_step

TIE = 0.005
PAIR_MARGIN = 0.01
EITHER_MARGIN = 0.02
SHOWN = 8  # candidates in the record, beside the method's own score
LARGE = {"knn", "vim"}  # the bank of one is the largest part of a graph, the fit of the other takes longest
SAME_ON_UNIT_LENGTH = {"mahalanobis", "rmds"}  # as those of features of length 1
OUTLIERS, LEFT_OUT = "held-back outliers", "left-out classes"
RULE = (
    f"largest mean of the AUROCs against held-back outliers and left-out classes, as far as there are any; within "
    f"{100 * TIE:g} points the simpler score; the sum of two only where better by {100 * PAIR_MARGIN:g} point; "
    f"the best one of what is unknown with the doubt about the class beside it, where that is worth at most "
    f"{100 * EITHER_MARGIN:g} points less"
)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Candidate:
    """A score, or the sum of two as "one+other", with its AUROC against each kind of unknown thing."""

    score: str
    aurocs: Mapping[str, float]

    @property
    def worth(self) -> float:
        return float(np.mean(list(self.aurocs.values())))


@dataclass(frozen=True)
class Choice:
    """`score` decides. `candidates` from the best to the worst; none where there was nothing to compare them by."""

    score: str
    why: str
    candidates: tuple[Candidate, ...]
    images: Mapping[str, int]  # by kind of unknown thing

    def record(self, own: str) -> Json:
        """For calibration.json and the card: the choice, its margin and what it rests on; `own` is the method's."""
        shown = [c for i, c in enumerate(self.candidates) if i < SHOWN or c.score in (own, self.score)]
        by_name = {c.score: c for c in self.candidates}
        margin = by_name[self.score].worth - by_name[own].worth if own in by_name else None
        return {
            "score": self.score,
            "why": self.why,
            "rule": RULE,
            "method_score": own,
            "margin_over_method_score": margin,
            "images": dict(self.images),
            "candidates": [{"score": c.score, "mean_auroc": c.worth, "auroc": dict(c.aurocs)} for c in shown],
        }


def choose(run: Run, data: Data, device: torch.device, temperature: float = 1.0) -> Choice:
    """The deciding score of a finished run. Trains a head for each part of the classes where that takes seconds.

    `temperature`: of the probabilities whose doubt is looked at. Deterministic. Raises DataError without calibration
    images.
    """
    require_calibration_images(data)
    names, images, evidence = candidates(run), {}, dict[str, dict[str, float]]()
    if len(data.calibration_outliers):
        evidence[OUTLIERS] = _aurocs(run, data, names, [data.calibration_outliers], device, temperature)
        images[OUTLIERS] = len(data.calibration_outliers)
    if left_out.possible(run, data):
        found = [
            _aurocs(fold.run, fold.data, names, by_class(fold.unknown, fold.unknown_labels), device, temperature)
            for fold in left_out.left_out(run, data, device)
        ]
        evidence[LEFT_OUT] = {name: float(np.mean([row[name] for row in found])) for name in found[0]}
        images[LEFT_OUT] = len(data.calibration.labels)
    if not evidence:
        why = "the method's own: there are no held-back outliers, and no class can be left out, to compare scores by"
        return Choice(*_uncompared(run, why), (), {})
    every = [Candidate(name, {k: row[name] for k, row in evidence.items()}) for name in next(iter(evidence.values()))]
    score, why = best(every)
    shown = [c for c in every if MARK not in c.score or c.score == score]
    return Choice(score, why, tuple(sorted(shown, key=lambda c: -c.worth)), images)


def _uncompared(run: Run, why: str) -> tuple[str, str]:
    """(score, reason) where there is nothing to compare by: the method's own, with the doubt about the class beside it
    where it says what is unknown."""
    own = run.method.score
    if len(run.classes) > 1 and says_unknown(own):
        return f"{own}{MARK}{DOUBT}", f"{why}; the doubt about the class beside it, so that a refusal says why"
    return own, why


def best(every: list[Candidate]) -> tuple[str, str]:
    """(the score that the rule takes, the reason) of candidates in the order of SCORES, sums of two among them, and of
    those like "energy|msp"."""
    plain = [c for c in every if MARK not in c.score]
    score, why = _best_plain(plain)
    unknown = [c for c in plain if says_unknown(c.score)]
    first = _best_plain(unknown)[0] if unknown else ""
    both = next((c for c in every if c.score == f"{first}{MARK}{DOUBT}"), None)
    if both is None:
        return score, why
    lost = next(c for c in plain if c.score == score).worth - both.worth
    against = f"{100 * abs(lost):.1f} points {'below' if lost > 0 else 'above'} {score}, the best score ({why})"
    if lost > EITHER_MARGIN:
        return score, f"{why}; {both.score}, which says why it refuses, is too far below it: {100 * lost:.1f} points"
    return both.score, f"{first} says best what is unknown; with the doubt about the class beside it {against}"


def _best_plain(every: list[Candidate]) -> tuple[str, str]:
    """The same of single scores and sums of two."""
    singles, pairs = ([c for c in every if ("+" in c.score) == two] for two in (False, True))
    top = max(singles, key=lambda c: c.worth)
    pair = max(pairs, key=lambda c: c.worth, default=top)
    if pair.worth >= top.worth + PAIR_MARGIN:
        return pair.score, f"the sum is {100 * (pair.worth - top.worth):.1f} points better than {top.score} alone"
    simplest = next(c for c in singles if c.worth >= top.worth - TIE)
    if simplest is top:
        return top.score, "the best single score, and no sum of two is better enough"
    return simplest.score, f"within {100 * (top.worth - simplest.worth):.1f} points of {top.score}, and simpler"


def candidates(run: Run) -> list[str]:
    """The scores that mean something for a run's network and are cheap enough to be served, in the order of SCORES."""
    term = OUTLIER_TERMS.get(run.method.outlier_term)
    apart = term is not None and not term.joint  # its reject logit is no class: only its own score reads it
    names = []
    for name, row in SCORES.items():
        own = name == run.method.score
        if row.needs_reject and not own and (run.scoring.reject is None or apart or name == "in-or-out"):
            continue
        if row.constant_for_one_class and len(run.classes) == 1:
            continue
        unit = isinstance(run.scoring.trunk, FeatureTrunk) and name in SAME_ON_UNIT_LENGTH
        if own or not (unit or name in LARGE):
            names.append(name)
    return names


def by_class(images: Images, labels: NDArray[np.int64]) -> list[Images]:
    """The images of each class that has some."""
    return [images[np.flatnonzero(labels == c)] for c in np.unique(labels)]


# ---- AUROCs --------------------------------------------------------------------------------------------------------


def _aurocs(
    run: Run, data: Data, names: list[str], unknown: list[Images], device: torch.device, temperature: float
) -> dict[str, float]:
    """Of each score, of the sums of two, and of either of those and the doubt about the class: calibration images
    against each set of `unknown`, the sets' mean."""
    module = predict.deployed(run, temperature, scores=names, train=data.train, device=device)
    model = predict.torch_predict(module, device)
    some = data.train.images[:: span_step(len(data.train.labels))]
    spans = {name: span(values) for name, values in model(some).scores.items()}
    held = model(data.calibration.images)
    inside = dict(_with_sums(held.scores, spans, names))
    joined = {}
    if len(run.classes) > 1:
        joined = {
            name: either.fit(name, values, held.probabilities, temperature)
            for name, values in inside.items() if says_unknown(name)
        }  # fmt: skip
    inside |= {both.name: both.values(inside[name], held.probabilities) for name, both in joined.items()}
    total = dict.fromkeys(inside, 0.0)
    for images in unknown:
        out = model(images)
        outside = dict(_with_sums(out.scores, spans, names))
        outside |= {both.name: both.values(outside[name], out.probabilities) for name, both in joined.items()}
        for name, values in outside.items():
            total[name] += auroc(inside[name], values) / len(unknown)
    return total


def _with_sums(
    scores: Mapping[str, NDArray[np.float32]], spans: Mapping[str, float], names: list[str]
) -> Iterator[tuple[str, Floats]]:
    """The scores `names` and their sums of two, as scores.summed makes them."""
    for name in names:
        yield name, scores[name].astype(np.float64)
    for one, two in combinations(names, 2):
        yield f"{one}+{two}", scores[one].astype(np.float64) / spans[one] + scores[two].astype(np.float64) / spans[two]


def auroc(inside: Floats, outside: Floats) -> float:
    """The share of pairs in which the unknown one scores higher, ties half: AUROC with the unknown positive."""
    ordered = np.sort(inside)
    below, up_to = (np.searchsorted(ordered, outside, side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(inside)))
