"""The generated parts of every README: `python -m tests.readme` writes them, tests/test_readme.py checks them.

A part stands between `<!-- generated: NAME -->` and `<!-- /generated -->`; NAME is a key of BLOCKS.
"""

import ast
import json
import re
from collections.abc import Callable
from statistics import mean
from typing import Any

import httpx

from service import settings
from service.contract.bundle import read
from tests import live
from tests.bench import scale_table
from tests.bench import tables as speed
from tests.bench.peers import table as peers
from tests.drift import report as drift
from tests.measured import BUNDLE, candidates, detection, grids, lines, longer, percent

ROOT = live.ROOT
README = ROOT / "README.md"
FOLDERS = ("models", "service", "training", "training/results", "docker", "tests/bench", "tests/loop")
DOCUMENTS = (README, ROOT / "CONTRIBUTING.md", *(ROOT / folder / "README.md" for folder in FOLDERS))
EXAMPLE = "models/cifar10-lt/2/examples/ship.png"
MEASURED = ROOT / "tests" / "bench" / "results"
VOLATILE = ("request_id", "stage_times")


def answer(url: str) -> dict[str, Any]:
    """The real answer to the request that the README shows."""
    with (ROOT / EXAMPLE).open("rb") as file:
        body: dict[str, Any] = httpx.post(f"{url}/classify?top_k=2", files={"file": file}, timeout=60).json()
    return body


def answer_block(shown: dict[str, Any]) -> str:
    """The request and its answer; objects of plain values stand on one line."""
    text = re.sub(r"\{[^{}\[\]]*\}", lambda m: re.sub(r"\s*\n\s*", " ", m[0]), json.dumps(shown, indent=2))
    return f"```console\ncurl -F file=@{EXAMPLE} '127.0.0.1:8000/classify?top_k=2'\n```\n\n```json\n{text}\n```"


def shown_answer(block: str) -> dict[str, Any]:
    """The answer that a document shows."""
    shown: dict[str, Any] = json.loads(re.findall(r"```json\n(.*?)```", block, re.DOTALL)[0])
    return shown


def same(shown: dict[str, Any], real: dict[str, Any]) -> bool:
    """Whether two answers differ only in what differs from request to request."""
    return close(shown | dict.fromkeys(VOLATILE), real | dict.fromkeys(VOLATILE))


def close(one: object, two: object) -> bool:
    """Equal, but for the last digits of numbers, which int8 kernels of other CPUs may round otherwise."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(close(one[k], two[k]) for k in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(close, one, two))
    if isinstance(one, float) and isinstance(two, float):
        return abs(one - two) < 0.02 * max(1, abs(two))
    return one == two


def fairness() -> str:
    """What the default operating point of the default bundle rejects of good images, by group."""
    manifest = read(BUNDLE)
    point = manifest.operating_points[manifest.default_operating_point]
    groups = [group.name for group in manifest.groups]
    accuracy = [
        percent(mean(c.accuracy for c in manifest.classes if c.group == g and c.accuracy is not None)) for g in groups
    ]
    rows = [["accuracy", percent(manifest.evaluation["accuracy"]), *accuracy, ""]]
    for name, cost in (
        ("thresholds by group (default)", point.group_cost.test),
        ("one threshold", point.global_cost.test),
    ):
        assert cost is not None
        rejected = [percent(cost.id_rejected_by_group[g]) for g in groups]
        rows.append([f"rejected, {name}", percent(cost.id_rejected), *rejected, percent(cost.outliers_caught)])
    return lines("CIFAR-10 test, `id95`", "all", *groups, "OOD caught", rows=rows)


def measured(name: str) -> Any:
    """What a measurement wrote: see tests/bench and tests/hard."""
    return json.loads((MEASURED / name).read_text(encoding="utf-8"))


def packages() -> str:
    """One line per package: the first line of its docstring."""
    rows = []
    for side in ("service", "training"):
        for path in sorted((ROOT / side).glob("*/__init__.py")):
            said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            folder = path.parent.relative_to(ROOT)
            rows.append([f"[{folder}]({folder})", said.splitlines()[0]])
    return lines("package", "what it answers", rows=rows).replace("|---:|", "|---|")


def settings_table() -> str:
    """One line per setting: its variable, its default, and what service/settings says of it."""
    rows = []
    for name, field in settings.Settings.model_fields.items():
        default = "the CPUs of this process" if field.default_factory else _value(field.default)
        said = " ".join((field.description or "").split())
        rows.append([f"`{settings.PREFIX}{name.upper()}`", default, said])
    return lines("variable", "default", "what", rows=rows).replace("|---:|---:|", "|---|---|")


def _value(default: Any) -> str:
    return "" if default in (None, "") else f"`{str(default).lower() if isinstance(default, bool) else default}`"


BLOCKS: dict[str, Callable[[], str]] = {
    "detection": detection,
    "fairness": fairness,
    "speed": lambda: speed.in_short(measured("service.json")),
    "abuse": lambda: speed.abuse(measured("hard.json")),
    "packages": packages,
    "candidates": candidates,
    "grids": grids,
    "longer": longer,
    "settings": settings_table,
    "drift": drift.block,
    "bench": lambda: speed.bench(measured("service.json"), measured("resnet18.json"), measured("framework.json")),
    "peers": lambda: peers.markdown(measured("peers.json")),
    "hard": lambda: speed.hard(measured("hard.json")),
    "scale": lambda: scale_table.markdown(measured("scale.json")),
}
PART = re.compile(r"<!-- generated: (\w+) -->\n(.*?)\n?<!-- /generated -->", re.DOTALL)


def parts(text: str) -> dict[str, str]:
    """The generated parts as they stand in a document."""
    return dict(PART.findall(text))


def fill(text: str, content: Callable[[str], str]) -> str:
    """The document with every part written again."""
    return PART.sub(lambda m: f"<!-- generated: {m[1]} -->\n{content(m[1])}\n<!-- /generated -->", text)


def links(text: str) -> list[str]:
    """Targets of the links and pictures that lead into the project."""
    return re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def main() -> None:
    with live.serving(BUNDLE) as url:
        answer(url)  # the first request of a process is slower than those that follow
        shown = answer(url)
    before = parts(README.read_text(encoding="utf-8"))["answer"]
    kept = before if before and same(shown_answer(before), shown) else answer_block(shown)
    content = {name: make() for name, make in BLOCKS.items()} | {"answer": kept}
    for path in DOCUMENTS:
        path.write_text(fill(path.read_text(encoding="utf-8"), content.__getitem__), encoding="utf-8")


if __name__ == "__main__":
    main()
