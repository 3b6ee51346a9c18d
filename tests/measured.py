"""The tables of measured runs in the READMEs, from the JSON of training/results and the manifests in models/."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from service import settings
from service.contract.bundle import read
from training import tables
from training.tables.cells import SCRATCH, backbone_of, data_of

Json = dict[str, Any]
ROOT = Path(__file__).parent.parent
BUNDLE = ROOT / settings.Settings.model_fields["bundle"].default
FROM_SCRATCH = ROOT / "models" / "cifar10-lt" / "1"
RESULTS = ROOT / "training" / "results"
DETECTION = {
    "msp": "MSP", "oe": "OE", "pascl-abf": "PASCL + ABF",
    "tailguard": "TailGuard", "tailguard-joint": "TailGuard, joint",
}  # fmt: skip
DETECTION_RUNS = "cifar10-lt100-{method}-w16-e12-b128-s*.json"
LONGER = {"oe": "OE", "pascl-abf": "PASCL + ABF", "tailguard-joint": "TailGuard, joint"}
LONGER_READ: dict[str, Callable[[Json], float]] = {
    "AUROC": lambda run: float(run["mean"]["auroc"]), "FPR95": lambda run: float(run["mean"]["fpr95"]),
    "AUROC, CIFAR-100": lambda run: float(run["ood"]["cifar100"]["auroc"]), "ACC": lambda run: float(run["accuracy"]),
    "ACC few": lambda run: float(run["group_accuracy"]["few"]),
}  # fmt: skip


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def lines(*columns: str, rows: list[list[str]]) -> str:
    """A markdown table; numbers stand to the right."""
    head = [f"| {' | '.join(columns)} |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    return "\n".join(head + [f"| {' | '.join(row)} |" for row in rows])


def detection() -> str:
    """Four methods under the small budget, and the two bundles of CIFAR10-LT that ship."""
    rows = []
    for method, name in DETECTION.items():
        runs = [json.loads(p.read_text()) for p in sorted(RESULTS.glob(DETECTION_RUNS.format(method=method)))]
        figures = [[r["mean"][k] for r in runs] for k in ("auroc", "aupr", "fpr95", "fpr95_id_positive")]
        figures += [[r["accuracy"] for r in runs], [r["group_accuracy"]["few"] for r in runs]]
        rows.append([f"{name}, {len(runs)} seeds"] + [f"{percent(mean(f))} ± {100 * stdev(f):.1f}" for f in figures])
    for bundle, name in (
        (FROM_SCRATCH, "models/cifar10-lt/1, from scratch"),
        (BUNDLE, "models/cifar10-lt/2, pretrained"),
    ):
        found = read(bundle).evaluation
        values = [found["mean"][k] for k in ("auroc", "aupr", "fpr95", "fpr95_id_positive")]
        values += [found["accuracy"], found["group_accuracy"]["few"]]
        rows.append([name, *map(percent, values)])
    return lines("CIFAR10-LT", "AUROC", "AUPR", "FPR95", "FPR95 (ID)", "accuracy", "accuracy, few", rows=rows)


def candidates() -> str:
    """The runs among which the bundle from scratch was chosen."""
    names = {
        "name": "run", "width": "width", "passes": "passes", "int8_bytes": "int8 KB", "ms_per_image": "ms/image",
        "accuracy": "ACC", "mean_class_accuracy": "class mean ACC", "auroc": "AUROC", "fpr95": "FPR95",
    }  # fmt: skip

    def cell(key: str, value: Any) -> str:
        if key == "int8_bytes":
            return f"{value / 1000:.0f}"
        return percent(value) if key in ("accuracy", "mean_class_accuracy", "auroc", "fpr95") else str(value)

    rows = [[cell(key, run[key]) for key in names] for run in read(FROM_SCRATCH).evaluation["candidates"]]
    return lines(*names.values(), rows=rows)


def longer() -> str:
    """The seed's central claim, PASCL ahead of OE, at the small budget's epochs and at more."""
    runs = [json.loads(p.read_text()) for m in LONGER for p in RESULTS.glob(DETECTION_RUNS.format(method=m))]
    runs += [json.loads(path.read_text()) for path in sorted((RESULTS / "longer").glob("*.json"))]
    cells: dict[tuple[int, str], list[Json]] = {}
    for run in runs:
        if run["method"] in LONGER:
            cells.setdefault((run["config"]["epochs"], run["method"]), []).append(run)

    def cell(found: list[Json], read: Callable[[Json], float]) -> str:
        values = [read(run) for run in found]
        return percent(mean(values)) + (f" ± {100 * stdev(values):.1f}" if len(values) > 1 else "")

    rows = [
        [LONGER[method], str(epochs), str(len(found)), *(cell(found, read) for read in LONGER_READ.values())]
        for (epochs, method), found in sorted(cells.items(), key=lambda one: one[0])  # methods in the order of letters
    ]  # fmt: skip
    return lines("method", "epochs", "seeds", *LONGER_READ, rows=rows)


def grids() -> str:
    """The tables of the committed results: the first one open, the others folded."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    short = [run for run in results if data_of(run) == "cifar10" and backbone_of(run) == SCRATCH]
    first, *others = tables.TABLES
    parts = [tables.markdown(first, short)]
    for name, runs in [*((name, short) for name in others), ("pretrained", results)]:
        summary = f"<summary>{tables.find(name).title}</summary>"
        parts.append(f"<details>{summary}\n\n{tables.markdown(name, runs)}\n</details>")
    return "\n".join(part.rstrip() + "\n" for part in parts).rstrip()
