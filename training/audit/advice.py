"""What the calibration images of a long tail support, and the settings to begin with.

Rules are tables where they can be; each has its reason beside it, from the papers' settings or this project's LOG.md.
"""

import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from service.contract.calibration.calibrate import LEVEL
from service.contract.calibration.groups import Groups
from service.contract.reference import false_alarms
from training.config import Config, flag, program
from training.data.splits import expected_held_back

BEST = "tailguard"  # the row of METHODS to take from scratch where there are outliers
BEST_FROZEN = "tailguard-joint"  # on a frozen backbone, whose head needs no second stage
OUTLIER_FREE = "mahalanobis"  # and where there are none
BALANCED_RATIO = 3  # below it the classes count as balanced
METHOD_RULES = {  # (nearly balanced, outliers given) → (method, why)
    (False, True): (BEST, "long tail and training outliers: a class for what is to be refused, kept off the tail"),
    (False, False): (OUTLIER_FREE, "long tail without outliers: logit-adjusted training, pooled Mahalanobis score"),
    (True, True): ("oe", f"classes within a factor of {BALANCED_RATIO}: plain outlier exposure is enough"),
    (True, False): ("msp", f"classes within a factor of {BALANCED_RATIO} and no outliers: the plain baseline"),
}
LEVELS = (0.8, 0.9, 0.95, 0.99)
FROZEN_REASON = "pretrained on ImageNet-1k and frozen: only a head is trained, so it suits a CPU and few images"
FRACTIONS = (0.1, 0.15, 0.2, 0.25, 0.3)  # of each class for calibration, tried in this order
SIZES_PX = (32, 48, 64)
BACKBONE = "lite0"  # --backbone of the pretrained option
SMALL_PHOTOGRAPH_PX, SMALL_SIZE_PX = 160, 160  # below the first, pictures are brought to the second, not to 224
FROZEN_SIZE_PX = 224  # Lite0's own
STEPS = 9_600  # PASCL: 200 epochs of 48 steps
BATCH_IMAGES, STEPS_PER_EPOCH = 256, 8  # PASCL's batch, halved until an epoch has so many steps
EPOCHS = (30, 400)  # at least, at most: PASCL shows each image 200 times
Counts = NDArray[np.int64]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class GroupSupport(Frozen):
    """What the calibration images of a group support, counted by true class (thresholds go by the predicted one)."""

    classes: int
    train_images: int
    calibration_images: int
    supported: bool  # images enough for a threshold at LEVEL of its own
    promise: (
        float  # the share of its in-distribution images that is refused at most: 1 - LEVEL, or 1 / (n + 1) with few
    )


class Support(Frozen):
    """What a calibration split of this fraction supports, or what validation images do; they make it None."""

    fraction: float | None
    groups: dict[str, GroupSupport]
    classes_by_level: dict[str, int]  # level → how many classes hold images enough for a threshold of their own
    outliers: int


class Setting(Frozen):
    name: str  # a field of training.config.Config
    value: Any
    reason: str


class Estimate(Frozen):
    """What a recommendation takes on this machine, from a few steps that were measured on it."""

    seconds: float
    made_of: list[str]  # the products that add up to it, in words


class Advice(Frozen):
    name: str  # "frozen" or "scratch"
    settings: list[Setting]
    command: str
    estimate: Estimate | None = None


def images_needed(level: float) -> int:
    """The fewest calibration images for a conformal threshold at `level`: ⌈1/a⌉ − 1, a = 1 − level (REFERENCE C3)."""
    return math.ceil(round(1 / (1 - level), 6)) - 1


def highest_level(images: int) -> float:
    """The highest level that so many calibration images support: 1 − 1/(n + 1); 0 for none."""
    return images / (images + 1)


def held_out(counts: Counts, fraction: float) -> Counts:
    """Calibration images of each class that training's own split draws in the mean."""
    return expected_held_back(counts, fraction)


def support(
    counts: Counts, groups: Groups, outliers: int, fraction: float, validation: Counts | None = None
) -> Support:
    """`counts` [C] training images and the groups of the classes; the number of training outliers.

    `validation` [C] images of the classes, where there are such: these are calibrated on, and no training image.
    """
    held = held_out(counts, fraction) if validation is None else validation
    by_group: dict[str, GroupSupport] = {}
    for name in groups.names:
        inside = groups.of_class == name
        n = int(held[inside].sum())
        by_group[name] = GroupSupport(
            classes=int(inside.sum()),
            train_images=int(counts[inside].sum()),
            calibration_images=n,
            supported=n >= images_needed(LEVEL),
            promise=max(1 - highest_level(n), false_alarms(LEVEL)),
        )
    by_level = {f"{level:.0%}": int((held >= images_needed(level)).sum()) for level in LEVELS}
    return Support(
        fraction=fraction if validation is None else None, groups=by_group, classes_by_level=by_level,
        outliers=round(fraction * outliers),
    )  # fmt: skip


def calibration_fraction(counts: Counts, groups: Groups) -> tuple[float, str]:
    """The smallest of FRACTIONS with which every group supports LEVEL, or the smallest of all."""
    needed = images_needed(LEVEL)
    for fraction in FRACTIONS:
        short = {g: s for g, s in support(counts, groups, 0, fraction).groups.items() if not s.supported}
        if not short:
            return fraction, f"each group gets the {needed} images that its own {LEVEL:.0%} threshold needs"
    with_least = support(counts, groups, 0, FRACTIONS[0]).groups
    bounds = " and ".join(f"{with_least[g].promise:.0%} of {g}" for g in short)
    return FRACTIONS[0], (
        f"no share up to {FRACTIONS[-1]:g} gives {' and '.join(short)} the {needed} images that a threshold "
        f"of its own needs, so the least is kept from training; up to {bounds} may be refused"
    )


def held_back(counts: Counts, groups: Groups, *, validated: bool, outliers: bool) -> list[Setting]:
    """The calibration fraction and its reason; nothing where validation images leave it nothing to do."""
    if validated and not outliers:
        return []
    value, why = calibration_fraction(counts, groups)
    if validated:
        value, why = FRACTIONS[0], "of the outliers: there are validation images to calibrate on"
    return [Setting(name="calibration_fraction", value=value, reason=why)]


def advise(
    *, dataset: str, data: Path | None, imbalance: float | None, outliers: Path | None, counts: Counts, groups: Groups,
    median_side_px: float, frozen: bool, validated: bool,
) -> Advice:  # fmt: skip
    """Settings for `train`, each with its reason, and the complete command. Counts [C] after the cut.

    `validated`: there are validation images, which are calibrated on. `frozen`: a head on a pretrained backbone that
    does not learn, else a network that is trained from scratch.
    """
    ratio = counts.max() / max(counts.min(), 1)
    method, why = METHOD_RULES[bool(ratio < BALANCED_RATIO), outliers is not None or dataset == "digits"]
    settings = [Setting(name="dataset", value=dataset, reason="as found")]
    if data is not None:
        settings.append(Setting(name="data", value=str(data), reason="as given"))
    if imbalance is not None:
        settings.append(Setting(name="imbalance", value=imbalance, reason="the cut that was looked at"))
    if frozen:
        settings.append(Setting(name="backbone", value=BACKBONE, reason=FROZEN_REASON))
        method = BEST_FROZEN if method == BEST else method
    settings.append(Setting(name="method", value=method, reason=f"{why} (ratio {ratio:.1f})"))
    if outliers is not None:
        settings.append(Setting(name="outliers", value=str(outliers), reason="stand for what is not to be accepted"))
    if frozen:
        settings.append(frozen_size(median_side_px))
    elif dataset == "folder":
        settings.append(_image_size(median_side_px))
    settings += (held := held_back(counts, groups, validated=validated, outliers=outliers is not None))
    if not frozen:  # a head has a schedule of its own, which `train` derives
        settings += _schedule(int((counts if validated else counts - held_out(counts, held[0].value)).sum()))
    config = Config(**{s.name: s.value for s in settings})  # every name and value is one that `train` takes
    command = " ".join([f"{program()} train", *map(option, settings)])
    return Advice(name="frozen" if config.frozen else "scratch", settings=settings, command=command)


def option(setting: Setting) -> str:
    """--name value, for a shell."""
    return f"{flag(setting.name)} {shlex.quote(str(setting.value))}"


def frozen_size(median_side_px: float) -> Setting:
    """The side at which a pretrained backbone sees photographs."""
    small = median_side_px < SMALL_PHOTOGRAPH_PX
    size = SMALL_SIZE_PX if small else FROZEN_SIZE_PX
    why = "enlarging more costs time and adds nothing" if small else "the backbone's own size"
    reason = f"the median shorter side is {median_side_px:g} px; {why}"
    return Setting(name="image_size_px", value=size, reason=reason)


def _image_size(median_side_px: float) -> Setting:
    """The largest of SIZES_PX that enlarges no more than half of the images."""
    size = max([s for s in SIZES_PX if s <= median_side_px], default=SIZES_PX[0])
    cost = (size / SIZES_PX[0]) ** 2
    reason = f"the median shorter side is {median_side_px:g} px; costs {cost:.1f} times the work of {SIZES_PX[0]} px"
    return Setting(name="image_size_px", value=size, reason=reason)


def _schedule(images: int) -> list[Setting]:
    """Batch and epochs, from scratch, for so many images that remain after calibration."""
    batch = BATCH_IMAGES
    while batch > 2 and images // batch < STEPS_PER_EPOCH:
        batch //= 2
    steps = max(images // batch, 1)
    epochs = min(max(round(STEPS / steps), EPOCHS[0]), EPOCHS[1])
    size = "PASCL's" if batch == BATCH_IMAGES else f"an epoch of {images} images then has at least {STEPS_PER_EPOCH}"
    why = f"{steps} steps each, {steps * epochs} in all; PASCL takes {STEPS}; held within {EPOCHS[0]} to {EPOCHS[1]}"
    return [
        Setting(name="batch_images", value=batch, reason=size if batch == BATCH_IMAGES else f"{size} steps"),
        Setting(name="epochs", value=epochs, reason=why),
    ]
