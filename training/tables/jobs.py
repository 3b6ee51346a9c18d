"""The runs that a table needs: their settings in each budget, their folders, and what the finished ones measured."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from training.config import Config
from training.methods.methods import first_stage_of
from training.runs.files import OUTPUTS_FILE, RESULTS_FILE, Json
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
SEEDED = ("msp", "oe", "pascl", "pascl-abf", "tailguard")


def plan(base: Config, methods: Sequence[str], seeds: int, budget: Budget, out: Path) -> list[Job]:
    """The jobs of `methods` and of the rows whose stage 1 they share, those first. `base` holds data and overrides."""
    everyone = budget == "full"
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
    return (
        f"{config.dataset}-{cut}-{config.method}{views}-w{config.width}-e{config.epochs}-b{config.batch_images}"
        f"-s{config.seed}"
    )


def results(jobs: Sequence[Job], budget: Budget) -> list[Json]:
    """What the finished runs of `jobs` measured."""
    return [json.loads((job.folder / RESULTS_FILE).read_text()) | {"budget": budget} for job in jobs if job.done]


def outputs(jobs: Sequence[Job]) -> dict[tuple[str, int, float], Path]:
    """(method, seed, LONG_TAILED or BALANCED) → the run's outputs.npz."""
    paths = {
        (j.config.method, j.config.seed, BALANCED if j.config.imbalance == 1 else LONG_TAILED): j.folder / OUTPUTS_FILE
        for j in jobs
    }
    return {key: path for key, path in paths.items() if path.is_file()}
