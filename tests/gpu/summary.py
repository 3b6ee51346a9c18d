"""Tables in Markdown: the steps there are, and what was measured."""

import json
from collections.abc import Sequence
from typing import Any

from tests.gpu.driver import Outcome
from tests.gpu.step import Given, Step


def listing(steps: Sequence[Step]) -> str:
    """Name, worth and expected time, in the order in which they run."""
    rows = [f"| {step.name} | {step.worth} | {step.expected} | {', '.join(step.needs)} |" for step in steps]
    return "\n".join(["| step | worth | expected on one H200, not measured | needs |", "|---|---|---|---|", *rows])


def markdown(outcomes: Sequence[Outcome], given: Given) -> str:
    """One table of what became of every step, and one of the figures."""
    kept = {o.step.name: json.loads(given.result(o.step.name).read_text()) for o in outcomes if o.state == "done"}
    states = [f"| {o.step.name} | {o.state} | {kept.get(o.step.name, {}).get('seconds', '')} | {_cell(o.why)} |"
              for o in outcomes]  # fmt: skip
    figures = [
        f"| {name} | {label} | {_value(value)} |"
        for name, result in kept.items()
        for label, value in result["measured"].items()
        if not isinstance(value, dict | list)
    ]
    of = "A rehearsal: these figures mean nothing.\n\n" if given.small else ""
    machines = {_machine(result) for result in kept.values()}
    return "\n".join([
        f"# GPU check\n\n{of}| step | state | seconds | |", "|---|---|---:|---|", *states, "",
        "| step | figure | value |", "|---|---|---:|", *figures, "", *sorted(machines), "",
    ])  # fmt: skip


def _machine(result: dict[str, Any]) -> str:
    found = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    where, load = found["card"] or "no GPU", found["load_average_before"]
    return (
        f"Measured on {where}, {found['cpus']} CPUs at a load of {load} before; {versions}; commit {found['commit']}."
    )


def _value(value: Any) -> str:
    if not isinstance(value, float):
        return _cell(str(value))
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
