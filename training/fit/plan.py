"""What `fit` will do: where the images are, which settings, each with its reason; and what makes it refuse."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from service.contract.calibration.groups import group_classes
from training.audit import advice, sources
from training.config import Config, flag
from training.data import overlaps, taxonomy
from training.data.folders import PARTS, set_places
from training.data.listing import Listing
from training.data.photographs import SCAN_FILE, TEST_FRACTION, Files, Source, list_files
from training.data.readers import DataError
from training.data.scan import scan
from training.data.splits import FEWEST_IMAGES
from training.evaluation import folding
from training.evaluation.cross_fit import FOLDS, CrossFit
from training.evaluation.folding import OnValidation
from training.export.about import AboutData
from training.export.bundle import require_target
from training.finished.calibrate import AUTO
from training.fit import begun
from training.fit.command import Fit
from training.layout import anded, several
from training.methods.methods import NONE, resolve
from training.methods.methods import find as find_method
from training.network import pretrained
from training.runs import reserved
from training.scores.either import require_score

HEADS = {  # outliers given → rows to compare, the safest first
    True: ("tailguard-joint", "logit-adjustment"),
    False: ("logit-adjustment", "msp"),
}
INT8_REASON = "faster and a quarter of the size; the head learns on what is served, and lost nothing (training/LOG.md)"
STAGES_REASON = "features of early layers beside those of the last tell more, at next to no cost (training/LOG.md)"
CROSSED_REASON = "of each class, and of outliers, to choose head and score on; thresholds rest on all images, by folds"
CHECKPOINT_EPOCHS = 20  # of a head, whose epochs take less time than a checkpoint
SPARE_BYTES = 300 << 20  # for checkpoints, tables and the bundle


class Choice(NamedTuple):
    """A setting, what was chosen, why, and the option that sets it."""

    setting: str
    value: Any
    reason: str

    @property
    def option(self) -> str:
        return "DIR" if self.setting == "data" else flag(self.setting)


@dataclass(frozen=True)
class Plan:
    """`config` holds for every head but for its method; `key` changes with the images and what is said of them."""

    config: Config
    heads: tuple[str, ...]
    target: Path  # the bundle
    work: Path
    choices: list[Choice]
    files: Files
    key: str


def place(data: Path) -> Path:
    """The folder or list to read: DIR/train of a folder that has test or val beside it means that folder."""
    beside = [part for part in PARTS if part != data.name and (data.parent / part).is_dir()]
    whole = data.is_dir() and data.name == "train" and beside and not (data / "train").is_dir()
    return data.parent if whole else data


def make(given: Fit) -> Plan:
    """Every choice. DataError or ValueError, before anything is computed, where the data or the settings do not do."""
    data = place(given.data.resolve())
    if sources.find_kind(data, None) != "folder":
        raise DataError(f"{data} is a benchmark, and fit is for photographs: use `train --dataset`, `audit` says how")
    about = AboutData.of(Config(dataset="folder"), data.name if data.is_dir() else data.stem, given.data_licence)
    about.require_licence(given.thumbnails)
    name = given.name or about.slug
    work = given.work or Path("runs") / "-".join(["fit", name, *([given.version] if given.version else [])])
    before = begun.written(work)
    target = given.out / name / (given.version or _version(before, given.out / name, work))
    if before is None:
        require_target(target, name)
        reserved.require_free(target, work / begun.PLAN_FILE)
    heads = given.heads or (
        (given.method,) if "method" in given.model_fields_set else HEADS[given.outliers is not None]
    )
    _require_heads(heads, given)
    own = {k: getattr(given, k) for k in given.model_fields_set & Config.model_fields.keys() - {"method"}}
    base = Config(**{**own, "dataset": "folder", "data": data, "backbone": given.backbone}).with_absolute_paths()
    if base.test_fraction is None and any(find_method(name).stage2 != NONE for name in heads):
        base = base.model_copy(update={"test_fraction": TEST_FRACTION})  # a second stage is not trained for folds
    files = list_files(base, cache=work / "cache")
    for path in given.ood:
        overlaps.require_apart((files.train, files.calibration, files.test), path, "--ood")
    # Its faults are named before anything is computed.
    tree = taxonomy.read(base.taxonomy, files.train.classes) if base.taxonomy else taxonomy.find(files.train)
    counts = files.train.counts + files.calibration.counts
    if len(counts) < 2:
        raise DataError(f"{data} has one class, {files.train.classes[0]}: a classifier needs two, each in a folder")
    chosen = [*_data_choices(given, data, files), Choice("name", name, _given(given, "name", "that of the data"))]
    chosen.append(Choice("version", target.name, _given(given, "version", "the first that is free")))
    if not files.test.paths:
        how = folds.figures if (folds := folds_of(base, files)) else "missing"
        chosen.append(Choice("test_fraction", "none", f"no test part: figures are {how}, and nothing is taken away"))
    chosen += (settings := _settings(given, base, files, counts, work / "cache" / SCAN_FILE))
    rarely: dict[str, Any] = {"checkpoint_epochs": CHECKPOINT_EPOCHS, "feature_cache": work.resolve() / "features"}
    rarely = rarely if base.frozen else {}
    own = base.model_dump(exclude_unset=True) | {c.setting: c.value for c in settings}
    config = Config(**rarely | own)
    if given.score != AUTO:
        _require_score(given.score, heads, config, len(counts))
    why = "the best of them on calibration images is taken"
    chosen.append(Choice("heads", " ".join(heads), _given(given, "heads", why)))
    chosen.append(Choice("score", given.score, _given(given, "score", "the best on calibration images decides")))
    return Plan(config, heads, target, work, chosen, files, begun.key(files, tree, given.ood))


def _version(before: dict[str, Any] | None, bundles: Path, work: Path) -> str:
    """That of the fit which is gone on with, else the first number that is free among `bundles`."""
    if before is not None:
        return Path(before["target"]).name
    return reserved.first_free(bundles, work / begun.PLAN_FILE)


def _require_heads(heads: tuple[str, ...], given: Fit) -> None:
    """ValueError where a head is no method, or needs outliers that are not there, and where OOD sets do not do."""
    for name in heads:
        if find_method(name).needs_outliers and given.outliers is None:
            raise ValueError(f"--heads {name} learns from outliers: give --outliers DIR, or other heads")
    for path in given.ood:
        if not path.exists():
            raise DataError(f"--ood {path} is missing: name a .npy or .npz array, or a folder of images")
    set_places(given.ood)


def _require_score(score: str, heads: tuple[str, ...], config: Config, classes: int) -> None:
    """ValueError where there is no such score, or one of the heads has not what it reads."""
    for name in heads:
        method = resolve(config.model_copy(update={"method": name}))
        require_score(score, method.reject_logits(classes) > 0, classes)


def _given(given: Fit, setting: str, reason: str) -> str:
    return "as given" if setting in given.model_fields_set else reason


def _data_choices(given: Fit, data: Path, files: Files) -> list[Choice]:
    reason = "as given"
    if data != given.data.resolve():
        others = [f"{part}/" for part in PARTS if part != given.data.name and (data / part).is_dir()]
        reason = f"{given.data} has {anded(others)} beside it"
    chosen = [Choice("data", str(data), reason)]
    for setting, folder in (("outliers", data / "outliers"), ("ood", data / "ood")):
        there = data.is_dir() and folder.is_dir()
        value = getattr(given, setting)
        shown = " ".join(map(str, value if isinstance(value, tuple) else [value])) if value else "none"
        what = "a class for what is to be refused, and ood95" if setting == "outliers" else "figures on unknown things"
        hint = f"none was named ({folder} is there)" if there else f"they would add {what}"
        chosen.append(Choice(setting, shown, "as given" if value else hint))
    return chosen


def _settings(given: Fit, base: Config, files: Files, counts: Any, cache: Path) -> list[Choice]:
    """Backbone, size, calibration fraction and batch."""
    found: list[Choice] = []
    lite0 = base.backbone == advice.BACKBONE
    found.append(Choice("backbone", base.backbone, _given(given, "backbone", advice.FROZEN_REASON)))
    settings: list[advice.Setting] = []
    if pretrained.find(base.backbone) and base.frozen:
        settings.append(advice.Setting(name="backbone_precision", value="int8", reason=INT8_REASON))
        settings.append(advice.Setting(name="backbone_stages", value=True, reason=STAGES_REASON))
    if lite0:
        headers = scan(files.train.paths, cache=cache).headers
        side = float(np.median([min(h.width_px, h.height_px) for h in headers]))
        settings.append(advice.frozen_size(side))
    held = advice.held_back(
        counts, group_classes(counts), validated=files.validated, outliers=base.outliers is not None
    )
    if folds_of(base, files) is CrossFit:
        held = [s.model_copy(update={"reason": CROSSED_REASON}) for s in held]
    settings += held
    found += [Choice(s.name, s.value, s.reason) for s in settings if s.name not in given.model_fields_set]
    plain = Config(backbone=base.backbone)
    more = given.model_fields_set & Config.model_fields.keys() - {"data", "outliers", "backbone", "method"}
    others = [k for k in sorted(more) if getattr(base, k) != getattr(plain, k)]
    return found + [Choice(k, getattr(base, k), "as given") for k in others]


def folds_of(config: Config, files: Files) -> type[CrossFit] | None:
    """Which folds figures come from, and thresholds where there are no validation images; None: of a test part."""
    return folding.kind(frozen=config.frozen, tested=bool(files.test.paths), validated=files.validated)


def require_held_back(plan: Plan) -> None:
    """DataError where there is too little to calibrate on, which would be noticed after a head was trained."""
    validation = len(set(plan.files.keys["calibration"].tolist()))
    if folds_of(plan.config, plan.files) is OnValidation and validation < FOLDS:
        raise DataError(
            f"{plan.config.data}: there is no test part, and {several(validation, 'validation image')} to judge by "
            f"folds, of which {FOLDS} are needed: give test/, more images in val/, or --test-fraction"
        )
    if not len(plan.files.calibration.labels):
        raise DataError(
            f"{plan.config.data}: no image can be held back to calibrate on: the largest class has "
            f"{plan.files.train.counts.max()} images, of which {FEWEST_IMAGES} in groups of their own are needed; add "
            "images, or give --calibration-fraction above 0 or another --group-by where that is the reason"
        )


def length(source: Source) -> int:
    """How many images: files of a listing, or rows of an array."""
    return len(source.paths if isinstance(source, Listing) else source)


def require_room(plan: Plan, features: int) -> None:
    """ValueError where the disk has less room than features, runs and the bundle will take."""
    sides = plan.files
    seen = [length(s) for s in (sides.train, sides.outliers)]
    others = len(sides.calibration.paths) + len(sides.test.paths)
    views = (2 + plan.config.feature_views) * sum(seen) + others
    needed = 4 * features * views + SPARE_BYTES
    free = shutil.disk_usage(plan.work).free
    if free < needed:
        raise ValueError(f"{plan.work.resolve()}: {free / 1e9:.1f} GB are free and about {needed / 1e9:.1f} GB needed "
                         "for features and runs: name a folder on another disk with --work")  # fmt: skip
