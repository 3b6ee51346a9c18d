"""What can fail early: every setting of a run against its data, its machine and its folders, before the first step."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from training.config import Config
from training.data.folders import PARTS, has_parts
from training.data.loading import Data
from training.evaluation.measure import require_calibration_images
from training.methods.methods import METHODS, NONE, Method
from training.methods.stage2 import STAGES
from training.network import distributed
from training.network.tuned import TunedBackbone
from training.scores.scores import SCORES


def require_trainable(config: Config, method: Method, data: Data) -> None:
    """ValueError that names every setting with which training on `data` would fail, in stage 1 or in stage 2."""
    if problems := list(_problems(config, method, data)):
        raise ValueError("\n".join(problems))
    if method.stage2 != NONE and STAGES[method.stage2].needs_calibration_images:
        require_calibration_images(data)


def require_tunable(config: Config, method: Method, backbone: TunedBackbone) -> None:
    """ValueError when the second stage trains what the backbone does not have, before any data are read."""
    if method.stage2 != NONE and STAGES[method.stage2].passes > 1 and not backbone.has_norms:
        raise ValueError(
            f"--stage2 {method.stage2} trains the BatchNorm layers of the trunk, and {config.backbone} has none: use "
            "--stage2 abf-head"
        )


def _problems(config: Config, method: Method, data: Data) -> Iterator[str]:
    alone = len(data.train.classes) == 1  # nothing to mix
    if not len(data.outliers) and (method.needs_outliers or (method.placeholders and alone)):
        yield f"--method {config.method} learns from outliers: give --outliers FILE, or use --method msp"
    if len(data.train.classes) == 1 and SCORES[method.score].constant_for_one_class:
        able = (name for name, m in METHODS.items() if m.takes_outliers and not SCORES[m.score].constant_for_one_class)
        yield (
            f"--method {config.method}: with one class its loss is 0 and its score {method.score} is constant; use a "
            f"method that learns a score from outliers: {', '.join(able)}"
        )
    if emptied := [name for name, n in zip(data.train.classes, data.train.counts, strict=True) if n == 0]:
        yield (
            f"--calibration-fraction {config.calibration_fraction:g} leaves no training image of class "
            f"{', '.join(emptied[:5])}: use a smaller one"
        )
    images = len(data.train.labels)
    batches = {"--batch-images": (config.batch_images, images)}
    if method.stage2 != NONE and (stage := STAGES[method.stage2]).learns is not None:
        # SMOTE brings every class to the count of the largest
        available = len(data.train.classes) * int(data.train.counts.max()) if stage.on_features else images
        assert config.stage2_batch_images
        batches["--stage2-batch-images"] = (config.stage2_batch_images, available)
    for flag, (batch, available) in batches.items():
        if batch > available:
            yield f"{flag} {batch}: {available} training images do not fill such a batch, use {available} or less"
        if batch % distributed.world():
            yield f"{flag} {batch}: batches of {batch} do not split over {distributed.world()} processes"


def require_writable(folder: Path, setting: str) -> None:
    """ValueError unless `folder` can be written to, or be made where it does not exist yet. Nothing is made here."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise ValueError(f"{setting} {folder}: {there} is a file, name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{setting} {folder}: {there} cannot be written to, name another folder")


def require_file(path: Path, setting: str) -> None:
    """ValueError unless the file `path` can be written; the folder for it is made where there is none."""
    if path.is_dir():
        raise ValueError(f"{setting} {path} is a folder: name a file in it")
    require_writable(path.parent, setting)
    path.parent.mkdir(parents=True, exist_ok=True)


def require_outside(written: Mapping[str, Path], *data: Path | None, outliers: Path | None = None) -> None:
    """ValueError where a folder to be `written`, by its option, lies among the images of `data` or `outliers`: its
    plots and examples were a class or outliers the next time."""
    read = [root for folder in data if folder for root in _class_roots(folder)]
    read += [outliers] if outliers else []
    for root in (folder.resolve() for folder in read if folder.is_dir()):
        for option, folder in written.items():
            if folder.resolve().is_relative_to(root):
                raise ValueError(f"{option} {folder} lies in {root}, of which every image is read: name a folder "
                                 f"outside, {option} ../{folder.name} say, or start in another folder")  # fmt: skip


def photographs(config: Config) -> Path | None:
    """The folder of the training images, where they are read from one; else None."""
    return config.data if config.dataset == "folder" else None


def _class_roots(folder: Path) -> list[Path]:
    """The folders whose folders are classes."""
    return [folder / part for part in PARTS] if folder.is_dir() and has_parts(folder) else [folder]
