"""Two pictures of a table: the scores by group, and accuracy and rejection by class."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from training.evaluation.metrics import SHOT_GROUPS
from training.export.plots import group_looks
from training.tables.series import GREY, MARKERS, OOD_COLOUR, Floats, Picture, Series, png, seeds_of, tidy

KEPT = 0.95  # share of the in-distribution test images that the rejection threshold of a picture keeps
BINS = 40


def scores(series: Sequence[Series]) -> Picture:
    """Histograms of the deciding score: in-distribution by group, and OOD with every set of equal weight."""
    figure = Figure(figsize=(7.2, 2.0 * len(series) + 0.9), layout="constrained")
    summaries, handles, names = [], [], []
    alike = len({s.results.get("score") for s in series}) == 1
    panels = figure.subplots(len(series), 1, squeeze=False, sharex=alike)[:, 0]
    for axes, s in zip(panels, series, strict=True):
        threshold = float(np.quantile(s.scores, KEPT))
        _spread(axes, s)
        axes.axvline(threshold, color=GREY, linewidth=1.2, label=f"{KEPT:.0%} of ID images lie left of it")
        axes.set_title(s.label, fontsize=10.5, loc="left")
        axes.set_ylabel("images per bin")
        tidy(axes, percent="y")
        flagged = {g: s.scores[s.groups == g] > threshold for g in SHOT_GROUPS}
        shares = ", ".join(f"{g} {100 * f.mean():.1f}%" for g, f in flagged.items() if len(f))
        caught = 100 * np.mean([np.mean(o > threshold) for o in s.ood.values()])
        summaries.append(f"{s.label} flags {shares}, OOD {caught:.1f}%")
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            if name not in names:
                handles.append(handle)
                names.append(name)
    axes.set_xlabel("deciding score (larger = more outlying)")
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    caption = (
        "Spread of the deciding score, each curve scaled to 100%; the outermost bins hold what lies beyond them, and a "
        "bin that would dwarf the rest is cut and named. At the threshold that keeps 95% of the ID test images, "
        f"{'; '.join(summaries)}. {seeds_of(series)}"
    )
    return Picture(
        "scores", png(figure), f"Histograms of the score by group against OOD. {'; '.join(summaries)}.", caption
    )


def _spread(axes: Any, s: Series) -> None:
    """OOD filled, the groups as lines, in the same bins."""
    everything = np.concatenate([s.scores, *s.ood.values()])
    low, high = (float(q) for q in np.quantile(everything, [0.001, 0.999]))
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)

    def shares(values: Floats) -> Floats:
        return np.asarray(100 * np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / len(values))

    outs = np.mean([shares(o) for o in s.ood.values()], axis=0)
    axes.stairs(outs, edges, fill=True, color=OOD_COLOUR, alpha=0.22, label="OOD, mean over the sets")
    curves = {"OOD": outs}
    for group, (colour, style) in group_looks(SHOT_GROUPS).items():
        if len(values := s.scores[s.groups == group]):
            curves[group] = shares(values)
            axes.stairs(curves[group], edges, color=colour, linestyle=style, linewidth=1.8, label=f"ID, {group}")
    _cut(axes, curves, edges)


def _cut(axes: Any, curves: Mapping[str, Floats], edges: Floats) -> None:
    """Limit the height where one bin holds several times what any other does, and say how much it holds."""
    second = {name: float(np.sort(heights)[-2]) for name, heights in curves.items()}
    alone = {name: h for name, h in curves.items() if h.max() > 3 * second[name]}
    top = 1.25 * max(second[name] if name in alone else float(h.max()) for name, h in curves.items())
    axes.set_ylim(0, top)
    beyond = [(name, h) for name, h in alone.items() if h.max() > top]
    for row, (name, heights) in enumerate(beyond):
        at = int(np.argmax(heights))
        left = at < BINS / 2
        axes.annotate(
            f"{name}: {heights[at]:.0f}% in this bin", (edges[at + 1 if left else at], top),
            (5 if left else -5, -10 - 13 * row), textcoords="offset points", ha="left" if left else "right",
            fontsize=9,
        )  # fmt: skip


def classes(series: Sequence[Series]) -> Picture:
    """Accuracy and rejection of each class against its number of training images."""
    figure = Figure(figsize=(7.2, 6.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    summaries = []
    for s in series:
        counts, right, gone = by_class(s)
        few = len(counts) <= 30  # lines through more classes than this cannot be read
        size, width = (6, 1.6) if few else (4, 0)
        looks = {**s.line, "marker": MARKERS[s.look % len(MARKERS)], "markersize": size, "linewidth": width}
        upper.plot(counts, right, label=s.label, **looks)
        lower.plot(counts, gone, **looks)
        summaries.append(f"{s.label} {right[-1]:.1f}% right and {gone[-1]:.1f}% rejected")
    upper.set(xscale="log", ylabel="accuracy of the class", ylim=(-2, 102))
    lower.set(xscale="log", ylabel="test images of the class rejected", ylim=(0, None))
    lower.set_xlabel("training images of the class (log scale)")
    lower.axhline(100 * (1 - KEPT), color=GREY, linewidth=1, linestyle=(0, (2, 2)))
    for axes in (upper, lower):
        tidy(axes, percent="y")
    everyone = [int(c) for s in series for c in s.train_counts]
    ticks = [m * 10**e for e in range(6) for m in (1, 2, 5) if min(everyone) <= m * 10**e <= max(everyone)]
    lower.xaxis.set_major_locator(FixedLocator(ticks or [min(everyone)]))
    lower.xaxis.set_minor_locator(NullLocator())
    lower.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    figure.legend(loc="outside lower center", ncols=3 if len(series) > 4 else 4, frameon=False)
    text = f"The rarest class: {'; '.join(summaries)}."
    caption = (
        "Each class against its number of training images: accuracy, and the share of its test images rejected at the "
        f"one threshold that keeps 95% of all ID test images (dashed: 5%). {text} {seeds_of(series)}"
    )
    return Picture("classes", png(figure), f"Accuracy and rejection by class against train count. {text}", caption)


def by_class(s: Series) -> tuple[list[int], list[float], list[float]]:
    """Train count, accuracy and share rejected (percent) of each class with test images, the rarest last."""
    flagged = s.scores > np.quantile(s.scores, KEPT)
    order = [int(c) for c in np.argsort(-s.train_counts, kind="stable") if np.any(s.labels == c)]
    right = [100 * float(np.mean(s.predictions[s.labels == c] == c)) for c in order]
    gone = [100 * float(np.mean(flagged[s.labels == c])) for c in order]
    return [int(s.train_counts[c]) for c in order], right, gone
