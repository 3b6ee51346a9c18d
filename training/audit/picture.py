"""The plot of an audit: the long tail."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter

from training.audit.report import Report
from training.data.whole import replacing
from training.export.plots import group_looks

NAMED_CLASSES = 25  # up to so many have their names on the axis
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")  # the groups stay apart without colour


def plot(report: Report, path: Path) -> None:
    """Training images per class, largest first, coloured by group, on a logarithmic axis; a PNG of 900 x 520 px."""
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots()
    ordered = sorted(report.classes, key=lambda c: -c.train)
    named = len(ordered) <= NAMED_CLASSES
    width = 0.86 if named else 1  # thin gaps between many bars come out uneven
    for number, (group, (colour, _)) in enumerate(group_looks([g.name for g in report.groups]).items()):
        ranks = [i for i, c in enumerate(ordered) if c.group == group]
        counts = [ordered[i].train for i in ranks]
        if ranks:
            label = f"{group}: {len(ranks)} classes, {sum(counts):,} images"
            hatch = HATCHES[number % len(HATCHES)]
            axes.bar(ranks, counts, width, color=colour, hatch=hatch, edgecolor="white", linewidth=0, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(10))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlim(-0.8, len(ordered) - 0.2)
    axes.set_ylim(bottom=0.8, top=1.6 * ordered[0].train)
    axes.set(ylabel="training images (logarithmic)", xlabel="class, largest first")
    if named:
        axes.set_xticks(range(len(ordered)), [c.name for c in ordered], rotation=40, ha="right")
    for i, side in ((0, "left"), (len(ordered) - 1, "right")):
        place = (i - 0.4 if side == "left" else i + 0.4, max(ordered[i].train, 0.8))
        axes.annotate(f"{ordered[i].train:,}", place, (0, 2), textcoords="offset points", ha=side, va="bottom",
                      fontsize=9)  # fmt: skip
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper right", frameon=False)
    axes.set_title(_facts(report), fontsize=10, loc="left")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")


def _facts(report: Report) -> str:
    copies = sum(c.images for c in report.copies)
    train = report.parts[0]
    width, height = train.width_px.median, train.height_px.median
    return (
        f"{Path(report.data).name}: {train.images:,} training images, imbalance ratio {report.imbalance_ratio:.0f}, "
        f"Gini {report.gini:.2f}\n"
        f"median size {width:g} x {height:g} px; in all parts: {copies:,} exact duplicates, "
        f"{len(report.conflicts)} sets with different labels, {len(report.unreadable)} unreadable files"
    )
