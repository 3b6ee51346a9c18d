"""The generated parts of README.md: `python -m tests.readme` writes them, tests/test_readme.py checks them."""

import json
import re
from pathlib import Path
from typing import Any

import httpx

from service.contract.bundle import Manifest, read
from tests import live
from tests.bench import tables as speed
from tests.bench.peers import table as peers
from tests.drift import report as drift
from training import tables

README = live.ROOT / "README.md"
BUNDLE = live.ROOT / "models" / "cifar10-lt" / "1"
RESULTS = live.ROOT / "training" / "results"
EXAMPLE = "models/cifar10-lt/1/examples/ship.png"
MEASURED = live.ROOT / "tests" / "bench" / "results"
VOLATILE = ("request_id", "stage_times")


def answer(url: str) -> dict[str, Any]:
    """The real answer to the request that the README shows."""
    with (live.ROOT / EXAMPLE).open("rb") as file:
        body: dict[str, Any] = httpx.post(f"{url}/classify?top_k=2", files={"file": file}, timeout=60).json()
    return body


def answer_block(url: str) -> str:
    shown = json.dumps(answer(url), indent=2)
    return f"```console\ncurl -F file=@{EXAMPLE} '127.0.0.1:8000/classify?top_k=2'\n```\n\n```json\n{shown}\n```"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def results_block(manifest: Manifest) -> str:
    e, point = manifest.evaluation, manifest.operating_points["id95"]
    grouped, single = point.group_cost.test, point.global_cost.test
    assert grouped is not None
    assert single is not None
    lines = [
        f"| CIFAR-10 test ({e['images']:,} images), `id95` | all | many | medium | few |",
        "|---|---|---|---|---|",
        f"| accuracy | {percent(e['accuracy'])} | "
        + " | ".join(percent(e["group_accuracy"][g]) for g in ("many", "medium", "few"))
        + " |",
    ]
    for name, cost in (("by group (default)", grouped), ("one global", single)):
        by = " | ".join(percent(cost.id_rejected_by_group[g]) for g in ("many", "medium", "few"))
        lines.append(f"| rejected, thresholds {name} | {percent(cost.id_rejected)} | {by} |")
    lines += [
        "",
        "| OOD set | images | rejected at `id95` | AUROC | AUPR | FPR95 | FPR95 (ID) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in e["ood"].items():
        cells = [percent(r["rejected"]["id95"])] + [
            percent(r[k]) for k in ("auroc", "aupr", "fpr95", "fpr95_id_positive")
        ]
        lines.append(f"| {name} | {r['images']:,} | " + " | ".join(cells) + " |")
    mean = [percent(e["mean"][k]) for k in ("auroc", "aupr", "fpr95", "fpr95_id_positive")]
    lines.append(
        f"| mean, unweighted | {e['mean']['images']:,} | {percent(grouped.outliers_caught)} | "
        + " | ".join(mean)
        + " |"
    )
    return "\n".join(lines)


def candidates_block(manifest: Manifest) -> str:
    rows = manifest.evaluation["candidates"]
    names = {
        "name": "run", "width": "width", "passes": "passes", "int8_bytes": "int8 KB", "ms_per_image": "ms/image",
        "accuracy": "ACC", "mean_class_accuracy": "class mean ACC", "auroc": "AUROC", "fpr95": "FPR95",
    }  # fmt: skip

    def cell(key: str, value: Any) -> str:
        if key == "int8_bytes":
            return f"{value / 1000:.0f}"
        return percent(value) if key in ("accuracy", "mean_class_accuracy", "auroc", "fpr95") else str(value)

    lines = ["| " + " | ".join(names.values()) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(cell(k, r[k]) for k in names) + " |" for r in rows]
    return "\n".join(lines)


def tables_block() -> str:
    """The tables of the committed results: the first one open, the others folded."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    first, *others = tables.TABLES
    parts = [tables.markdown(first, results)]
    for name in others:
        summary = f"<summary>{tables.TABLES[name].title}</summary>"
        parts.append(f"<details>{summary}\n\n{tables.markdown(name, results)}\n</details>")
    return "\n".join(part.rstrip() + "\n" for part in parts).rstrip()


def measured(name: str) -> Any:
    """What a measurement wrote: see tests/bench and tests/hard."""
    return json.loads((MEASURED / name).read_text(encoding="utf-8"))


def bench_block() -> str:
    return speed.bench(measured("service.json"), measured("resnet18.json"), measured("framework.json"))


def peers_block() -> str:
    return peers.markdown(measured("peers.json"))


def hard_block() -> str:
    return speed.hard(measured("hard.json"))


def blocks(url: str) -> dict[str, str]:
    manifest = read(BUNDLE)
    return {
        "answer": answer_block(url), "results": results_block(manifest),
        "candidates": candidates_block(manifest), "tables": tables_block(),
        "bench": bench_block(), "peers": peers_block(), "hard": hard_block(), "drift": drift.block(),
    }  # fmt: skip


def parts(text: str) -> dict[str, str]:
    """The generated parts as they stand in the README."""
    found = re.findall(r"<!-- generated: (\w+) -->\n(.*?)\n?<!-- /generated -->", text, re.DOTALL)
    return dict(found)


def fill(text: str, content: dict[str, str]) -> str:
    for name, block in content.items():
        pattern = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- /generated -->)", re.DOTALL)
        text = pattern.sub(lambda m, b=block: m[1] + b + "\n" + m[2], text)  # type: ignore[misc]
    return text


def main() -> None:
    with live.serving(BUNDLE) as url:
        README.write_text(fill(Path(README).read_text(encoding="utf-8"), blocks(url)), encoding="utf-8")


if __name__ == "__main__":
    main()
