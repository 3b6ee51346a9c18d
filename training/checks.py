"""What can fail early: every setting of a run against its data and its machine, before the first step."""

from collections.abc import Iterator

from training.config import Config
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
