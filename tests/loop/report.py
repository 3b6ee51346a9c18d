"""The simulation as a table and a picture.

    python -m tests.loop.report runs/loop/plankton runs/loop/groceries --into tests/loop

writes README.md's tables (between its marks) and <data>.png.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from pydantic import BaseModel
from pydantic_settings import CliApp, CliPositionalArg

from tests.loop.reviewer import STRATEGIES

COLOURS = {"groups": "#14713d", "random": "#8a8f98", "least confident": "#3f6fb5"}
NAMES = {"groups": "groups, largest first", "random": "single images, at random",
         "least confident": "single images, least confident first"}  # fmt: skip
RESULTS = "RESULTS.md"


def percent(value: float | None) -> str:
    return "—" if value is None else f"{100 * value:.1f}"


def table(record: dict[str, Any]) -> str:
    """A row a day."""
    tail = list(record["days"][0]["known accuracy of the group"])[-1]
    lines = [
        "| day | new classes come / learned | actions (images) | purity | known: accuracy | of the tail "
        "| tail refused | new: accuracy | unknown caught | promoted |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for i, day in enumerate(record["days"]):
        later = record["days"][i + 1]["promotion"] if i + 1 < len(record["days"]) else None
        lines.append("| " + " | ".join([
            str(day["day"]), f"{len(day.get('arrived', []))} / {len(day['learned'])}",
            f"{day['spent']} ({day['labelled']})" if i else "—",
            percent(day["purity"]["of images"]) if i else "—",
            percent(day["known accuracy"]), percent(day["known accuracy of the group"][tail]),
            percent(day["known refused of the group"][tail]), percent(day["new accuracy"]),
            percent(day["unknown caught"]), "not exported" if day.get("learn refused") else
            "—" if later is None else "yes" if later["promoted"] else "refused",
        ]) + " |")  # fmt: skip
    return "\n".join(lines)


def curve(axes: Axes, records: list[dict[str, Any]], key: str, title: str) -> None:
    highest = max(100 * (day[key] or 0) for record in records for day in record["days"])
    for record in records:
        values = [100 * (day[key] or 0) for day in record["days"]]
        name = record["strategy"]
        axes.plot(range(len(values)), values, "o-", color=COLOURS[name], label=NAMES[name])
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_ylim(0, 100 if highest > 40 else 40)
    axes.set_xlabel("day")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)


def picture(records: list[dict[str, Any]], path: Path) -> None:
    """What was learned, what was kept, and what is still refused, by day and way of labelling."""
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.4))
    curve(axes[0], records, "new accuracy", "new classes that came:\nnamed right, %")
    curve(axes[1], records, "known accuracy", "known classes:\nnamed right, %")
    curve(axes[2], records, "known refused", "known classes:\nrefused, %")
    curve(axes[3], records, "unknown caught", "unknown things:\nrefused, %")
    axes[1].legend(fontsize=8, frameon=False, loc="lower left")  # nothing known falls so far
    figure.suptitle(f"{records[0]['data']}: {records[0]['actions']} actions of a reviewer a day, "
                    f"{100 * records[0]['wrong']:.0f} of 100 wrong", x=0.01, ha="left", fontsize=11)  # fmt: skip
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


class Report(BaseModel):
    runs: CliPositionalArg[list[Path]]
    into: Path = Path(__file__).parent

    def cli_cmd(self) -> None:
        parts = []
        for run in self.runs:
            files = [run / f"{name.replace(' ', '-')}.json" for name in STRATEGIES]
            records = [json.loads(file.read_text()) for file in files if file.is_file()]
            picture(records, self.into / f"{records[0]['data']}.png")
            parts.append(f"## {records[0]['data'].capitalize()}\n\n![by day]({records[0]['data']}.png)")
            parts += [f"### {NAMES[record['strategy']].capitalize()}\n\n{table(record)}" for record in records]
        (self.into / RESULTS).write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    CliApp.run(Report)
