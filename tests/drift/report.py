"""The simulation's results as markdown for the README and as a picture: `python -m tests.drift.report` draws it."""

import json
import math
from typing import Any

from tests.drift.rules import ALERTS
from tests.drift.simulate import BALANCED, FRESH, OWN, RATES, REDRAWN, RESULTS, STREAMS, TOGETHER
from training.data.whole import replacing

PICTURE = RESULTS.with_name("delays.png")
COLOURS = {"TailGuardRejectionOff": "#c44e52", "TailGuardScoreDrift": "#54306e", "TailGuardTailRefused": "#f2a104"}
NAMES = {
    REDRAWN: "calibration scores, another calibration each week",
    OWN: "calibration scores",
    FRESH: "new images (CIFAR-10 test), classes as in training",
    BALANCED: "the same, classes balanced",
}


def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    return found


def wilson(count: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927)."""
    share, add = count / of, z * z / of
    half = z * math.sqrt(share * (1 - share) / of + add / (4 * of))
    low, high = (share + add / 2 - half) / (1 + add), (share + add / 2 + half) / (1 + add)
    return (0.0 if count == 0 else low), (1.0 if count == of else high)


def per_second(rate: float) -> str:
    return f"{rate:g}/s"


def _alarm_cell(row: dict[str, Any]) -> str:
    weeks, alarms = row["weeks"], row["alarms"]
    if row["share_of_time_firing"] > 0.99:
        return "always firing"
    if alarms == 0:
        return f"0 (≤ {wilson(0, weeks)[1]:.1%} of weeks)"
    low, high = wilson(row["weeks_with_alarm"], weeks)
    often = alarms / weeks
    return f"{often:{'.2g' if often < 10 else '.0f'}} ({low:.1%}–{high:.1%} of weeks)"


def false_alarm_table(found: dict[str, Any]) -> str:
    """Alarms a week by stream and rate; in brackets the 95% Wilson interval of the share of weeks with one."""
    rows = {(r["stream"], r["images_per_s"], r["alert"]): r for r in found["false_alarms"] if r["window"] == "any"}
    lines = [
        f"| stream | images | weeks | {' | '.join(ALERTS)} |",
        "|---|---|---|" + "---|" * len(ALERTS),
    ]
    for stream in STREAMS:
        for rate in RATES:
            cells = [rows[stream, rate, alert] for alert in ALERTS]
            shown = " | ".join(_alarm_cell(cell) for cell in cells)
            lines.append(f"| {NAMES[stream]} | {per_second(rate)} | {cells[0]['weeks']} | {shown} |")
    return "\n".join(lines)


def _delay_cell(row: dict[str, Any], horizon_s: float) -> str:
    within = row["noticed"] / row["trials"]
    if row["median_s"] is None:
        return f"{within:.0%} within {horizon_s / 3600:.0f} h"
    last = "–" if row["p90_s"] is None else f"{row['p90_s'] / 60:.0f}"
    missed = "" if within == 1 else f", {within:.1%} noticed"
    return f"{row['median_s'] / 60:.0f} / {last} min, {row['median_s'] * row['images_per_s']:,.0f} images{missed}"


def delay_table(found: dict[str, Any]) -> str:
    """From the moment that a fifth of the stream is OOD to the first alarm: median / 90% minutes, median images."""
    rows = {(r["ood"], r["images_per_s"]): r for r in found["delays"] if r["alert"] == TOGETHER}
    lines = [
        f"| OOD set | rejected | KS | {' | '.join(f'first alarm at {per_second(rate)}' for rate in RATES)} |",
        "|---|---|---|" + "---|" * len(RATES),
    ]
    for name in dict.fromkeys(r["ood"] for r in found["delays"]):
        cells = " | ".join(_delay_cell(rows[name, rate], found["horizon_s"]) for rate in RATES)
        lines.append(f"| {name} | {found['whole'][name]['all']:.0%} | {found['whole'][name]['ks']:.2f} | {cells} |")
    return "\n".join(lines)


def block() -> str:
    """Both tables for the README."""
    found = results()
    return false_alarm_table(found) + "\n\n" + delay_table(found)


def draw() -> None:
    """Delay of each alert by OOD set and rate, median to 90%, to PICTURE."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = results()
    horizon = found["horizon_s"] / 60
    sets = sorted(dict.fromkeys(r["ood"] for r in found["delays"]), key=lambda name: found["whole"][name]["all"])
    figure, panels = pyplot.subplots(1, len(RATES), figsize=(10, 4.2), sharex=True, sharey=True, layout="constrained")
    for axes, rate in zip(panels, RATES, strict=True):
        for k, (alert, colour) in enumerate(COLOURS.items()):
            for i, name in enumerate(sets):
                row = next(
                    r for r in found["delays"]
                    if (r["ood"], r["images_per_s"], r["alert"], r["window"]) == (name, rate, alert, "any")
                )  # fmt: skip
                y = i + 0.22 * (1 - k)
                if row["median_s"] is None:
                    share = row["noticed"] / row["trials"]
                    axes.annotate(f"{share:.0%} →", (horizon - 1, y), ha="right", va="center", fontsize=8, color=colour)
                    continue
                last = horizon if row["p90_s"] is None else row["p90_s"] / 60
                axes.plot([row["median_s"] / 60, last], [y, y], color=colour, lw=2, solid_capstyle="butt")
                axes.plot(row["median_s"] / 60, y, "o", color=colour, ms=5)
        axes.set(title=f"{rate:g} images/s", xlim=(0, horizon), xticks=range(0, int(horizon) + 1, 30))
        axes.set_yticks(range(len(sets)), [f"{name}\n{found['whole'][name]['all']:.0%} rejected" for name in sets])
        axes.grid(axis="x", color="#dddddd", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[1].set_xlabel(
        "minutes from when a fifth of the stream is OOD to the alarm\n"
        f"● median, ― up to 90%; 50% →: share noticed within {horizon / 60:.0f} hours"
    )
    for alert, colour in COLOURS.items():
        panels[0].plot([], [], "o-", color=colour, lw=2, ms=5, label=alert)
    figure.legend(loc="outside upper center", ncols=len(COLOURS), frameon=False, fontsize=9)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    with replacing(PICTURE) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    draw()
    print(f"drawn: {PICTURE}")
