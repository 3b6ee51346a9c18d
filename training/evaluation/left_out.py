"""Classes left out in turn: heads on a frozen backbone that have not seen some of the classes, and those as unknowns.

Features are computed already, so each of these heads takes seconds. They learn by the method of the run, outliers
included, but from the images as they are, without mirrors and crops, and nothing of them is kept.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.loading import Data
from training.data.readers import Images, ImageSet
from training.methods.methods import NONE, build_network
from training.network.network import Network, place
from training.runs.checkpoint import Run
from training.runs.first_stage import first_stage
from training.runs.loop import Loop
from training.runs.signals import StopRequest

FOLDS = 5
FEWEST_CLASSES = 4  # so that two are left to learn


@dataclass(frozen=True)
class Fold:
    """`run` has learnt the classes of `data` alone; `unknown` are the calibration images of the others, labels [N]."""

    run: Run
    data: Data
    unknown: Images
    unknown_labels: NDArray[np.int64]  # in the run's classes


def possible(run: Run, data: Data) -> bool:
    """Whether classes can be left out: on a frozen backbone, where there are classes and calibration images enough."""
    calibrated = int((data.calibration.counts > 0).sum())
    return run.config.frozen and min(len(run.classes), calibrated) >= FEWEST_CLASSES


def folds(counts: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """FOLDS parts of the classes, fewer where they are few: dealt out by `counts` [C], so that each has head and tail.

    At least half of the classes are left to learn.
    """
    order = np.argsort(-counts, kind="stable")
    number = max(2, min(FOLDS, len(counts) // 2))
    return [np.sort(order[start::number]) for start in range(number)]


def left_out(run: Run, data: Data, device: torch.device) -> Iterator[Fold]:
    """A fold for each part of the classes. Deterministic for the seed of the run."""
    parts = folds(data.train.counts)
    for number, part in enumerate(parts, 1):
        unknown = np.isin(data.calibration.labels, part)
        if not unknown.any() or unknown.all():
            continue
        kept = np.setdiff1d(np.arange(len(run.classes)), part)
        fewer = replace(
            data, train=_only(data.train, kept), calibration=_only(data.calibration, kept),
            outliers=data.outliers[:, :1],
        )  # fmt: skip
        network = trained(run, fewer, device, f"without {len(part)} classes, {number} of {len(parts)}")
        method = replace(run.method, stage2="none")  # scores are those of stage 1
        without = replace(
            run, method=method, classes=fewer.train.classes, train_counts=fewer.train.counts.tolist(),
            scoring=network, classifying=network,
        )  # fmt: skip
        rows = np.flatnonzero(unknown)
        yield Fold(without, fewer, data.calibration.images[rows], data.calibration.labels[rows])


def _only(images: ImageSet, kept: NDArray[np.int64]) -> ImageSet:
    """The images of the classes `kept`, which are numbered anew; of their features the first view."""
    rows = np.flatnonzero(np.isin(images.labels, kept))
    number = np.full(len(images.classes), -1)
    number[kept] = np.arange(len(kept))
    keys = None if images.file_keys is None else images.file_keys[rows]
    return ImageSet(
        images.images[rows, :1], number[images.labels[rows]], tuple(images.classes[c] for c in kept), keys
    )  # fmt: skip


def trained(run: Run, data: Data, device: torch.device, title: str) -> Network:
    """Stage 1 of the run's method on the features of `data`, in eval mode; nothing of it is kept."""
    batch = min(run.config.batch_images, len(data.train.labels))
    config = run.config.model_copy(update={"checkpoint_epochs": run.config.epochs, "batch_images": batch})
    one_view = data.train.images.shape[1] == 1 and run.method.contrast == NONE
    method = replace(run.method, views=1) if one_view else run.method
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(config.seed)
        features = data.train.images.shape[2]
        network = place(build_network(method, len(data.train.classes), config.width, features), device)
        inside, labels, outside = (
            torch.from_numpy(np.ascontiguousarray(array)).to(device)
            for array in (data.train.images[:, 0], data.train.labels, data.outliers[:, 0])
        )
        network.begin_on(inside, labels, outside)
        loop = Loop(config, Path(folder), title, {"stage": title, "history": []}, StopRequest(), views=method.views)
        first_stage(config, method, data, network, loop)
    return network.eval()
