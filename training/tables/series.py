"""What the pictures of a table are drawn from: a run's outputs.npz beside its results; and how they all look."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from training.export import plots as card_plots
from training.runs.files import Json
from training.tables.cells import BALANCED, LONG_TAILED, Runs
from training.tables.grids import Table

Floats = NDArray[np.float64]
# Okabe and Ito, "Color Universal Design" (2008). The line styles and markers carry it without colour.
LOOKS = (("#000000", ":"), ("#D55E00", "--"), ("#0072B2", "-"), ("#009E73", "-."), ("#CC79A7", (0, (5, 1, 1, 1, 1, 1))))
MARKERS = "os^Dv"
png = partial(card_plots.png, dpi=110)
OOD_COLOUR, GREY = "#000000", "#999999"


@dataclass(frozen=True)
class Picture:
    name: str
    png: bytes
    alt: str
    caption: str


@dataclass(frozen=True)
class Series:
    """One run's outputs on the test images [N] and on each OOD set [M]; scores larger = more outlying."""

    label: str
    look: int  # place among the pictured rows, which keeps its colour when another row is missing
    method: str
    seed: int
    results: Json
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    scores: Floats
    ood: Mapping[str, Floats]
    map_features: Floats | None = None
    map_labels: NDArray[np.int64] | None = None

    @property
    def line(self) -> dict[str, Any]:
        """How its curves are drawn."""
        colour, style = LOOKS[self.look % len(LOOKS)]
        return {"color": colour, "linestyle": style, "linewidth": 2}

    @property
    def groups(self) -> NDArray[np.str_]:
        """many, medium or few of each test image."""
        return np.array(self.results["groups"])[self.labels]

    @property
    def train_counts(self) -> NDArray[np.int64]:
        return np.asarray(self.results["train_counts"], np.int64)


def load(table: Table, runs: Runs, outputs: Mapping[tuple[str, int, float], Path]) -> list[Series]:
    """One per pictured row whose outputs are there: its lowest seed."""
    series, labels = [], {e.method: e.label for e in table.entries}
    several = len({ratio for _, ratio in table.pictured}) > 1
    for look, (method, ratio) in enumerate(table.pictured):
        run = next((r for r in runs.of(method, ratio) if (method, int(r["seed"]), ratio) in outputs), None)
        if run is None:
            continue
        where = {BALANCED: ", balanced", LONG_TAILED: ", long-tailed"}.get(ratio, "") if several else ""
        label = labels.get(method, method) + where
        series.append(read(label, look, run, outputs[method, int(run["seed"]), ratio]))
    return series


def read(label: str, look: int, run: Json, path: Path) -> Series:
    """ValueError when the file does not fit the results."""
    with np.load(path) as file:
        content = {key: file[key] for key in file.files}
    if missing := {"labels", "predictions", "scores"} - content.keys():
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}: write it again")
    if len(content["labels"]) != len(content["scores"]):
        raise ValueError(f"{path} has {len(content['labels'])} labels but {len(content['scores'])} scores")
    ood = {k.removeprefix("ood/"): v.astype(np.float64) for k, v in content.items() if k.startswith("ood/")}
    return Series(
        label, look, run["method"], int(run["seed"]), run, content["labels"], content["predictions"],
        content["scores"].astype(np.float64), ood, content.get("map_features"), content.get("map_labels"),
    )  # fmt: skip


def tidy(axes: Any, *, percent: str = "xy") -> None:
    for name in percent:
        axis = getattr(axes, f"{name}axis")
        axis.set_major_locator(MaxNLocator(nbins=6, integer=True))  # or 2.5 would be printed as 2%
        axis.set_major_formatter(PercentFormatter(decimals=0))
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def seeds_of(series: Sequence[Series]) -> str:
    seeds = sorted({s.seed for s in series})
    return f"One run each (seed {seeds[0]})." if len(seeds) == 1 else "One run each, its lowest seed."


def auroc(ins: Floats, outs: Floats) -> float:
    """In percent."""
    from sklearn.metrics import roc_auc_score  # takes as long to import as torch

    truth = np.concatenate([np.zeros(len(ins)), np.ones(len(outs))])
    return 100 * float(roc_auc_score(truth, np.concatenate([ins, outs])))
