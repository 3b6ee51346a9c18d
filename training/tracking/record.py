"""What a finished run says of itself, in the words that trackers share: parameters, series, figures, tags, files.

Figures are named as the results are, by set and by group, so that no convention is lost on the way:

    accuracy, accuracy_few, ece, ood/<set>/fpr95 (OOD positive), ood/<set>/fpr95_id_positive, mean/auroc,
    chosen/mean/auroc (with the score that calibration chose)
    stage1/loss, stage2/loss … by epoch
"""

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from training.data.choice import CHOICE_FILE
from training.evaluation.evaluate import CONVENTIONS
from training.runs import checkpoint
from training.runs.checkpoint import CHECKPOINT_FILE, MACHINE_KEYS
from training.runs.files import CALIBRATION_FILE, RESULTS_FILE, Json

METRICS = ("auroc", "aupr", "aupr_id_positive", "fpr95", "fpr95_id_positive")


class Point(NamedTuple):
    """A value of a series; `step`: the epochs that are done, from 1."""

    name: str
    step: int
    value: float


@dataclass(frozen=True)
class Record:
    """A run for a tracker. `digest` changes when anything of it does."""

    name: str
    params: dict[str, str]
    series: list[Point]
    figures: dict[str, float]
    tags: dict[str, str]
    files: list[Path]

    @property
    def digest(self) -> str:
        said = [self.name, self.params, self.series, self.figures, self.tags]
        parts = [json.dumps(said, sort_keys=True).encode(), *(path.read_bytes() for path in self.files)]
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()

    @property
    def steps(self) -> int:
        """The step at which the figures were measured: the epochs of the longest stage."""
        return max((point.step for point in self.series), default=0)


def read(folder: Path, result: Json) -> Record:
    """The record of the finished run in `folder`. Raises ValueError where its checkpoint cannot be read."""
    history = checkpoint.load(folder)["history"] if (folder / CHECKPOINT_FILE).is_file() else []
    files = [path for name in (RESULTS_FILE, CALIBRATION_FILE) if (path := folder / name).is_file()]
    return Record(folder.name, params(result["config"]), list(series(history)), figures(result),
                  tags(folder, result), files)  # fmt: skip


def params(config: Mapping[str, Any]) -> dict[str, str]:
    """Every setting that was given or derived, but for those of the machine alone."""
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in config.items()
        if value is not None and key not in MACHINE_KEYS
    }


def series(history: list[Mapping[str, Any]]) -> Iterator[Point]:
    """The losses of each epoch, by stage."""
    for entry in history:
        for name, value in entry.items():
            if name not in ("stage", "epoch"):
                yield Point(f"{entry['stage']}/{name}", int(entry["epoch"]) + 1, float(value))


def figures(result: Json) -> dict[str, float]:
    """What was measured on test images and OOD sets, as shares; what was not is left out."""
    found: dict[str, Any] = {"accuracy": result.get("accuracy")}
    found |= {f"accuracy_{group}": value for group, value in (result.get("group_accuracy") or {}).items()}
    found["ece"] = (result.get("reliability") or {}).get("ece")
    for start, measured in (("", result), ("chosen/", result.get("chosen") or {})):
        for name, one in (measured.get("ood") or {}).items():
            found |= {f"{start}ood/{name}/{metric}": one.get(metric) for metric in METRICS}
        found |= {f"{start}mean/{metric}": (measured.get("mean") or {}).get(metric) for metric in METRICS}
    return {name: float(value) for name, value in found.items() if value is not None}


def tags(folder: Path, result: Json) -> dict[str, str]:
    """Where the run comes from: method, seed, deciding score, commit, versions, and the hash of its data."""
    provenance = result.get("provenance") or {}
    trained = provenance.get("training") or provenance
    found = {
        "method": result["method"], "seed": result["seed"], "score": result.get("score"),
        "data_set": result.get("data_set"), "budget": result.get("budget"), "commit": trained.get("commit"),
        "command": trained.get("command"), "data_sha256": data_hash(folder), "conventions": CONVENTIONS,
    }  # fmt: skip
    found |= {f"version.{name}": version for name, version in (trained.get("versions") or {}).items()}
    return {f"tailguard.{key}": str(value) for key, value in found.items() if value is not None}


def data_hash(folder: Path) -> str | None:
    """Of the content of all images of a run and the parts that they are in, wherever they lie; None where unknown."""
    path = folder / CHOICE_FILE
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        lines = sorted(f"{row['part']},{row['class']},{row['key']}" for row in csv.DictReader(file))
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
