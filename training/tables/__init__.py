"""The tables: which runs each needs, and how results become markdown, CSV and an HTML report with pictures.

`TABLES[name].needs` says what to train; `write(name, results, outputs, out)` takes the results JSON of the finished
runs and prints what is there beside the published figures. A missing run is shown as — and listed. The table
`pretrained` joins runs of several data sets and backbones, every other one shows one of each.
"""

from collections.abc import Mapping
from pathlib import Path

from training.data.whole import replacing
from training.runs.files import Json
from training.tables import plots, pretrained, report, text
from training.tables.cells import BALANCED, LONG_TAILED, Runs, Section, collect, imbalance
from training.tables.grids import Entry, Need, Table, ablation, balance, comparison, long_tail, per_set
from training.tables.pretrained import PRETRAINED
from training.tables.published import LONG_TAIL_NOTE

__all__ = ["PRETRAINED", "TABLES", "Entry", "Need", "Table", "markdown", "rows", "write"]

MSP, OE = Entry("MSP", "msp"), Entry("OE", "oe")
ABF, TAILGUARD = Entry("PASCL + ABF", "pascl-abf"), Entry("TailGuard", "tailguard")
JOINT = Entry("TailGuard, joint", "tailguard-joint")
LITERATURE = (
    MSP, OE, Entry("EnergyOE", "energy-oe"), Entry("OECC", "oecc"), Entry("SOFL", "sofl"), Entry("NTOM", "ntom"),
)  # fmt: skip

# Beside EnergyOE, OECC and SOFL as printed: the forms that keep their accuracy in a short run from scratch
SHORT_RUN = (
    Entry("EnergyOE, logistic with a learned scale", "energy-oe-logistic"), Entry("OECC, weight .1", "oecc-tenth"),
    Entry("SOFL, weight .5", "sofl-half"), Entry("OECC, weight .03 by calibration", "oecc-calibrated"),
    Entry("SOFL, weight .15 by calibration", "sofl-calibrated"),
)  # fmt: skip

PAIRED = "Differences are taken seed by seed, over the seeds that both sides have."


def _optional(*entries: Entry) -> tuple[Entry, ...]:
    return tuple(Entry(e.label, e.method, e.kind, optional=True) for e in entries)


def _kind(kind: str, **labels: str) -> tuple[Entry, ...]:
    return tuple(Entry(label, method.replace("_", "-"), kind) for method, label in labels.items())


def _long_tailed(*methods: str) -> tuple[tuple[str, float], ...]:
    return tuple((m, LONG_TAILED) for m in methods)


TABLES: dict[str, Table] = {
    "comparison": Table(
        title="Methods against each other",
        shows="every method on the same data, outliers, network and epochs: OOD detection, accuracy, passes",
        entries=(
            *LITERATURE, *SHORT_RUN, Entry("PASCL, stage 1", "pascl"), ABF,
            Entry("PASCL + ABF of the head", "pascl-abf-head"), Entry("OE + ABF", "oe-abf"), Entry("ImOOD", "imood"),
            Entry("COCL", "cocl"), Entry("Mahalanobis, no outliers", "mahalanobis"), TAILGUARD, JOINT,
        ),
        build=comparison,
        pictured=_long_tailed("msp", "oe", "pascl-abf", "tailguard"),
        notes=("The published ImOOD is PASCL + ImOOD, the published PASCL includes ABF.",),
    ),
    "ablation": Table(
        title="Ablation of PASCL: asymmetry, partiality, ABF",
        shows="what each part of PASCL adds to OE. A: outliers only in the denominator; P: tail classes only",
        entries=(
            OE, Entry("neither A nor P", "supcon"), Entry("P", "pascl-partial"), Entry("A", "pascl-asymmetric"),
            Entry("A P", "pascl"), Entry("A P ABF", "pascl-abf"), Entry("A P ABF of the head", "pascl-abf-head"),
        ),
        build=ablation,
        pictured=_long_tailed("oe", "supcon", "pascl", "pascl-abf"),
        notes=(
            "Ours are means over our OOD sets; the paper's ablation has the OOD set SVHN alone, so its level cannot be "
            "compared with ours, only which row is ahead.",
        ),
    ),
    "per-set": Table(
        title="OE against PASCL, and TailGuard, on each OOD set",
        shows="where the contrastive term helps and where not; ABF does not touch the deciding score",
        entries=(OE, ABF, TAILGUARD),
        build=per_set,
        pictured=_long_tailed("oe", "pascl-abf", "tailguard"),
        notes=(
            "The other CIFAR's images were made as our test images were; the other sets, and our training outliers, "
            "were resized from larger pictures. Traces of resizing were worth 0.1 to 3.8 points of AUROC where "
            "both sides were resized alike (training/LOG.md): read the other CIFAR's line first.",
            f"seeds: OE / PASCL + ABF / TailGuard. {PAIRED}",
            "AUPR rises with the number of OOD images: sets of another size than the paper's have another level.",
        ),
    ),
    "balance": Table(
        title="Balanced against long-tailed training data",
        shows="what each method loses when the training set is cut to a long tail (change = long-tailed − balanced)",
        entries=(*LITERATURE, *_optional(ABF, TAILGUARD)),
        build=balance,
        pictured=(("msp", BALANCED), ("msp", LONG_TAILED), ("oe", BALANCED), ("oe", LONG_TAILED)),
        imbalances=(BALANCED, LONG_TAILED),
        pictures=("roc", "risk-coverage", "scores", "classes"),
        notes=(
            "Balanced CIFAR-10 has four times the images. In the full budget both take the same epochs, as in the "
            "paper: the change is that of imbalance and of fewer images and steps. In the small one both take as many "
            "steps.",
            f"seeds: balanced / long-tailed. {PAIRED}",
        ),
    ),
    "long-tail": Table(
        title="Methods for long-tailed classification",
        shows="samplers, losses and decoupled training: accuracy on the balanced test set, by group of classes",
        entries=(
            *_kind("Baseline", msp="cross entropy, natural sampling"),
            *_kind(
                "Sampling", under_sampling="under-sampling", over_sampling="over-sampling",
                balanced_sampling="class-balanced sampling", square_root_sampling="square-root sampling",
                progressive_sampling="progressive sampling",
            ),
            *_kind(
                "Losses", weighted_softmax="weighted softmax, 1/n", class_balanced="class-balanced weights",
                focal="focal", ldam="LDAM", ldam_drw="LDAM + deferred re-weighting",
                balanced_softmax="balanced softmax", logit_adjustment="logit adjustment",
            ),
            *_kind(
                "Decoupled and post hoc", crt="cRT", crt_smote="cRT with SMOTE", lws="LWS", tau_norm="τ-norm",
                la_posthoc="logit adjustment, post hoc", abf="ABF", abf_head="ABF of the head",
            ),
        ),
        build=long_tail,
        pictured=_long_tailed("msp", "over-sampling", "logit-adjustment", "ldam-drw", "abf"),
        notes=(LONG_TAIL_NOTE, "One view of each image, as in that literature; the OOD tables have PASCL's two."),
        views=1,
        pictures=("risk-coverage", "classes"),
    ),
}  # fmt: skip


def rows(name: str, results: list[Json]) -> list[Section]:
    """The grids of the table. ValueError for an unknown table, or for runs that one table cannot hold."""
    table = find(name)
    return table.build(table, relevant(table, results))


def relevant(table: Table, results: list[Json]) -> Runs:
    """The runs that have a line in the table."""
    if table is PRETRAINED:
        return pretrained.join(table, results)
    lines = {(e.method, ratio) for e in table.entries for ratio in table.imbalances}
    return collect(
        run for run in results
        if (run["method"], imbalance(run)) in lines and run["config"].get("views") == table.views
    )  # fmt: skip


def markdown(name: str, results: list[Json]) -> str:
    """The table without its pictures."""
    table = find(name)
    runs = relevant(table, results)
    sections = table.build(table, runs)
    return text.markdown(table, sections, _notes(table, runs, sections), [], name)


def _notes(table: Table, runs: Runs, sections: list[Section]) -> list[str]:
    if isinstance(runs, pretrained.Joined):
        return [*pretrained.notes(table, runs), text.CONVENTIONS, text.SPREAD]
    return text.notes(table, runs, sections)


def find(name: str) -> Table:
    """The table called `name`; ValueError naming those there are."""
    every = {**TABLES, "pretrained": PRETRAINED}
    if name not in every:
        raise ValueError(f"there is no table {name!r}; the tables are {', '.join(every)}")
    return every[name]


def write(name: str, results: list[Json], outputs: Mapping[tuple[str, int, float], Path], out: Path) -> str:
    """Write <out>/<name>.md, .csv and .html, and <out>/<name>-*.png for the runs whose outputs.npz is given.

    `outputs` maps (method, seed, imbalance) to that file. Returns the markdown; errors as `rows`.
    """
    table = find(name)
    runs = relevant(table, results)
    sections = table.build(table, runs)
    notes = _notes(table, runs, sections)
    pictures = plots.pictures(table, runs, outputs)
    out.mkdir(parents=True, exist_ok=True)
    markdown = text.markdown(table, sections, notes, pictures, name)
    files = {f"{name}-{picture.name}.png": picture.png for picture in pictures} | {
        f"{name}.md": markdown.encode(),
        f"{name}.csv": text.csv_text(name, sections).encode(),
        f"{name}.html": report.html(table, sections, notes, pictures, runs).encode(),
    }
    for file, content in files.items():
        with replacing(out / file) as temporary:
            temporary.write_bytes(content)
    return markdown
