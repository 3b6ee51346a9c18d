"""The pictures of a table: ROC, risk and coverage, spread of the scores, classes against train count, feature map.

They are drawn from the outputs.npz of the lowest seed of each pictured method; a method without that file is left out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from training.tables import maps, spread
from training.tables.cells import Runs
from training.tables.grids import Table
from training.tables.series import GREY, Floats, Picture, Series, auroc, load, png, seeds_of, tidy

GRID = np.linspace(0, 1, 501)
FIRST = 0.02  # the share accepted at which a risk-coverage curve begins


def pictures(table: Table, runs: Runs, outputs: Mapping[tuple[str, int, float], Path]) -> list[Picture]:
    series = load(table, runs, outputs)
    if not table.on_ood:
        series = [replace(s, ood={}) for s in series]
    ood = [s for s in series if s.ood]
    tailed = [s for s in series if len(set(s.train_counts.tolist())) > 1]
    mapped = [s for s in tailed if s.map_features is not None]
    drawers: dict[str, tuple[list[Series], Callable[[Sequence[Series]], Picture | None]]] = {
        "roc": (ood, _roc_per_set if len(table.pictured) == 2 else _roc),
        "risk-coverage": (series, _risk_coverage),
        "scores": (ood, spread.scores),
        "classes": (tailed, spread.classes),
        "map": (mapped, maps.feature_map),
    }
    drawn = [draw(what) for what, draw in (drawers[name] for name in table.pictures) if what]
    return [picture for picture in drawn if picture is not None]


# ---- ROC -------------------------------------------------------------------------------------------------------------


def roc(ins: Floats, outs: Floats) -> Floats:
    """Recall of OOD at the false positive rates of GRID."""
    from sklearn.metrics import roc_curve  # takes as long to import as torch

    truth = np.concatenate([np.zeros(len(ins)), np.ones(len(outs))])
    fpr, tpr, _ = roc_curve(truth, np.concatenate([ins, outs]))
    curve: Floats = np.interp(GRID, fpr, tpr)
    return curve


def _roc(series: Sequence[Series]) -> Picture:
    """The ROC curves, averaged over the OOD sets at equal false positive rate."""
    figure = Figure(figsize=(6.4, 5.0), layout="constrained")
    axes = figure.subplots()
    areas = {}
    for s in series:
        areas[s.label] = float(np.mean([auroc(s.scores, o) for o in s.ood.values()]))
        curve = np.mean([roc(s.scores, o) for o in s.ood.values()], axis=0)
        axes.plot(100 * GRID, 100 * curve, label=f"{s.label}, AUROC {areas[s.label]:.1f}", **s.line)
    _frame_roc(axes)
    axes.set(xlabel="ID test images flagged (false positive rate)", ylabel="OOD images caught, mean over the sets")
    axes.legend(loc="lower right", frameon=False)
    named = ", ".join(f"{k} {v:.1f}" for k, v in areas.items())
    caption = f"ROC curves, OOD positive, averaged over {len(series[0].ood)} OOD sets. AUROC: {named}. "
    caption += "Dashed: 95% of the OOD images caught, where FPR95 is read. "
    return Picture("roc", png(figure), f"ROC curves of {len(areas)} runs. AUROC: {named}.", caption + seeds_of(series))


def _roc_per_set(series: Sequence[Series]) -> Picture:
    """One panel for each OOD set."""
    names = list(series[0].ood)
    across = min(3, len(names))
    down = -(-len(names) // across)
    figure = Figure(figsize=(3.0 * across + 0.4, 2.9 * down + 0.6), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    values = []
    for axes, name in zip(grid.flat, names, strict=False):
        areas = []
        for s in series:
            areas.append(auroc(s.scores, s.ood[name]))
            label = s.label if name == names[0] else None
            axes.plot(100 * GRID, 100 * roc(s.scores, s.ood[name]), label=label, **s.line)
        _frame_roc(axes)
        axes.set_title(f"{name}\nAUROC " + " / ".join(f"{a:.1f}" for a in areas), fontsize=10)
        values.append(f"{name} " + " / ".join(f"{a:.1f}" for a in areas))
    for axes in list(grid.flat)[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel("ID test images flagged (false positive rate)", fontsize=10)
    figure.supylabel("OOD images caught", fontsize=10)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    order = " / ".join(s.label for s in series)
    text = f"ROC curves on each OOD set, OOD positive. AUROC ({order}): {'; '.join(values)}."
    caption = f"{text} Dashed: 95% of the OOD images caught, where FPR95 is read. {seeds_of(series)}"
    return Picture("roc", png(figure), text, caption)


def _frame_roc(axes: Any) -> None:
    axes.plot([0, 100], [0, 100], color=GREY, linewidth=1)
    axes.axhline(95, color=GREY, linewidth=1, linestyle=(0, (2, 2)))
    axes.set(xlim=(0, 100), ylim=(0, 101))
    tidy(axes)


# ---- Risk and coverage -----------------------------------------------------------------------------------------------


def risk_coverage(scores: Floats, wrong: NDArray[np.bool_], weights: Floats) -> tuple[Floats, Floats]:
    """(share accepted, share of errors among the accepted) as the threshold rises; one point per distinct score."""
    order = np.argsort(scores, kind="stable")
    last = np.append(np.diff(scores[order]) > 0, True)  # tied scores are accepted together
    accepted = np.cumsum(weights[order])[last]
    errors = np.cumsum((weights * wrong)[order])[last]
    return accepted / weights.sum(), errors / accepted


def mixed(s: Series) -> tuple[Floats, NDArray[np.bool_], Floats]:
    """Scores, errors and weights of a stream that is half in-distribution, half OOD, each set of equal weight."""
    scores = np.concatenate([s.scores, *s.ood.values()])
    wrong = np.concatenate([s.predictions != s.labels, np.ones(len(scores) - len(s.scores), bool)])
    parts = [np.full(len(s.scores), 0.5 / len(s.scores))]
    parts += [np.full(len(o), 0.5 / len(s.ood) / len(o)) for o in s.ood.values()]
    return scores, wrong, np.concatenate(parts)


def _risk_coverage(series: Sequence[Series]) -> Picture:
    with_ood = any(s.ood for s in series)
    figure = Figure(figsize=(9.6 if with_ood else 7.2, 4.4), layout="constrained")
    panels = figure.subplots(1, 2 if with_ood else 1, squeeze=False)[0]
    values = []
    for s in series:
        x, y = risk_coverage(s.scores, s.predictions != s.labels, np.ones(len(s.scores)))
        values.append(f"{s.label} {100 * np.interp(0.8, x, y):.1f}")
        shown = x >= FIRST
        panels[0].plot(100 * x[shown], 100 * y[shown], label=s.label, **s.line)
        if s.ood:
            x, y = risk_coverage(*mixed(s))
            panels[1].plot(100 * x[x >= FIRST], 100 * y[x >= FIRST], **s.line)
    panels[0].set(title="ID test images only", xlabel="share of ID images accepted", ylabel="errors among the accepted")
    if with_ood:
        panels[1].set(title="half ID, half OOD; an accepted OOD image is an error",
                      xlabel="share of all images accepted", ylabel="errors among the accepted")  # fmt: skip
        panels[1].axvline(50, color=GREY, linewidth=1, linestyle=(0, (2, 2)))
    for axes in panels:
        axes.set(xlim=(0, 101), ylim=(0, None))
        axes.title.set_fontsize(10.5)
        tidy(axes)
    figure.legend(loc="outside lower center", ncols=4 if with_ood else 3, frameon=False)
    caption = "Risk against coverage: images are accepted in the order of the deciding score, least outlying first "
    caption += f"(below {FIRST:.0%}, where a handful of images decides, nothing is drawn). "
    caption += f"Errors at 80% of the ID images accepted, %: {', '.join(values)}. "
    if with_ood:
        caption += "Right: OOD sets of equal weight; a perfect detector accepts the left half (50%) first. "
    alt = f"Risk-coverage curves. Errors at 80% coverage of ID images, percent: {', '.join(values)}."
    return Picture("risk-coverage", png(figure), alt, caption + seeds_of(series))
