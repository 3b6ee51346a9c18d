"""The contract between training and serving: a bundle, `models/<name>/<version>/`.

A bundle is an ONNX graph plus a manifest that carries everything needed to decide. `manifest.json` is written last and
names the sha256 of every other file: a folder without a valid manifest is not a bundle. The graph takes `images`
uint8 [N, H, W, 3] and gives `probabilities` float32 [N, C] and one float32 [N] per score (larger = more outlying).
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

FORMAT = 1
GRAPH_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"

Group = Literal["many", "medium", "few"]
GROUPS: tuple[Group, ...] = ("many", "medium", "few")
ByGroup = dict[Group, float | None]  # None: no image of that group was measured


class BundleError(ValueError):
    """A folder is not a valid bundle; the message names the file, the value and the remedy."""


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Input(Frozen):
    """How an upload becomes a row of `images` uint8 [N, height_px, width_px, 3]."""

    height_px: int = Field(gt=0)
    width_px: int = Field(gt=0)
    fit: Literal["stretch", "crop"]  # stretch: both sides to size; crop: short side to size, then the centre
    resampling: Literal["bilinear"]


class ClassInfo(Frozen):
    """One class; the two rates are on held-out test images at the default operating point, None if unmeasured."""

    name: str
    train_count: int = Field(ge=0)
    group: Group
    accuracy: float | None
    rejected: float | None


class Score(Frozen):
    """One float32 [N] output of the graph, larger = more outlying."""

    formula: str
    temperature: float = Field(gt=0)


class Cost(Frozen):
    """What a set of thresholds costs on named images. Shares in [0, 1]."""

    in_distribution_images: int
    outlier_images: int
    id_rejected: float
    id_rejected_by_group: ByGroup  # group of the true class
    id_rejected_by_predicted_group: ByGroup  # what a live service, which has no labels, can compare with
    outliers_caught: float | None  # None: there were no outliers
    outliers_caught_by_predicted_group: ByGroup


class Measured(Frozen):
    """Costs of the one global threshold and of the thresholds by predicted group, on calibration and on test images."""

    calibration: Cost
    test: Cost | None  # outliers: the unweighted mean over the OOD sets


class OperatingPoint(Frozen):
    """Reject when the deciding score is strictly larger than the threshold in force."""

    description: str
    threshold: float
    group_thresholds: dict[Group, float]  # by the group of the predicted class, shrunk towards `threshold`
    global_cost: Measured
    group_cost: Measured

    def cost(self, scope: Literal["group", "global"]) -> Measured:
        """What the thresholds of `scope` cost, on calibration and on test images."""
        return self.global_cost if scope == "global" else self.group_cost

    @model_validator(mode="after")
    def _every_group(self) -> "OperatingPoint":
        if missing := set(GROUPS) - set(self.group_thresholds):
            raise ValueError(f"group_thresholds lack {sorted(missing)}")
        return self


class Calibration(Frozen):
    """What the thresholds were measured on. Never test images."""

    temperature: float = Field(gt=0)  # inside `probabilities`
    in_distribution_images: int = Field(gt=0)
    outlier_images: int = Field(ge=0)
    images_by_group: dict[Group, int]  # in-distribution, group of the true class
    id_scores: tuple[float, ...]  # deciding score, ascending; all of them, or evenly spaced order statistics
    quantile_levels: tuple[float, ...]
    # score name → "all" | "many" | "medium" | "few" | "outliers" → one value per level
    quantiles: dict[str, dict[str, tuple[float, ...]]]


class Golden(Frozen):
    """An example image and what the graph must answer for it, checked whenever the bundle is loaded."""

    file: str
    label: str
    probabilities: tuple[float, ...]
    scores: dict[str, float]


class Provenance(Frozen):
    method: str
    dataset: str
    seed: int
    command: str
    commit: str
    versions: dict[str, str]


class Manifest(Frozen):
    format: Literal[1]
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    version: str = Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]*$")
    created: datetime
    precision: Literal["fp32", "int8"]
    passes: Literal[1, 2]  # through the trunk, per image
    input: Input
    classes: tuple[ClassInfo, ...] = Field(min_length=1)
    scores: dict[str, Score]
    deciding_score: str
    operating_points: dict[str, OperatingPoint] = Field(min_length=1)
    default_operating_point: str
    threshold_scope: Literal["group", "global"]  # which thresholds decide unless the deployment says otherwise
    calibration: Calibration
    evaluation: dict[str, Any]  # of this graph, by training.evaluation.evaluate; the conventions are named inside
    provenance: Provenance
    golden: tuple[Golden, ...]
    files: dict[str, str]  # path inside the bundle → sha256 in hex

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        if missing := {"energy", "msp"} - set(self.scores):
            raise ValueError(f"scores lack {sorted(missing)}")
        if self.deciding_score not in self.scores:
            raise ValueError(f"deciding_score {self.deciding_score!r} is none of {sorted(self.scores)}")
        if (point := self.default_operating_point) not in self.operating_points:
            raise ValueError(f"default_operating_point {point!r} is none of {sorted(self.operating_points)}")
        names = [c.name for c in self.classes]
        if len(set(names)) != len(names):
            raise ValueError("class names repeat")
        for example in self.golden:
            if example.file not in self.files:
                raise ValueError(f"golden example {example.file!r} is not among the files")
            if len(example.probabilities) != len(names) or set(example.scores) != set(self.scores):
                raise ValueError(f"golden example {example.file!r} does not fit the classes and scores")
        if GRAPH_FILE not in self.files:
            raise ValueError(f"files lack {GRAPH_FILE}")
        if list(self.calibration.id_scores) != sorted(self.calibration.id_scores) or not self.calibration.id_scores:
            raise ValueError("calibration.id_scores must be ascending and not empty")
        return self

    @property
    def sha256(self) -> str:
        """Hex digest of the graph: the identity of the model in metrics and logs."""
        return self.files[GRAPH_FILE]


def read(path: str | Path) -> Manifest:
    """The manifest of the bundle at `path`, after verifying the hash of every file it names.

    Raises BundleError when the folder, the manifest or a file is missing, invalid or changed.
    """
    folder = Path(path)
    try:
        text = (folder / MANIFEST_FILE).read_bytes()
    except OSError as error:
        raise BundleError(f"{folder} is not a bundle: {MANIFEST_FILE} cannot be read ({error.strerror})") from error
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "manifest"
        raise BundleError(f"{folder / MANIFEST_FILE} is invalid at {where}: {first['msg']}") from error
    for name, digest in manifest.files.items():
        _verify(folder, name, digest)
    return manifest


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """The sha256 in hex of each file's content, by its path inside the bundle."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}


def write(path: str | Path, manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> Manifest:
    """Write a bundle to the new folder `path` and return its manifest; all of it appears, or nothing.

    `files` holds the content of every file but the manifest, by path inside the bundle; `manifest` holds the fields of
    Manifest but `format` and `files`. Raises BundleError when the folder exists already or the manifest is not valid.
    """
    folder = Path(path)
    if folder.exists():
        raise BundleError(f"{folder} exists already: choose another version, or remove it first")
    try:
        checked = Manifest.model_validate({**manifest, "format": FORMAT, "files": digests(files)})
    except ValidationError as error:
        raise BundleError(f"the manifest for {folder} is not valid: {error}") from error
    for name in files:
        _inside(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        for name, content in files.items():
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        text = json.dumps(checked.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
        (temporary / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return checked


def _inside(name: str) -> None:
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or name in ("", MANIFEST_FILE):
        raise BundleError(f"{name!r} is not a path inside a bundle")


def _verify(folder: Path, name: str, digest: str) -> None:
    _inside(name)
    try:
        actual = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    except OSError as error:
        raise BundleError(f"{folder} is incomplete: {name} cannot be read ({error.strerror})") from error
    if actual != digest:
        raise BundleError(f"{folder / name} has sha256 {actual}, its manifest says {digest}: restore the file")
