"""Images to calibrate on beside images to measure on: test images, or each fold beside the others."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.contract.calibration.calibrate import Weighted
from service.contract.calibration.groups import Groups
from service.contract.calibration.mix import ClassMix
from training.evaluation.cross_fit import Judged
from training.evaluation.predict import Outputs

Probabilities = NDArray[np.float32]
Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]
Refuses = Callable[[Outputs], Flags]


class Outside(NamedTuple):
    """Images of no class: probabilities [M, C], and which are refused [M] at the default operating point."""

    probabilities: Probabilities
    refused: Flags


class Pair(NamedTuple):
    """Images to calibrate on with probabilities [N, C], and others to measure on with labels [M] and probabilities.

    `refused` [M]: at the default operating point; `outside`: the OOD sets, not empty ones.
    """

    known: Weighted
    known_probabilities: Probabilities
    labels: Ints
    probabilities: Probabilities
    refused: Flags
    outside: Sequence[Outside]


def pair(
    known: Weighted, known_outputs: Outputs, labels: Ints, outputs: Outputs, ood: Mapping[str, Outputs], refused: Flags,
    refuses: Refuses,
) -> Pair:  # fmt: skip
    """Of calibration images `known`, and of images with these labels, outputs and refusals."""
    outside = [Outside(out.probabilities, refuses(out)) for out in ood.values() if len(out.probabilities)]
    return Pair(known, known_outputs.probabilities, labels, outputs.probabilities, refused, outside)


def fold_pairs(
    judged: Judged, score: str, groups: Groups, mix: ClassMix, refused: Flags, refuses: Refuses
) -> Iterator[Pair]:
    """Of each fold, calibrated on the others."""
    for k, ood in enumerate(judged.ood):
        own, others = judged.of(k), np.flatnonzero(judged.folds != k)
        known = Weighted.by_mix(judged.scored(score, others), mix, groups)
        yield pair(
            known, judged.outputs.take(others), judged.labels[own], judged.outputs.take(own), ood, refused[own], refuses
        )
