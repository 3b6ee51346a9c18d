"""From the runs of a table to its grids: what stands in each line and column, ours and published."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from training.runs.files import Json
from training.tables import published
from training.tables.cells import BALANCED, LONG_TAILED, METRICS, Cell, Column, Line, Metric, Runs, Section
from training.tables.cells import published as printed
from training.tables.published import Figure


@dataclass(frozen=True)
class Need:
    """A run: a row of METHODS on the data cut to `imbalance` (100 = long-tailed, 1 = balanced)."""

    method: str
    imbalance: float


@dataclass(frozen=True)
class Entry:
    """One line of a table. `kind` groups lines; an optional one is shown when its runs are there."""

    label: str
    method: str
    kind: str = ""
    optional: bool = False


@dataclass(frozen=True)
class Table:
    title: str
    shows: str
    entries: tuple[Entry, ...]
    build: Callable[["Table", Runs], list[Section]]
    pictured: tuple[tuple[str, float], ...]  # (method, imbalance), in the order of the colours
    imbalances: tuple[float, ...] = (LONG_TAILED,)
    notes: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ("roc", "risk-coverage", "scores", "classes", "map")
    views: int | None = None  # of each image, where the table's runs have not the methods' own

    @property
    def on_ood(self) -> bool:
        """Whether it says anything about OOD images."""
        return "roc" in self.pictures

    @property
    def needs(self) -> tuple[Need, ...]:
        return tuple(Need(e.method, r) for e in self.entries if not e.optional for r in self.imbalances)

    def missing(self, runs: Runs) -> tuple[Need, ...]:
        return tuple(n for n in self.needs if not runs.of(n.method, n.imbalance))

    def shown(self, runs: Runs) -> Iterator[Entry]:
        for e in self.entries:
            if not e.optional or any(runs.of(e.method, r) for r in self.imbalances):
                yield e


SEEDS = Column("seeds", "seeds", origin="text")


def _measured(keys: tuple[str, ...]) -> tuple[Column, ...]:
    return tuple(METRICS[k].column(k) for k in keys)


SUSPECT = ("aupr", "fpr95")  # what a figure of unclear convention gets columns of its own for


def _published(keys: tuple[str, ...], figures: list[Figure]) -> tuple[Column, ...]:
    """A column for what at least one source printed; one convention a column."""
    printed_keys = {key for figure in figures for key in _figures(figure)}
    wanted = [(f"published_{k}", f"published {METRICS[k].label}") for k in keys]
    wanted += [(f"published_{k}_unclear", f"published {k.upper()} (convention unclear*)") for k in keys if k in SUSPECT]
    return tuple(Column(key, label, origin="published") for key, label in wanted if key in printed_keys)


def _figures(figure: Figure | None) -> dict[str, Cell]:
    """Published cells under the keys of _published."""
    if figure is None:
        return {}
    suspect = SUSPECT if figure.unclear else ()
    return {f"published_{k}{'_unclear' if k in suspect else ''}": printed(v) for k, v in figure.values.items()}


def _method_section(
    title: str, entries: list[Entry], runs: Runs, keys: tuple[str, ...], figures: Mapping[str, Figure],
    compared: tuple[str, ...], extra: tuple[Column, ...] = (),
) -> Section:  # fmt: skip
    """Methods × metrics, the published values of `compared` to the right."""
    lines = []
    for e in entries:
        seeds = runs.of(e.method)
        figure = figures.get(e.method)
        cells: dict[str, Cell | str] = {k: runs.cell(e.method, METRICS[k].read) for k in keys}
        cells |= {
            "seeds": str(len(seeds)) if seeds else "—",
            "passes": str(seeds[0].get("passes", "")) if seeds else "",
        }
        cells |= _figures(figure)
        lines.append(Line(e.label, e.method, cells, *((figure.unclear, figure.source) if figure else ())))
    here = [figures[e.method] for e in entries if e.method in figures]
    return Section(title, (SEEDS, *extra, *_measured(keys), *_published(compared, here)), tuple(lines))


DETECTION = ("auroc", "aupr", "fpr95", "fpr95_id_positive", "acc")
GROUPED = ("acc", "many", "medium", "few")


def comparison(table: Table, runs: Runs) -> list[Section]:
    figures, entries = published.COMPARISON.get(runs.dataset, {}), list(table.shown(runs))
    known = published.OTHERS.get(runs.dataset, {})
    elsewhere = tuple(Line(label, "", dict(_figures(f)), f.unclear, f.source) for label, f in known.items())
    passes = (Column("passes", "passes", origin="text"),) if any("passes" in r for r in runs.all()) else ()
    four = ("auroc", "aupr", "fpr95", "acc")
    accuracy = ("acc", "acc95", "many", "medium", "few", "aupr_id_positive")
    sections = [
        _method_section("Out-of-distribution detection", entries, runs, DETECTION, figures, four, passes),
        _method_section("Accuracy, and AUPR the other way round", entries, runs, accuracy, figures, ("acc", "acc95")),
    ]
    if elsewhere:
        columns = _published(four, list(known.values()))
        sections.append(Section("Published, not trained here", columns, elsewhere, best=""))
    return sections


def ablation(table: Table, runs: Runs) -> list[Section]:
    figures, entries = published.ABLATION.get(runs.dataset, {}), list(table.shown(runs))
    first = ("auroc", "aupr", "fpr95", "acc95")
    second = tuple(k for k in METRICS if k.startswith("acc_fpr_"))
    return [
        _method_section("Out-of-distribution detection", entries, runs, first, figures, first),
        _method_section("Accuracy on what is kept when a share of the ID images is rejected", entries, runs, second,
                        figures, second),
    ]  # fmt: skip


def long_tail(table: Table, runs: Runs) -> list[Section]:
    figures, entries = published.LONG_TAIL.get(runs.dataset, {}), list(table.shown(runs))
    kinds = dict.fromkeys(e.kind for e in entries)
    return [
        _method_section(kind, [e for e in entries if e.kind == kind], runs, GROUPED, figures, ("acc",))
        for kind in kinds
    ]


OE, PASCL, TAILGUARD = "oe", "pascl-abf", "tailguard"


def per_set(table: Table, runs: Runs) -> list[Section]:
    """One grid per metric: OOD sets × (OE, PASCL, difference, TailGuard, PASCL as published)."""
    figures = published.PER_SET.get(runs.dataset, {})
    names = runs.sets or dict.fromkeys(figures, 0)
    sections = []
    for key in ("auroc", "aupr", "fpr95", "fpr95_id_positive", "acc95"):
        lines = [_set_line(runs, key, name, n) for name, n in names.items()] + [_set_line(runs, key, "", 0)]
        columns = [
            Column("images", "images", origin="text"),
            SEEDS, Column("oe", "OE", METRICS[key].best),
            Column("pascl", "PASCL + ABF", METRICS[key].best), Column("difference", "PASCL + ABF − OE"),
            Column("tailguard", "TailGuard", METRICS[key].best),
        ]  # fmt: skip
        if any(f"published_{key}" in line.cells for line in lines):
            columns += [
                Column("counterpart", "in the paper", origin="text"),
                Column(f"published_{key}", "published PASCL + ABF", origin="published"),
            ]
        sections.append(Section(METRICS[key].label, tuple(columns), tuple(lines), "row", "OOD set"))
    return sections


def _set_line(runs: Runs, key: str, name: str, images: int) -> Line:
    """One OOD set, or with no name their unweighted mean."""
    metric: Metric = METRICS[key]

    def read(run: Json) -> float | None:
        if not name:
            return metric.read(run)
        return metric.read({"mean": run["ood"][name]}) if name in (run.get("ood") or {}) else None

    oe, pascl = runs.cell(OE, read), runs.cell(PASCL, read)
    counterpart = published.PER_SET.get(runs.dataset, {}).get(name)
    figure = counterpart.figure if counterpart else None if name else published.PER_SET_MEAN.get(runs.dataset)
    cells: dict[str, Cell | str] = {"oe": oe, "pascl": pascl, "difference": pascl.minus(oe)}
    cells["tailguard"] = runs.cell(TAILGUARD, read)
    cells["images"] = f"{images:,}" if images else ""
    cells["seeds"] = " / ".join(str(len(runs.of(m)) or "—") for m in (OE, PASCL, TAILGUARD))
    cells |= {"counterpart": f"{counterpart.name} ({counterpart.relation})" if counterpart else ""}
    if figure and key in figure.values:
        cells[f"published_{key}"] = printed(figure.values[key])
    return Line(name or "mean, unweighted", "", cells, source=figure.source if figure else "")


def balance(table: Table, runs: Runs) -> list[Section]:
    """One grid per metric: methods × (balanced, long-tailed, change), ours and published."""
    figures, entries = published.BALANCE.get(runs.dataset, {}), list(table.shown(runs))
    sections = []
    for key in ("auroc", "aupr", "fpr95", "fpr95_id_positive", "acc"):
        metric, lines = METRICS[key], []
        for e in entries:
            balanced, tailed = (runs.cell(e.method, metric.read, r) for r in (BALANCED, LONG_TAILED))
            cells: dict[str, Cell | str] = {"balanced": balanced, "lt": tailed, "change": tailed.minus(balanced)}
            source = figures[e.method][0].source if e.method in figures else ""
            cells["seeds"] = " / ".join(str(len(runs.of(e.method, r)) or "—") for r in (BALANCED, LONG_TAILED))
            if e.method in figures and key in figures[e.method][0].values:
                one, two = (printed(f.values[key]) for f in figures[e.method])
                cells |= {"published_balanced": one, "published_lt": two, "published_change": two.minus(one)}
            lines.append(Line(e.label, e.method, cells, source=source))
        ours = [Column("balanced", "balanced", metric.best), Column("lt", "long-tailed", metric.best)]
        theirs = [
            Column(f"published_{k}", f"published {label}", origin="published")
            for k, label in (("balanced", "balanced"), ("lt", "long-tailed"), ("change", "change"))
            if any(f"published_{k}" in line.cells for line in lines)
        ]
        columns = (SEEDS, *ours, Column("change", "change"), *theirs)
        sections.append(Section(metric.label, columns, tuple(lines)))
    return sections
