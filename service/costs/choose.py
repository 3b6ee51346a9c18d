"""Thresholds of least expected cost: one for all images, one for a group of predicted classes, one for a class.

An unfit image is refused whatever the threshold, as the service refuses it: it costs a refusal, and no threshold is
chosen on it. A narrower threshold is taken only where images support it: chosen on four fifths of the images predicted
so and paid on the last fifth, five times, it must save more than the wider one by two standard errors of the
difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.contract.bundle import Manifest
from service.contract.intervals import Z95
from service.contract.outcomes import Outcomes
from service.costs.given import Costs

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
LEAST_IMAGES = 20  # predicted so, known or not
FOLDS = 5
SEED = 0
ROUNDING = 1e-12  # of sums, beside the largest of them: costs may be in any unit


@dataclass(frozen=True)
class Bill:
    """Of N calibration images: predicted class, deciding score, what accepting and refusing costs, which `share` of all
    images each stands for (summing to 1), whether it is known, whether accepting it is wrong, whether it is unfit."""

    predicted: Ints
    score: Floats
    accept: Floats
    refuse: Floats
    share: Floats
    known: NDArray[np.bool_]
    wrong: NDArray[np.bool_]
    unfit: NDArray[np.bool_]

    def take(self, rows: NDArray[np.generic]) -> "Bill":
        return Bill(*(values[rows] for values in vars(self).values()))

    def fit(self) -> "Bill":
        """Those that a threshold decides on."""
        return self.take(~self.unfit)

    def refused(self, limits: Floats | float) -> NDArray[np.bool_]:
        """bool [N]: those with a score above their limit, and the unfit ones."""
        return np.asarray((self.score > limits) | self.unfit)

    def paid(self, limits: Floats | float) -> Floats:
        """[N] the cost of each image at these limits."""
        return np.where(self.refused(limits), self.refuse, self.accept)


def bill(manifest: Manifest, found: Outcomes, costs: Costs) -> Bill:
    """What the calibration images would have cost. Without outliers they are all known."""
    names = [info.name for info in manifest.classes]
    each = [costs.of(name) for name in names]
    wrong_accept = np.array([c.wrong_accept for c in each], np.float64)
    missed = np.array([c.missed or 0.0 for c in each], np.float64)
    unknown = np.array([c.unknown_accept for c in each], np.float64)
    known, wrong = found.known, found.label != found.predicted
    of_wrong = np.maximum(wrong_accept[found.predicted], np.where(known, missed[found.label], 0.0))
    accept = np.where(known, np.where(wrong, of_wrong, 0.0), unknown[found.predicted])
    refuse = np.array([c.refusal for c in each], np.float64)[found.predicted]
    share = np.where(known, found.weight, 0.0) * (1 - costs.unknown_share) / found.weight[known].sum()
    if not known.all():
        share = np.where(known, share, costs.unknown_share * found.weight / found.weight[~known].sum())
    return Bill(found.predicted, found.score, accept, refuse, share, known, wrong, found.refused_anyway)


@dataclass(frozen=True)
class Rule:
    """One threshold for all images; by group and by place of the class those that are taken in its stead."""

    threshold: float
    groups: dict[str, float]
    classes: dict[int, float]

    def limits(self, predicted: Ints, groups: Sequence[str]) -> Floats:
        """[N] the threshold of each image; `groups` [C] of the classes."""
        by_class = np.array([self.classes.get(i, self.groups.get(g, self.threshold)) for i, g in enumerate(groups)])
        return np.asarray(by_class[predicted], np.float64)


class Saving(NamedTuple):
    """What a threshold of its own saves a class for each image predicted so, with its standard error; of how many."""

    name: str
    images: int
    saved: float
    error: float
    taken: bool


def choose(found: Bill, groups: Sequence[str]) -> Rule:
    """The rule of least cost on these images, some of which must be fit; `groups` [C] of the classes."""
    found = found.fit()
    rule = Rule(best(found), {}, {})
    for group in dict.fromkeys(groups):
        own = found.take(np.isin(found.predicted, [i for i, g in enumerate(groups) if g == group]))
        if supported(*saving(own, rule.threshold)):
            rule = replace(rule, groups=rule.groups | {group: best(own)})
    for place, group in enumerate(groups):
        own = found.take(found.predicted == place)
        if supported(*saving(own, rule.groups.get(group, rule.threshold))):
            rule = replace(rule, classes=rule.classes | {place: best(own)})
    return rule


def best(found: Bill) -> float:
    """The threshold of least cost, midway to the next score; of equals the one that accepts most."""
    order = np.argsort(found.score, kind="stable")
    scores, share = found.score[order], found.share[order]
    change = (share * (found.accept - found.refuse)[order]).cumsum()  # accepting up to here instead of refusing
    ends = np.flatnonzero(np.append(scores[1:] > scores[:-1], True))
    sums = np.append(0.0, change[ends])
    lowest = np.flatnonzero(sums <= sums.min() + ROUNDING * np.abs(sums).max())[-1]
    beyond = max((scores[-1] - scores[0]) / 10, 1e-3 * max(1.0, abs(float(scores[-1]))))
    if lowest == 0:
        return float(scores[0] - beyond)
    at = ends[lowest - 1]
    return float(scores[at] + beyond if at == len(scores) - 1 else (scores[at] + scores[at + 1]) / 2)


def folds(count: int) -> Ints:
    """int64 [count]: which fifth each image belongs to, drawn."""
    return np.random.default_rng(SEED).permutation(np.arange(count) % FOLDS)


def saving(own: Bill, wider: float) -> tuple[float, float]:
    """(what a threshold of their own saves against the wider one for each of these images, its standard error)."""
    if len(own.score) < LEAST_IMAGES or not own.share.sum() > 0:
        return 0.0, np.inf
    fold, saved = folds(len(own.score)), np.zeros(len(own.score))
    for k in range(FOLDS):
        test = own.take(fold == k)
        saved[fold == k] = test.paid(wider) - test.paid(best(own.take(fold != k)))
    weights = own.share / own.share.sum()
    mean = float((weights * saved).sum())
    return mean, float(np.sqrt((weights**2 * (saved - mean) ** 2).sum()))


def supported(saved: float, error: float) -> bool:
    return saved > Z95 * error and saved > 0


def savings(found: Bill, rule: Rule, names: Sequence[str], groups: Sequence[str]) -> list[Saving]:
    """Of each class that fit images were predicted as."""
    found, out = found.fit(), []
    for place, (name, group) in enumerate(zip(names, groups, strict=True)):
        own = found.take(found.predicted == place)
        if len(own.score):
            saved, error = saving(own, rule.groups.get(group, rule.threshold))
            out.append(Saving(name, len(own.score), saved, error, place in rule.classes))
    return out


def cross_fitted(found: Bill, groups: Sequence[str]) -> Floats:
    """[N] the limit of each image under the rule that the other images choose."""
    limits, rows, fit = np.zeros(len(found.score)), np.flatnonzero(~found.unfit), found.fit()
    fold = folds(len(rows))  # of those alone, so that every part has some where there are two
    for k in range(FOLDS):
        limits[rows[fold == k]] = choose(fit.take(fold != k), groups).limits(fit.predicted[fold == k], groups)
    return limits
