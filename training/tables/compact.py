"""Results small enough to commit."""

from pathlib import Path
from typing import Any

from training.runs.checkpoint import MACHINE_KEYS
from training.runs.files import Json

KEPT = ("images", "auroc", "aupr", "fpr95", "fpr95_id_positive", "aupr_id_positive", "acc_at_tpr", "acc_at_fpr")
PLACES = {"data", "stage1_from", "weights", "feature_cache", *MACHINE_KEYS}


def compact(result: Json) -> Json:
    """A result small enough to commit: what tables print, to six digits, and where it comes from; no path."""
    kept = {k: result[k] for k in (
        "method", "seed", "budget", "score", "passes", "images", "train_counts", "groups", "accuracy",
        "class_accuracy", "group_accuracy",
    )}  # fmt: skip
    kept |= {k: result[k] for k in ("data_set", "chosen") if k in result}
    if "chosen" in kept:
        kept["chosen"] = kept["chosen"] | _on_ood(kept["chosen"])
    kept["config"] = {k: v for k, v in result["config"].items() if k not in PLACES}
    if outliers := kept["config"].get("outliers"):
        kept["config"]["outliers"] = Path(outliers).name
    if (backbone := str(kept["config"].get("backbone", ""))).startswith("onnx:"):
        kept["config"]["backbone"] = f"onnx:{Path(backbone.removeprefix('onnx:')).name}"
    kept |= _on_ood(result)
    made = result["provenance"]["training"]
    kept["provenance"] = {"commit": made["commit"], "versions": made["versions"]}
    if "backbone" in made:
        kept["provenance"]["backbone"] = made["backbone"]
    return _rounded(kept)  # type: ignore[no-any-return]


def _on_ood(result: Json) -> Json:
    ood = {name: {k: one[k] for k in KEPT if k in one} for name, one in result["ood"].items()}
    return {"ood": ood, "mean": {k: result["mean"][k] for k in KEPT if k in result.get("mean", {})}}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return round(value, 6) if isinstance(value, float) else value
