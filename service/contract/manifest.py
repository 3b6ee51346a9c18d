"""The manifest of a bundle: everything that is needed to decide, and what was measured about it."""

import unicodedata
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import Field, model_validator

from service.contract.calibration_file import OutcomesFile
from service.contract.embedding import Embedding, ExemplarFile
from service.contract.format1 import upgraded
from service.contract.heat_map import HeatMap
from service.contract.points import OperatingPoint, Scope
from service.contract.reasons import Reasons
from service.contract.reference import ALL, ClassGroup, Frozen, Reference
from service.contract.sets import Sets
from service.contract.taxonomy import Taxonomy

GRAPH_FILE = "model.onnx"
OUTLIER_LABEL = "outlier"  # what feedback calls an image of no class, so no class may be called so

Resampling = Literal["bilinear", "bicubic", "lanczos"]


class Input(Frozen):
    """How an upload becomes a row of `images` uint8 [N, height_px, width_px, 3], by one antialiased resize."""

    height_px: int = Field(gt=0)
    width_px: int = Field(gt=0)
    # stretch: the whole image; crop: around its centre the largest part of the target's shape, or `crop_share` of it
    fit: Literal["stretch", "crop"]
    crop_share: float = Field(default=1, gt=0, le=1)  # of both sides of that part: timm's crop_pct
    resampling: Resampling

    @model_validator(mode="after")
    def _share_of_a_crop(self) -> "Input":
        if self.fit == "stretch" and self.crop_share != 1:
            raise ValueError(f"crop_share {self.crop_share:g} is for fit 'crop': 'stretch' shows the whole image")
        return self


class ClassInfo(Frozen):
    """One class; the two rates are on held-out test images at the default operating point, None if unmeasured."""

    name: str
    train_count: int = Field(ge=0)  # images it was trained on, without those set aside for calibration
    group: str  # the name of one of Manifest.groups
    accuracy: float | None
    rejected: float | None


class Score(Frozen):
    """One float32 [N] output of the graph, larger = more outlying."""

    formula: str
    temperature: float = Field(gt=0)


class Calibration(Frozen):
    """What the thresholds were measured on. Never test images."""

    temperature: float = Field(gt=0)  # inside `probabilities`
    in_distribution_images: int = Field(gt=0)
    outlier_images: int = Field(ge=0)
    images_by_group: dict[str, int]  # in-distribution, group of the true class
    class_mix: str  # the mix of classes expected in service: that of the training images, "uniform", or a file's name
    class_shares: tuple[float, ...]  # the expected share of each class
    # The class mix for which `probabilities` are right: see calibration/prior.py; None: nobody measured it.
    presumed_shares: tuple[float, ...] | None = None
    references: dict[str, Reference]  # "all" and, from format 2 on, every group: what p-values are read from
    id_scores: tuple[float, ...]  # deciding score, ascending, as the expected mix has it: evenly spaced where many
    quantile_levels: tuple[float, ...]
    # score name → "all" | the name of a group (true class) | "outliers" → one value per level
    quantiles: dict[str, dict[str, tuple[float, ...]]]

    def reference(self, scope: Scope, group: str) -> Reference:
        """What the p-value of an image is read from whose predicted class is in `group`; format 1 has one for all."""
        return self.references[group if scope == "group" and group in self.references else ALL]


class Golden(Frozen):
    """An example image and what the graph must answer for it, checked whenever the bundle is loaded."""

    file: str
    label: str
    probabilities: tuple[float, ...]
    scores: dict[str, float]


class Parent(Frozen):
    """The bundle from which another was taught or recalibrated."""

    name: str
    version: str
    sha256: str  # of its graph


class Provenance(Frozen):
    method: str
    dataset: str
    seed: int
    command: str
    commit: str
    versions: dict[str, str]
    parent: Parent | None = None
    added: dict[str, Any] | None = None  # what was learned, or which rows it was recalibrated on


class Manifest(Frozen):
    format: Literal[1, 2]  # that of the file; format 1 is brought into the shape of format 2 when it is read
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    version: str = Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]*$")
    created: datetime
    precision: Literal["fp32", "int8", "fp16"]
    passes: Literal[1, 2]  # through the trunk, per image
    input: Input
    groups: tuple[ClassGroup, ...] = Field(min_length=1)  # from the most frequent classes to the rarest
    classes: tuple[ClassInfo, ...] = Field(min_length=1)
    scores: dict[str, Score]
    deciding_score: str
    operating_points: dict[str, OperatingPoint] = Field(min_length=1)
    default_operating_point: str
    threshold_scope: Scope  # which thresholds decide unless the deployment says otherwise
    calibration: Calibration
    evaluation: dict[str, Any]  # of this graph, by training.evaluation.evaluate; the conventions are named inside
    provenance: Provenance
    golden: tuple[Golden, ...]
    embedding: Embedding | None = None  # from format 2 on, where the graph gives one
    exemplars: ExemplarFile | None = None
    sets: Sets | None = None  # what conformal sets of classes are read from
    taxonomy: Taxonomy | None = None
    outcomes: OutcomesFile | None = None  # of the calibration images, one by one
    heat_map: HeatMap | None = None
    reasons: Reasons | None = None  # from format 2 on, where refusals are told apart
    files: dict[str, str]  # path inside the bundle → sha256 in hex

    @model_validator(mode="before")
    @classmethod
    def _any_format(cls, content: Any) -> Any:
        return upgraded(content)

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        if missing := {"energy", "msp"} - set(self.scores):
            raise ValueError(f"scores lack {sorted(missing)}")
        if self.deciding_score not in self.scores:
            raise ValueError(f"deciding_score {self.deciding_score!r} is none of {sorted(self.scores)}")
        if (point := self.default_operating_point) not in self.operating_points:
            raise ValueError(f"default_operating_point {point!r} is none of {sorted(self.operating_points)}")
        names = [c.name for c in self.classes]
        require_class_names(names)
        for example in self.golden:
            if example.file not in self.files:
                raise ValueError(f"golden example {example.file!r} is not among the files")
            if len(example.probabilities) != len(names) or set(example.scores) != set(self.scores):
                raise ValueError(f"golden example {example.file!r} does not fit the classes and scores")
        if GRAPH_FILE not in self.files:
            raise ValueError(f"files lack {GRAPH_FILE}")
        if list(self.calibration.id_scores) != sorted(self.calibration.id_scores) or not self.calibration.id_scores:
            raise ValueError("calibration.id_scores must be ascending and not empty")
        if self.reasons:
            self.reasons.check(self)
        if self.exemplars and not self.embedding:
            raise ValueError("exemplars are given without an embedding, so nothing can be compared with them")
        for part in (self.exemplars, self.outcomes, self.heat_map):
            if part and part.file not in self.files:
                raise ValueError(f"{part.file!r} is not among the files")
        return self

    @model_validator(mode="after")
    def _consistent_groups(self) -> "Manifest":
        names = self.group_names
        if len(set(names)) != len(names):
            raise ValueError("group names repeat")
        if strangers := {c.group for c in self.classes} - set(names):
            raise ValueError(f"classes are in groups {sorted(strangers)}, which are none of {sorted(names)}")
        if len(self.calibration.class_shares) != len(self.classes):
            raise ValueError(f"class_shares has {len(self.calibration.class_shares)} values: give one per class")
        if (presumed := self.calibration.presumed_shares) is not None and (
            len(presumed) != len(self.classes) or min(presumed) <= 0
        ):
            raise ValueError("presumed_shares must be one share above 0 per class")
        needed = {ALL} if self.format == 1 else {ALL, *names}
        if missing := needed - set(self.calibration.references):
            raise ValueError(f"calibration.references lack {sorted(missing)}")
        if self.sets and (strangers := set(self.sets.references) - set(names)):
            raise ValueError(f"sets have references for {sorted(strangers)}, which are none of {sorted(names)}")
        if self.taxonomy and len(self.taxonomy.paths) != len(self.classes):
            raise ValueError(f"taxonomy has {len(self.taxonomy.paths)} paths: give one per class")
        for name, point in self.operating_points.items():
            if missing := set(names) - set(point.group_thresholds):
                raise ValueError(f"the group_thresholds of {name} lack {sorted(missing)}")
            if strangers := set(point.class_thresholds) - {c.name for c in self.classes}:
                raise ValueError(f"the class_thresholds of {name} are for {sorted(strangers)}, which are no classes")
            if point.level is None:
                continue
            if point.class_thresholds:
                raise ValueError(f"{name} has a level and class_thresholds: these are for points without a level")
            for group, limit in {ALL: point.threshold, **point.group_thresholds}.items():
                if limit != (right := self.calibration.reference("group", group).threshold(point.level)):
                    raise ValueError(f"{name} has a threshold of {limit} for {group}: its reference says {right}")
        return self

    @property
    def group_names(self) -> tuple[str, ...]:
        """From the most frequent classes to the rarest."""
        return tuple(group.name for group in self.groups)

    @property
    def sha256(self) -> str:
        """Hex digest of the graph: the identity of the model in metrics and logs."""
        return self.files[GRAPH_FILE]


def require_class_names(names: Sequence[str]) -> None:
    """Raises ValueError for a name that is blank, taken twice, or that of an outlier in feedback."""
    for name in names:
        if not name.strip():
            raise ValueError(f"a class is called {name!r}: give it a name")
        if name == OUTLIER_LABEL:
            raise ValueError(f"a class is called {name!r}, which is how feedback names an image of no class: rename it")
    if len(set(names)) != len(names):
        raise ValueError(f"class names repeat: {sorted({n for n in names if list(names).count(n) > 1})[:5]}")


def spelling(name: str) -> str:
    """What one class name has in common with another that people may take for it, and file systems too.

    Case, blanks and underscores, and Unicode's forms of one letter (NFKC) make no difference.
    """
    return " ".join(unicodedata.normalize("NFKC", name).casefold().replace("_", " ").split())
