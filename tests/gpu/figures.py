"""From what the commands of a step printed and wrote to its figures. Every label has its unit."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.gpu.step import LIMIT_S, Given, Json, printed
from training.runs.files import RESULTS_FILE

WORTH_IT = 1.05  # the gain from which on two runs are trained side by side
# Of the long-tailed cuts; a tenth of them is kept for calibration.
CUTS = {"cifar10": 12_406, "cifar100": 10_847}
EPOCHS, BATCH = 200, 256


def read(work: Path, command: str) -> Any:
    """The JSON on the last line that a command printed."""
    return json.loads(printed(work, command).strip().splitlines()[-1])


def best(rates: Mapping[str, float]) -> float:
    """Images per second of the batch size that gives most."""
    return max(rates.values())


# ---------------------------------------------------------------------------------------------------------- serving


def service(given: Given, work: Path) -> Json:
    full = read(work, "graph-fp32")
    return served(work) | {
        "graph alone fp32, images/s": best(full["alone"]),
        "fp16 : fp32, graph alone": round(best(read(work, "graph-fp16")["alone"]) / best(full["alone"]), 3),
        "graph fp32": full,
    }


def served(work: Path) -> Json:
    """The graph alone, IO binding, and the service, of the commands graph-fp16 and load-fp16."""
    graph, load = read(work, "graph-fp16"), json.loads((work / "load-fp16.json").read_text())
    alone, size = best(graph["alone"]), max(graph["alone"], key=graph["alone"].get)
    found: Json = {
        "graph alone, images/s": alone, "at a batch of": int(size),
        "batches from the host over IO binding : graph alone": graph["bound_share"][size],
        "IO binding : plain session": round(graph["bound"][size] / graph["plain"][size], 3),
    }  # fmt: skip
    for image in dict.fromkeys(level["image"] for level in load["levels"]):
        levels = [level for level in load["levels"] if level["image"] == image]
        most = max(levels, key=lambda level: level["req_s"])
        found[f"service, {image} JPEG, req/s"] = round(most["req_s"], 1)
        found[f"service, {image} JPEG : graph alone"] = round(most["req_s"] / alone, 3)
        found[f"service, {image} JPEG, p99 ms at {most['connections']} connections"] = most["tally"]["p99_ms"]
        for limit in (limit for limit in load["limits"] if limit["image"] == image):
            found[f"service, {image} JPEG : decoding and graph in a bare loop"] = round(
                most["req_s"] / limit["images_per_s"], 3
            )
    return found | {"graph fp16": graph, "load": load}


# ---------------------------------------------------------------------------------------------------------- backbones


def extraction(given: Given, work: Path) -> Json:
    found, weights = read(work, "extraction"), read(work, "weights")["source"]
    half, full = best(found["fp16"]["alone"]), best(found["fp32"]["alone"])
    size = max(found["fp16"]["alone"], key=found["fp16"]["alone"].get)
    return {
        "weights": weights, "graph alone fp16, images/s": half, "graph alone fp32, images/s": full,
        "batches from the host over IO binding : graph alone, fp16": found["fp16"]["bound_share"][size],
        "photographs decoded into the fp16 graph, images/s": found["fed"],
        "photographs : graph alone, fp16": round(found["fed"] / half, 3),
        "extraction by train on all CPUs, images/s": found["product"],
        "photographs into the fp16 graph : extraction by train": round(found["fed"] / found["product"], 2),
        "extraction": found,
    }  # fmt: skip


def fine_tuning(given: Given, work: Path) -> Json:
    results = json.loads((work / "run" / RESULTS_FILE).read_text())
    rates = [int(n) for n in re.findall(r"images_s=(\d+)", (work / "log.txt").read_text(errors="replace"))]
    weights = read(work, "weights")["source"]
    found: Json = {"weights": weights, "training, images/s (the last shown)": rates[-1] if rates else None}
    if not weights.startswith("random"):
        found["accuracy on test images"] = results["accuracy"]
        found |= {f"accuracy, {group}": share for group, share in results["group_accuracy"].items()}
    return found | {f"fp16 bundle: {label}": value for label, value in served(work).items()}


# ---------------------------------------------------------------------------------------------------------- training


def at_once(given: Given, work: Path) -> Json:
    alone = read(work, "alone")
    together = [read(work, path.stem) for path in sorted(work.glob("together-*.out"))]
    found: Json = {
        "trainer, images/s": alone["trainer_images_s"], "trainer : bare loop": alone["ratio"],
        "precision": alone["precision"],
    }  # fmt: skip
    found |= {f"{t['at_once']} runs at once : one": t["gain"] for t in together}
    return found | estimates(alone["trainer_images_s"], gain=max([1.0, *(t["gain"] for t in together)]))


def estimates(images_s: float, gain: float) -> Json:
    """Minutes of stage 1 by PASCL's recipe at the speed of a few measured steps, and calls that all four take at the
    best number of runs at once; without evaluation and second stages."""
    from training.methods.methods import find  # torch: a machine without it still hears what it lacks

    found: Json = {}
    for name, images in CUTS.items():
        total = 0.0
        for method in ("msp", "oe", "pascl-abf", "tailguard"):
            row = find(method)
            step = BATCH * (row.views + (row.outliers_per_image if row.takes_outliers else 0))
            seconds = EPOCHS * math.ceil(0.9 * images / BATCH) * step / images_s
            found[f"estimate: {method} on {name}-LT alone, min"] = round(seconds / 60, 1)
            total += seconds
        found[f"estimate: calls for all four on {name}-LT"] = math.ceil(total / gain / LIMIT_S)
    return found


def worth_two(given: Given) -> bool:
    """Whether two runs side by side are faster than one after the other; on a GPU so where nothing was measured."""
    measured = given.measured("runs-at-once").get("2 runs at once : one")
    return given.device == "cuda" if measured is None else measured >= WORTH_IT


def comparison(methods: Sequence[str]) -> Callable[[Given, Path], Json]:
    """The figures of these rows of the table, means over the OOD sets."""

    def figures(given: Given, work: Path) -> Json:
        found: Json = {}
        for path in sorted((work / "results").glob("*.json")):
            result = json.loads(path.read_text())
            if result["method"] in methods:
                shown = {"accuracy": result["accuracy"]} | {k: result["mean"][k] for k in ("auroc", "aupr", "fpr95")}
                found |= {f"{result['method']}, {key} (seed {result['seed']})": value for key, value in shown.items()}
        if not found:
            raise ValueError(f"the table wrote no result of {', '.join(methods)} into {work / 'results'}")
        return found

    return figures
