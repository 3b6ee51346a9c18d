"""Conformal sets of classes: at a level of .9, the classes among which the true one is in nine images of ten.

    sets = PredictionSets(manifest.sets, [c.group for c in manifest.classes])
    sets.of(probabilities, 0.9)        # places of the classes, the most probable first
    sets.limits(0.9).too_few           # groups all of whose classes are in every set, for want of calibration images

A class belongs to the set unless 1 - its probability is larger than that of nearly all calibration images of its group
(of the true class), for their own class: the smallest sets on average at their level (Sadinle, Lei & Wasserman 2019),
one quantile for each group (Mondrian; Vovk et al. 2005), so that the level holds for the images of a tail as for those
of the head. The most probable class is always in the set.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from service.contract.reference import ByGroup, Frozen, Reference

KEPT_LIMITS = 64  # levels whose limits are kept: clients ask for a few


class SetFigures(Frozen):
    """Sets of one level on held-out images; groups are those of the true class."""

    level: float = Field(gt=0, lt=1)
    images: int = Field(ge=0)
    images_by_group: dict[str, int]
    covered: float  # share of images whose set holds the true class
    covered_by_group: ByGroup
    mean_size: float  # classes of a set
    mean_size_by_group: ByGroup
    too_few: tuple[str, ...]  # groups with too few calibration images for the level


class Sets(Frozen):
    """`references`: by group of the true class, p-values of 1 - its probability; a group without calibration images has
    none. `measured`: what sets of several levels come to."""

    references: dict[str, Reference]
    measured: tuple[SetFigures, ...]


class Limits(NamedTuple):
    """`values` float64 [C]: a class is in the set up to this 1 - probability, inf where there are `too_few` images."""

    values: NDArray[np.float64]
    too_few: tuple[str, ...]


class PredictionSets:
    """Sets for the classes whose `groups` [C] are given. May be used by several threads at once."""

    def __init__(self, sets: Sets, groups: Sequence[str]) -> None:
        self._references = sets.references
        self._groups = np.array(groups)
        self.limits = lru_cache(KEPT_LIMITS)(self._limits)

    def _limits(self, level: float) -> Limits:
        """The limits at a level between 0 and 1."""
        values = np.full(len(self._groups), np.inf)
        too_few = []
        for group in dict.fromkeys(self._groups.tolist()):
            reference = self._references.get(group)
            try:
                limit = np.inf if reference is None else reference.threshold(level)
            except ValueError:  # too few images for a p-value that small
                limit = np.inf
            values[self._groups == group] = limit
            if np.isinf(limit):
                too_few.append(group)
        return Limits(values, tuple(too_few))

    def contains(self, probabilities: NDArray[np.floating], level: float) -> NDArray[np.bool_]:
        """bool [N, C] of probabilities [N, C]: which are in the sets. What is not a number is never left out."""
        inside = ~(nonconformity(probabilities) > self.limits(level).values)
        inside[np.arange(len(inside)), probabilities.argmax(axis=1)] = True
        return np.asarray(inside)

    def of(self, probabilities: NDArray[np.floating], level: float) -> list[int]:
        """The classes in the set of one image from its probabilities [C], the most probable first."""
        places = np.flatnonzero(self.contains(probabilities[None], level)[0])
        return [int(i) for i in places[np.argsort(-probabilities[places], kind="stable")]]


def nonconformity(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """1 - probability, in double precision: how little a class suits an image."""
    return np.asarray(1.0 - probabilities.astype(np.float64))
