"""The runs that a table needs: their settings in each budget, their folders, and what the finished ones measured."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from training.config import CIFAR_RESNET, HEAD_SCHEDULE, Config
from training.data.photographs import TEST_FRACTION
from training.methods.methods import first_stage_of
from training.runs.files import CALIBRATION_FILE, OUTPUTS_FILE, RESULTS_FILE, Json
from training.runs.several import Job
from training.tables.cells import BALANCED, LONG_TAILED

Budget = Literal["full", "small"]
# full: PASCL's recipe. small: what two CPU cores train in minutes.
BUDGETS: dict[Budget, dict[str, Any]] = {
    "full": {"width": 64, "epochs": 200, "batch_images": 256},
    "small": {"width": 16, "epochs": 12, "batch_images": 128},
}
# Balanced CIFAR-10 has 4.03 times the images of the long-tailed cut: in the small budget it takes as many steps.
BALANCED_EPOCHS: dict[Budget, int] = {"full": 200, "small": 3}
# In the small budget only these rows get every seed, the others the first one.
SEEDED = ("msp", "oe", "pascl", "pascl-abf", "tailguard", "tailguard-joint")


def plan(base: Config, methods: Sequence[str], seeds: int, budget: Budget, out: Path) -> list[Job]:
    """The jobs of `methods` and of the rows whose stage 1 they share, those first. `base` holds data and overrides."""
    everyone = budget == "full"
    if base.dataset == "folder" and base.test_fraction is None:  # the same for every row
        base = base.model_copy(update={"test_fraction": TEST_FRACTION})
    jobs: dict[Path, Job] = {}

    def add(method: str, seed: int) -> Path:
        first = first_stage_of(method)
        after = add(first, seed) if first else None
        config = base.model_copy(update={"method": method, "seed": seed, "stage1_from": after})
        folder = out / "runs" / name_of(config)
        jobs.setdefault(folder, Job(config, folder, after))
        return folder

    for method in methods:
        for seed in range(seeds if everyone or method in SEEDED else 1):
            add(method, seed)
    return list(jobs.values())


def name_of(config: Config) -> str:
    """Names what differs between the runs of a table."""
    cut = "natural" if config.imbalance is None else f"lt{config.imbalance:g}" if config.imbalance > 1 else "balanced"
    views = f"-v{config.views}" if config.views else ""
    start = f"{data_name(config)}-{cut}-{config.method}{views}"
    if config.backbone == CIFAR_RESNET:
        return f"{start}-w{config.width}-e{config.epochs}-b{config.batch_images}-s{config.seed}"
    given = {key: getattr(config, key) for key in HEAD_SCHEDULE if key in config.model_fields_set}
    parts = [
        start, _backbone_name(config.backbone), config.tune,
        config.image_size_px and f"{config.image_size_px}px", config.backbone_precision == "int8" and "int8",
        config.backbone_stages and "stages", config.backbone_fit, *(f"{key[0]}{value}" for key, value in given.items()),
    ]  # fmt: skip
    return "-".join([*(str(part) for part in parts if part), f"s{config.seed}"])


def _backbone_name(backbone: str) -> str:
    return Path(backbone.removeprefix("onnx:")).stem if backbone.startswith("onnx:") else backbone.replace("/", "_")


def data_name(config: Config) -> str:
    """cifar10, or the name of the folder or the list that holds the photographs."""
    if config.dataset != "folder" or config.data is None:
        return config.dataset
    path = config.data.resolve()
    return path.stem if path.is_file() else path.name


def results(jobs: Sequence[Job], budget: Budget) -> list[Json]:
    """What the finished runs of `jobs` measured; under `chosen` with the score that calibration chose, where it did."""
    return [_result(job, budget) for job in jobs if job.done]


def _result(job: Job, budget: Budget) -> Json:
    result: Json = json.loads((job.folder / RESULTS_FILE).read_text())
    result |= {"budget": budget, "data_set": data_name(job.config)}
    calibration = job.folder / CALIBRATION_FILE
    record = json.loads(calibration.read_text()) if calibration.is_file() else {}
    if record.get("score_choice") and record["evaluation"].get("ood"):
        measured = record["evaluation"]
        result["chosen"] = {"score": record["score"], "ood": measured["ood"], "mean": measured["mean"]}
    return result


def outputs(jobs: Sequence[Job]) -> dict[tuple[str, int, float], Path]:
    """(method, seed, LONG_TAILED or BALANCED) → the run's outputs.npz."""
    paths = {
        (j.config.method, j.config.seed, BALANCED if j.config.imbalance == 1 else LONG_TAILED): j.folder / OUTPUTS_FILE
        for j in jobs
    }
    return {key: path for key, path in paths.items() if path.is_file()}


def kept(folder: Path) -> dict[str, Json]:
    """The results in a folder that --results wrote, by the names of their runs. Empty where there is none."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
