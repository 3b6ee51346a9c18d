"""What a manifest says of how its model came to be: the evaluation with its recipe and checks, and the provenance."""

from collections.abc import Mapping

import onnx
import onnxruntime as ort

from service.contract.outcomes import Outcomes
from training.export.about import AboutData
from training.export.precision import compare
from training.runs.checkpoint import Run
from training.runs.files import Json

FILES = ("outliers", "weights", "taxonomy")  # settings whose file names are kept


def evaluation(
    run: Run, found: Json, calibration: Json, parity: Json, made: str, outcomes: Outcomes, lineage: Mapping[str, Json],
    candidates: list[Json] | None,
) -> Json:  # fmt: skip
    """What was measured on the graph (`found`), the recipe of the run, how the graph differs from the network and, in a
    smaller precision `made`, from itself in fp32, and what else was compared."""
    facts = {
        "comparison": lineage.get("comparison"), "backbone": run.provenance.get("backbone"), "candidates": candidates,
    }  # fmt: skip
    record = found | {
        "parity": parity, "recipe": recipe(run), "score_choice": calibration.get("score_choice"),
        "uncalibrated": [name for i, name in enumerate(run.classes) if i not in outcomes.label],
        **{name: fact for name, fact in facts.items() if fact},
    }  # fmt: skip
    if (moved := parity.get(f"{made}_against_onnx_decisions_changed")) is not None:
        record[f"{made}_against_fp32"] = compare(calibration["evaluation"], record, moved)
    return record


def provenance(run: Run, about: AboutData, lineage: Mapping[str, Json]) -> Json:
    """Data, command and versions; of a model that was taught its parent and what was added."""
    return {
        "method": run.config.method,
        "dataset": about.name + (f", imbalance {run.config.imbalance}" if run.config.imbalance else ""),
        "seed": run.config.seed,
        "command": run.provenance["command"],
        "commit": run.provenance["commit"],
        "versions": run.provenance["versions"] | {"onnx": onnx.__version__, "onnxruntime": ort.__version__},
        "parent": lineage.get("parent"),
        "added": lineage.get("added"),
    }


def recipe(run: Run) -> Json:
    """The settings that made the model, and its backbone's origin; of paths only the name, of the machine nothing."""
    hidden = {"data", "device", "threads", "on", "checkpoint_epochs", "stage1_from", "split_from", "feature_cache"}
    kept = run.config.model_dump(mode="json", exclude=hidden)
    kept |= {key: path.name if (path := getattr(run.config, key)) else None for key in FILES}
    return kept | {f"pretrained_{key}": value for key, value in run.provenance.get("backbone", {}).items()}
