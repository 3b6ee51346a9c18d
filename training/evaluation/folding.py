"""Which folds a run is judged by: of what is judged no head has seen anything.

a test part         none: thresholds rest on the calibration images, figures on the test images
a validation part   of its images (OnValidation): thresholds rest on them all, figures on each fold at the thresholds
                    that the others give
neither             of all images, each with a head of its own (cross_fit.CrossFit), where the backbone is frozen
"""

from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from training.data.loading import Data
from training.data.splits import dealt
from training.evaluation.cross_fit import FOLDS, NAMED, CrossFit, Ints
from training.methods.methods import NONE
from training.runs.checkpoint import Run

VALIDATED = f"{NAMED} of the validation images"


class OnValidation(CrossFit):
    """Folds of the validation images, all judged by the run itself, which has learnt from none of them."""

    parted = False
    figures = VALIDATED
    calibrated_on = "the calibration images"

    @cached_property
    def fold(self) -> Ints:
        held = self.data.calibration
        groups = self.data.choice.groups_of(held.keys)
        found = dealt(held.keys if groups is None else groups, held.labels, FOLDS)
        return np.concatenate([np.full(len(self.data.train.labels), -1), found])

    @cached_property
    def heads(self) -> list[Run]:
        return [self.run] * FOLDS


def kind(*, frozen: bool, tested: bool, validated: bool) -> type[CrossFit] | None:
    """Which folds a run on such data is judged by unless somebody says otherwise; None: by none."""
    if tested:
        return None
    if validated:
        return OnValidation
    return CrossFit if frozen else None


def with_folds(run: Run, data: Data, device: torch.device, *, calibrates: bool) -> Data:
    """`data` with its folds; those of all images also where its thresholds are to come from them (`calibrates`).

    ValueError where they are wanted for thresholds and the run does not allow it.
    """
    tested = len(data.test.labels) > 0
    wanted = CrossFit if calibrates else kind(frozen=run.config.frozen, tested=tested, validated=data.validated)
    if wanted is CrossFit and (why_not := _why_not(run, data)):
        if calibrates:
            raise ValueError(f"{run.folder} cannot be calibrated with --cross-fit: {why_not}")
        return data
    if wanted is None:
        return data
    folds, pixels = wanted(run, data, device), data.photographs
    return replace(data, folds=folds, photographs=pixels and replace(pixels, folds=folds))


def _why_not(run: Run, data: Data) -> str | None:
    """What keeps heads from being trained on parts of the images."""
    if not run.config.frozen:
        return "it stands on no frozen backbone, so each of its networks would take as long as the run"
    if run.method.stage2 != NONE:
        return f"its second stage, {run.method.stage2}, is not trained again for parts of the images"
    if data.choice.groups_of(data.train.keys) is None:
        return "an earlier version did not write down which images belong together: train it again"
    return None
