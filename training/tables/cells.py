"""The numbers of a table: finished runs → cells in percent, each the mean and sample deviation over its seeds."""

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from training.config import CIFAR_RESNET
from training.methods.methods import OVERRIDES
from training.runs.files import Json

LONG_TAILED, BALANCED = 100.0, 1.0
SCRATCH = "scratch"
BACKBONES = ("Lite0", "MobileNetV2")  # those whose names are found in that of a model or of a file
LEAST_TAIL = 1.5  # largest class to smallest
# What the seeds of one row must share; a mean over runs that differ in it would mean nothing.
SETTINGS = (
    "width", "epochs", "batch_images", "views", "stage2_epochs", "stage2_batch_images", "learning_rate",
    "calibration_fraction",
)  # fmt: skip
# So too these, which notes do not print, as far as runs say them: earlier versions did not know all of them.
UNPRINTED = (
    "augment", "outliers", "weight_decay", "outlier_weight", "contrast_weight", "contrast_temperature", "tail_fraction",
    "feature_views", "backbone_fit", "group_by", *OVERRIDES,
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One number in percent (or points), one value per seed; no values = not measured or not published."""

    values: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation; None for fewer than two seeds."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def minus(self, other: "Cell") -> "Cell":
        """The difference, seed by seed; where no seed is in both, of the means, without a deviation."""
        ours, theirs = (
            dict(zip(self.seeds, self.values, strict=True)),
            dict(zip(other.seeds, other.values, strict=True)),
        )
        if shared := sorted(ours.keys() & theirs.keys()):
            return Cell(tuple(ours[s] - theirs[s] for s in shared), tuple(shared))
        if self.mean is None or other.mean is None:
            return Cell()
        return Cell((self.mean - other.mean,), (-1,))


def published(value: float | None) -> Cell:
    return Cell() if value is None else Cell((value,), (-1,))


@dataclass(frozen=True)
class Column:
    """`best` says which end of a measured column is good; published columns and plain text have none."""

    key: str
    label: str
    best: Literal["max", "min", ""] = ""
    origin: Literal["ours", "published", "text"] = "ours"


@dataclass(frozen=True)
class Line:
    label: str
    method: str
    cells: Mapping[str, Cell | str]
    note: str = ""  # marked with * at the label, and explained below the table
    source: str = ""  # of the published figures


@dataclass(frozen=True)
class Section:
    """One grid. `best` "column": the best line of each column is bold; "row": the best column of each line."""

    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    best: Literal["column", "row", ""] = "column"
    first: str = "method"  # the header of the labels

    def cell(self, line: Line, column: Column) -> Cell | str:
        return line.cells.get(column.key, "" if column.origin == "text" else Cell())

    def is_best(self, line: Line, column: Column) -> bool:
        """Whether this is the best measured mean; never for a published one, nor for one without a rival."""
        own = _mean(line.cells.get(column.key))
        if own is None or not column.best or not self.best:
            return False
        if self.best == "column":
            rivals = [_mean(other.cells.get(column.key)) for other in self.lines]
        else:
            rivals = [_mean(line.cells.get(c.key)) for c in self.columns if c.best]
        measured = [value for value in rivals if value is not None]
        return len(measured) > 1 and own == (max if column.best == "max" else min)(measured)


def _mean(cell: Cell | str | None) -> float | None:
    return cell.mean if isinstance(cell, Cell) else None


# ---- What a run measured ---------------------------------------------------------------------------------------------

Read = Callable[[Json], float | None]


@dataclass(frozen=True)
class Metric:
    label: str
    best: Literal["max", "min"]
    read: Read  # from a run's results, or from those of one OOD set, as a share

    def column(self, key: str) -> Column:
        return Column(key, self.label, self.best)


def _on_sets(*path: str) -> Read:
    """A number of the unweighted mean over the OOD sets; several last names are one, of older and newer results."""

    def read(run: Json) -> float | None:
        value: Any = (run.get("mean") or {}).get(path[0])
        if len(path) > 1:
            value = next((value[k] for k in path[1:] if k in value), None) if value else None
        return None if value is None else float(value)

    return read


def _group(name: str) -> Read:
    return lambda run: (run.get("group_accuracy") or {}).get(name)


METRICS: dict[str, Metric] = {
    "auroc": Metric("AUROC", "max", _on_sets("auroc")),
    "aupr": Metric("AUPR (OOD positive)", "max", _on_sets("aupr")),
    "aupr_id_positive": Metric("AUPR (ID positive)", "max", _on_sets("aupr_id_positive")),
    "fpr95": Metric("FPR95 (OOD positive)", "min", _on_sets("fpr95")),
    "fpr95_id_positive": Metric("FPR95 (ID positive)", "min", _on_sets("fpr95_id_positive")),
    "acc": Metric("ACC", "max", lambda run: run.get("accuracy")),
    "acc95": Metric("ACC95", "max", _on_sets("acc_at_tpr", "0.95")),
    "many": Metric("ACC many", "max", _group("many")),
    "medium": Metric("ACC medium", "max", _group("medium")),
    "few": Metric("ACC few", "max", _group("few")),
    # the papers' "0" is 0.0001, the smallest share they read
    "acc_fpr_0": Metric("ACC@FPR 0", "max", _on_sets("acc_at_fpr", "0", "0.0001")),
    "acc_fpr_0.001": Metric("ACC@FPR .001", "max", _on_sets("acc_at_fpr", "0.001")),
    "acc_fpr_0.01": Metric("ACC@FPR .01", "max", _on_sets("acc_at_fpr", "0.01")),
    "acc_fpr_0.1": Metric("ACC@FPR .1", "max", _on_sets("acc_at_fpr", "0.1")),
}


def imbalance(run: Json) -> float:
    """BALANCED, or LONG_TAILED for any tail: which one it is, `data_of` says."""
    given = run["config"].get("imbalance")
    if given is None and (counts := run.get("train_counts")):
        given = max(counts) / max(1, min(counts))
    return BALANCED if (given or BALANCED) < LEAST_TAIL else LONG_TAILED


def backbone_of(run: Json) -> str:
    """In words what a run's features come from: scratch, or `frozen Lite0, 160 px, int8`."""
    config = run["config"]
    name = str(config.get("backbone") or CIFAR_RESNET)
    if name == CIFAR_RESNET:
        return SCRATCH
    name = Path(name.removeprefix("onnx:")).stem if name.startswith("onnx:") else name
    plain = name.lower().replace("_", "").replace("-", "")
    name = next((known for known in BACKBONES if known.lower() in plain), name)
    parts = [f"{config.get('tune') or 'frozen'} {name}"]
    parts += [f"{config['image_size_px']} px"] if config.get("image_size_px") else []
    parts += ["int8"] if config.get("backbone_precision") == "int8" else []
    parts += ["with stages"] if config.get("backbone_stages") else []
    return ", ".join(parts)


def data_of(run: Json) -> str:
    """The data set, with its imbalance where that is not the one that the papers publish for."""
    name, ratio = str(run.get("data_set") or run["config"]["dataset"]), run["config"].get("imbalance")
    return name if ratio in (None, BALANCED, LONG_TAILED) else f"{name} at imbalance {ratio:g}"


@dataclass(frozen=True)
class Runs:
    """Finished runs by row, their seeds in order."""

    by_row: Mapping[tuple[str, float], list[Json]] = field(default_factory=dict)
    dataset: str = "cifar10"

    def of(self, method: str, ratio: float = LONG_TAILED) -> list[Json]:
        return self.by_row.get((method, ratio), [])

    def all(self) -> list[Json]:
        return [run for runs in self.by_row.values() for run in runs]

    def cell(self, method: str, read: Read, ratio: float = LONG_TAILED) -> Cell:
        by_seed = [(run["seed"], read(run)) for run in self.of(method, ratio)]
        measured = [(seed, 100 * value) for seed, value in by_seed if value is not None]
        return Cell(tuple(v for _, v in measured), tuple(s for s, _ in measured))

    @property
    def sets(self) -> dict[str, int]:
        """OOD set → images, the same in every run."""
        return next(({k: int(v["images"]) for k, v in run["ood"].items()} for run in self.all() if run.get("ood")), {})


def collect(results: Iterable[Json]) -> Runs:
    """Runs by row. ValueError for runs that one table cannot hold: twice the same, other data, seeds that differ."""
    by_row: dict[tuple[str, float], list[Json]] = {}
    for run in results:
        by_row.setdefault((run["method"], imbalance(run)), []).append(run)
    for (method, ratio), runs in by_row.items():
        runs.sort(key=lambda run: int(run["seed"]))
        seeds = [run["seed"] for run in runs]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{method} at imbalance {ratio:g} has the seeds {seeds}: give each run once")
        settings = {key: {str(run["config"].get(key)) for run in runs} for key in SETTINGS}
        for key in UNPRINTED:  # of a path the name
            settings[key] = {str(run["config"][key]).rsplit("/", 1)[-1] for run in runs if key in run["config"]}
        settings["train_counts"] = {str(counts) for run in runs if (counts := run.get("train_counts"))}
        for key, values in settings.items():
            if len(values) > 1:
                raise ValueError(
                    f"{method} at imbalance {ratio:g} has runs with {key} {' and '.join(sorted(values))}: a mean over "
                    "them would mean nothing, give runs of one setting"
                )
    everything = Runs(by_row)
    datasets = sorted({data_of(run) for run in everything.all()})
    if len(datasets) > 1:
        raise ValueError(f"the runs are of {', '.join(datasets)}: a table shows one data set")
    backbones = sorted({backbone_of(run) for run in everything.all()})
    if len(backbones) > 1:
        raise ValueError(
            f"the runs stand on {' and '.join(backbones)}: only the table pretrained shows several backbones"
        )
    for run in everything.all():
        if run.get("ood") and {k: v["images"] for k, v in run["ood"].items()} != everything.sets:
            raise ValueError(f"{run['method']} seed {run['seed']} was evaluated on other OOD sets: evaluate it again")
    return Runs(by_row, datasets[0]) if datasets else everything
