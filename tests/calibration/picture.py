"""The picture of results.json: refusal at id95 against the number of calibration images."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

COLOURS = {0.0: "#0072B2", 1.0: "#009E73", 2.0: "#D55E00"}
KINDS = {"synthetic": ("o", "#0072B2", "synthetic"), "real": ("s", "#E69F00", "real: digits, CIFAR-10-LT"),
         "shared": ("D", "#D55E00", "real: plankton, CIFAR-100-LT, clusters")}  # fmt: skip
TICKS = (1, 2, 5, 10, 19, 50, 100, 200, 1000, 10_000)


def draw(found: dict[str, Any], path: Path) -> None:
    """A PNG of 1,100 x 520 px."""
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _sweep(left, found["sweep"])
    _tails(right, found)
    for axes in (left, right):
        axes.axhspan(3.5, 6.5, color="#999999", alpha=0.15, linewidth=0)
        axes.axhline(5, color="black", linewidth=0.9)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(TICKS))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("calibration images of the group")
    left.set(ylabel="fresh in-distribution images refused at id95", ylim=(0, 40))
    left.set_title("A tail beside a head of 200 calibration images (mean of 400 splits)", fontsize=10, loc="left")
    right.set_title("Every group of every tail (mean of 100+ splits); band: ±1.5 points", fontsize=10, loc="left")
    figure.savefig(path, dpi=100)


def _sweep(axes: Any, rows: list[dict[str, Any]]) -> None:
    for shift, colour in COLOURS.items():
        own = [r for r in rows if r["shift"] == shift]
        images = [r["images"] for r in own]
        label = f"tail shifted by {shift:g} sd" if shift else "tail like the head"
        axes.plot(images, [100 * r["refused"] for r in own], "o-", color=colour, markersize=4, label=label)
        axes.plot(
            images, [100 * r["refused_before"] for r in own], ":", color=colour, label=f"{label}, shrunk (before)"
        )
    first = [r for r in rows if r["shift"] == 0]
    axes.plot([r["images"] for r in first], [100 * r["promise"] for r in first], "--", color="black", linewidth=1,
              label="promised at most")  # fmt: skip
    axes.legend(fontsize=8.5, framealpha=1, edgecolor="none")


def _tails(axes: Any, found: dict[str, Any]) -> None:
    for kind, (marker, colour, label) in KINDS.items():
        groups = [g for result in found[kind] for g in result["groups"] if g["calibration_images"] >= 1]
        axes.plot([g["calibration_images"] for g in groups], [100 * g["refused"] for g in groups], marker, color=colour,
                  markersize=5, alpha=0.8, linestyle="none", label=label)  # fmt: skip
    axes.legend(fontsize=8.5, framealpha=1, edgecolor="none")
