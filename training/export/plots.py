"""The two plots of a model card, from a bundle's manifest."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image

from service.contract.bundle import Manifest

SCORES_PLOT = "plots/scores.png"
RELIABILITY_PLOT = "plots/reliability.png"
# Okabe and Ito, "Color Universal Design" (2008): told apart with any colour vision; the line styles carry it in print.
OUTLIER_LOOK = ("#D55E00", ":")
HEAD_LOOK, TAIL_LOOK = ("#0072B2", "-"), ("#E69F00", "-.")
MIDDLE_LOOKS = (
    ("#009E73", "--"),
    ("#CC79A7", (0, (5, 1, 1, 1, 1, 1))),
    ("#56B4E9", (0, (1, 1))),
    ("#999999", (0, (7, 2))),
)
MARKERS = "os^Dv"
BLUE, GREY = "#0072B2", "#999999"


def plots(manifest: Manifest) -> dict[str, bytes]:
    """Path inside the bundle → PNG: the distributions of the scores, and the reliability of the probabilities.

    The second is left out when the evaluation has no reliability record with at least one image.
    """
    drawn = {SCORES_PLOT: png(_scores(manifest))}
    measured = manifest.evaluation.get("reliability") or {}
    if any(measured.get("images") or []):
        drawn[RELIABILITY_PLOT] = png(_reliability(measured))
    return drawn


def group_looks(names: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """Colour and line style of each group, the head's first."""
    middle = [MIDDLE_LOOKS[i % len(MIDDLE_LOOKS)] for i in range(len(names) - 2)]
    return dict(zip(names, (HEAD_LOOK, *middle, TAIL_LOOK), strict=False))


def _scores(m: Manifest) -> Figure:
    """Cumulative distributions of the deciding score on the calibration split, the thresholds drawn over them."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    levels = [100 * level for level in m.calibration.quantile_levels]
    curves = {k: v for k, v in (m.calibration.quantiles.get(m.deciding_score) or {}).items() if v}
    looks = group_looks(m.group_names) | {"outliers": OUTLIER_LOOK}
    for name in [k for k in looks if k in curves]:
        colour, style = looks[name]
        label = "outliers" if name == "outliers" else f"in-distribution, {name}"
        axes.plot(curves[name], levels, linestyle=style, color=colour, label=label, linewidth=2)
    for marker, (name, point) in zip(MARKERS, m.operating_points.items(), strict=False):
        axes.axvline(point.threshold, color="black", linewidth=0.9, zorder=1)
        crossings = [(point.threshold, OUTLIER_LOOK[0], curves.get("outliers"))]
        crossings += [(point.group_thresholds[g], looks[g][0], curves.get(g)) for g in m.group_names]
        for x, colour, values in crossings:
            if values:
                axes.plot(x, _level(values, levels, x), marker, color=colour, markeredgecolor="black", markersize=6)
        axes.plot([], [], marker, color="white", markeredgecolor="black", linestyle="none", label=f"{name}, by group")
    _name_thresholds(axes, {name: p.threshold for name, p in m.operating_points.items()})
    axes.set(
        xlabel=f"{m.deciding_score} (larger = more outlying)", ylabel="images with a score up to here", ylim=(0, 102)
    )
    axes.yaxis.set_major_formatter(PercentFormatter())
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _name_thresholds(axes: Any, thresholds: Mapping[str, float]) -> None:
    """Above the axes, each at its line; the lower half reads to the left and the upper half to the right."""
    ordered = sorted(thresholds, key=lambda name: thresholds[name])
    for rank, name in enumerate(ordered):
        left = rank < len(ordered) / 2 and len(ordered) > 1
        axes.annotate(
            name,
            (thresholds[name], 1.0),
            (3 if left else -3, 4 + 11 * (rank if left else len(ordered) - 1 - rank)),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            ha="right" if left else "left",
            fontsize=9,
        )


def _level(values: tuple[float, ...], levels: list[float], x: float) -> float:
    """Where the curve stands at `x`: the share of scores up to it, in percent, between the stored quantiles."""
    if x >= values[-1]:
        return levels[-1]
    above = next(i for i, value in enumerate(values) if value > x)
    if above == 0:
        return levels[0]
    share = (x - values[above - 1]) / (values[above] - values[above - 1])
    return levels[above - 1] + share * (levels[above] - levels[above - 1])


def _reliability(measured: Mapping[str, Any]) -> Figure:
    """Accuracy against confidence in equal bins, over the share of images in each bin (Guo et al., ICML 2017)."""
    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    images = measured["images"]
    columns = zip(measured["confidence"], measured["accuracy"], images, strict=True)
    points = [(100 * c, 100 * a) for c, a, n in columns if n and c is not None and a is not None]
    upper.plot([0, 100], [0, 100], "--", color=GREY, label="perfectly calibrated")
    upper.plot(*zip(*points, strict=True), "o-", color=BLUE, label="this model")
    width = 100 / len(images)
    shares = [100 * n / sum(images) for n in images]
    lower.bar([width * (i + 0.5) for i in range(len(images))], shares, 0.9 * width, color=BLUE)
    ece = measured.get("ece")
    upper.set(ylabel="accuracy", xlim=(0, 100), ylim=(0, 102))
    upper.set_title(f"{sum(images)} test images" + ("" if ece is None else f", calibration error {100 * ece:.2f}%"))
    upper.legend(loc="upper left", frameon=False)
    lower.set(xlabel="confidence: probability of the predicted class", ylabel="images")
    for axes in (upper, lower):
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    lower.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    return figure


def png(figure: Figure, dpi: int = 100) -> bytes:
    """In 64 colours, which such a plot does not exceed by eye, it takes a third of the bytes."""
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi=dpi)
    Image.open(full).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()
