"""The table of pretrained backbones: several data sets and backbones in one, each measured by its own runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from training.runs.files import Json
from training.tables.cells import (
    BACKBONES,
    BALANCED,
    LONG_TAILED,
    METRICS,
    SCRATCH,
    Cell,
    Column,
    Line,
    Runs,
    Section,
    backbone_of,
    collect,
    data_of,
)
from training.tables.grids import SEEDS, Entry, Table

TITLES = {"cifar10": "CIFAR10-LT", "cifar100": "CIFAR100-LT", "plankton": "Plankton", "groceries": "Groceries"}
# Of other data: the set with near in its name.
NEAR = {"cifar10": "cifar100", "cifar100": "cifar10", "plankton": "heldout_taxa"}
KINDS = (SCRATCH, *(f"frozen {name}" for name in BACKBONES))
OURS = "tailguard"
MEASURED = ("acc", "many", "medium", "few", "auroc", "fpr95")
LABELS = {"auroc": "AUROC, mean of sets", "fpr95": "FPR95, mean of sets"}
IMAGENET = (
    "What ImageNet-1k holds is not unknown to a backbone trained on it, with labels: nearly all of CIFAR-10's classes "
    "(airliners, cars, birds, cats, 118 breeds of dog, frogs, horses, ships, trucks), many of CIFAR-100's, fruit and "
    "vegetables of the groceries (oranges, lemons, bananas, apples), and things in the OOD sets and training outliers, "
    "those of Tiny ImageNet above all, which are ImageNet's own. A frozen row so compares with the frozen rows of its "
    "backbone, and says less about what nobody has seen than a row from scratch. Of plankton it has little."
)
Group = tuple[str, str]  # data set, backbone


@dataclass(frozen=True)
class Joined(Runs):
    """Runs of several data sets and backbones; `by_row` has them all for their provenance."""

    groups: Mapping[Group, Runs] = field(default_factory=dict)


def join(table: Table, results: Sequence[Json]) -> Joined:
    """The runs of the table's methods on long-tailed data. ValueError as `collect`, naming data set and backbone."""
    methods = {e.method for e in table.entries}
    found: dict[Group, list[Json]] = {}
    for run in results:
        config = run["config"]
        if run["method"] in methods and config.get("views") is None and config.get("imbalance") != BALANCED:
            found.setdefault((data_of(run), backbone_of(run)), []).append(run)
    groups = {}
    for group in _in_order(found):
        try:
            groups[group] = collect(found[group])
        except ValueError as error:
            raise ValueError(f"{' on '.join(reversed(group))}: {error}") from error
    by_row = {
        (f"{' '.join(group)} {method}", ratio): runs
        for group, kept in groups.items() for (method, ratio), runs in kept.by_row.items()
    }  # fmt: skip
    return Joined(by_row, ", ".join(map(_title, data_sets(groups))), groups)


def data_sets(groups: Mapping[Group, Runs]) -> list[str]:
    """Those that the table is about, then others that were measured."""
    return list(dict.fromkeys([*TITLES, *(data for data, _ in groups)]))


def backbones(groups: Mapping[Group, Runs], data: str) -> list[str]:
    """Those with runs on the data set, and a kind alone where none of it has any."""
    there = [backbone for name, backbone in groups if name == data]
    wanted = [kind for kind in KINDS if not any(_kind(backbone) == kind for backbone in there)]
    return sorted([*there, *wanted], key=_place)


def build(table: Table, runs: Runs) -> list[Section]:
    """A grid per data set, a line per backbone and method."""
    assert isinstance(runs, Joined)
    sections = []
    for data in data_sets(runs.groups):
        lines: list[Line] = []
        for backbone in backbones(runs.groups, data):
            group = runs.groups.get((data, backbone))
            lines += _lines(table, data, backbone, group) if group else [Line(f"{backbone} · every method", "", {})]
        columns = [
            Column("score", "deciding score", origin="text"), SEEDS,
            *(Column(key, LABELS.get(key, METRICS[key].label), METRICS[key].best) for key in MEASURED),
            Column("near", "AUROC, near set", "max"),
        ]  # fmt: skip
        sections.append(Section(_title(data), tuple(columns), tuple(lines), first="backbone · method"))
    return sections


def _lines(table: Table, data: str, backbone: str, group: Runs) -> Iterator[Line]:
    near = near_set(data, group)
    for e in table.entries:
        label = f"{backbone} · {e.label}"
        yield _line(label, e.method, group, near)
        if not e.method.startswith(OURS):
            continue
        chosen = [run | run["chosen"] for runs in group.by_row.values() for run in runs
                  if run["method"] == e.method and run.get("chosen")]  # fmt: skip
        if chosen:
            if any({k: v["images"] for k, v in run["ood"].items()} != group.sets for run in chosen):
                raise ValueError(
                    f"{label} was calibrated with other OOD sets than it was evaluated on: calibrate again"
                )
            yield _line(f"{label}, score chosen on calibration", e.method, collect(chosen), near)


def _line(label: str, method: str, group: Runs, near: str | None) -> Line:
    ratio = next((ratio for name, ratio in group.by_row if name == method), LONG_TAILED)  # natural data may have none
    runs = group.of(method, ratio)
    cells: dict[str, Cell | str] = {k: group.cell(method, METRICS[k].read, ratio) for k in MEASURED}
    cells["near"] = group.cell(method, lambda run: (run.get("ood") or {}).get(near, {}).get("auroc"), ratio)
    cells["score"] = ", ".join(dict.fromkeys(str(run["score"]) for run in runs))
    cells["seeds"] = str(len(runs)) if runs else "—"
    return Line(label, method, cells)


def near_set(data: str, group: Runs) -> str | None:
    """The OOD set whose images are most like those of the data set, None where none is named so."""
    wanted = NEAR.get(data.split(" at ")[0])
    return next((name for name in group.sets if name == wanted or (wanted is None and "near" in name)), None)


def _title(data: str) -> str:
    return TITLES.get(data, data)


def _kind(backbone: str) -> str:
    return backbone.split(",")[0]


def _place(backbone: str) -> tuple[int, str]:
    kind = _kind(backbone)
    return (KINDS.index(kind) if kind in KINDS else len(KINDS), backbone)


def _in_order(groups: Mapping[Group, object]) -> list[Group]:
    known = [*TITLES]
    return sorted(groups, key=lambda g: (known.index(g[0]) if g[0] in known else len(known), g[0], _place(g[1])))


# ---- Notes -----------------------------------------------------------------------------------------------------------


def notes(table: Table, runs: Joined) -> list[str]:
    """What a reader must know: settings, sets, what the pretraining has seen, what is missing. Conventions apart."""
    found = [*table.notes, *(_settings(group, kept) for group, kept in runs.groups.items())]
    for data in data_sets(runs.groups):
        if of_data := [kept for (name, _), kept in runs.groups.items() if name == data]:
            found.append(_sets(data, of_data))
    found += _pretraining(runs)
    if missing := list(_missing(table, runs)):
        found.append(f"Not trained, shown as —: {'; '.join(missing)}.")
    if commits := sorted({str((run.get("provenance") or {}).get("commit", "unknown")) for run in runs.all()}):
        found.append(f"Commits: {', '.join(commits)}.")
    return found


def _settings(group: Group, runs: Runs) -> str:
    keys = {"epochs": "epochs", "batch_images": "ID images a step", "learning_rate": "learning rate"}
    if group[1] == SCRATCH:
        keys = {"width": "ResNet-18 (CIFAR form) of width", **keys}
    parts = []
    for key, name in keys.items():
        if values := dict.fromkeys(str(run["config"][key]) for run in runs.all() if run["config"].get(key)):
            parts.append(f"{name} {' or '.join(values)}")
    seeds = sorted({int(run["seed"]) for run in runs.all()})
    return f"{_title(group[0])}, {group[1]}: {', '.join(parts)}; seeds {', '.join(map(str, seeds))}."


def _sets(data: str, groups: Sequence[Runs]) -> str:
    """Which OOD sets, by their images; rows on other sets cannot be compared, and that is said."""
    listed = {", ".join(f"{name} {n:,}" for name, n in sorted(g.sets.items())) for g in groups if g.sets}
    near = next((name for g in groups if (name := near_set(data, g))), None)
    text = f"{_title(data)}, OOD sets by images: {' — or — '.join(sorted(listed)) or 'none'}"
    text += f"; near: {near}." if near else "."
    if len(listed) > 1:
        text += " The backbones were not measured on the same sets there: do not compare their means."
    return text


def _pretraining(runs: Joined) -> Iterator[str]:
    on_imagenet = False
    facts: dict[str, None] = {}
    for (_, backbone), kept in runs.groups.items():
        for run in kept.all() if backbone != SCRATCH else ():
            made = run.get("provenance") or {}
            about = made.get("backbone") or (made.get("training") or {}).get("backbone") or {}
            by_name = "ImageNet-1k, by the name of its weights" if "in1k" in str(about.get("weights")) else ""
            trained_on = about.get("trained_on") or by_name or "data that its file does not name"
            on_imagenet |= "ImageNet-1k" in trained_on
            facts[
                f"{_kind(backbone).split(' ', 1)[1]} has been trained on {trained_on}; "
                f"weights {about.get('weights') or 'not named'}, licence {about.get('licence') or 'not stated'}"
            ] = None  # fmt: skip
    if facts:
        yield f"What the pretraining has seen: {'. '.join(facts)}."
    if on_imagenet:
        yield IMAGENET


def _missing(table: Table, runs: Joined) -> Iterator[str]:
    for data in data_sets(runs.groups):
        for backbone in backbones(runs.groups, data):
            group = runs.groups.get((data, backbone))
            if group is None:
                yield f"{_title(data)}, {backbone}: every method"
                continue
            there = {method for method, _ in group.by_row}
            if lacking := [e.label for e in table.entries if e.method not in there]:
                yield f"{_title(data)}, {backbone}: {', '.join(lacking)}"


ENTRIES = (
    Entry("MSP", "msp"), Entry("logit adjustment", "logit-adjustment"),
    Entry("Mahalanobis, no outliers", "mahalanobis"), Entry("OE", "oe"), Entry("PASCL + ABF", "pascl-abf"),
    Entry("ImOOD", "imood"), Entry("COCL", "cocl"), Entry("TailGuard", "tailguard"),
    Entry("TailGuard, joint", "tailguard-joint"), Entry("TailGuard, placeholders", "tailguard-placeholders"),
)  # fmt: skip
PRETRAINED = Table(
    title="From scratch and on pretrained backbones",
    shows="every method on the same features of a frozen backbone, beside the same methods trained from scratch",
    entries=ENTRIES,
    build=build,
    pictured=(),
    notes=(
        "Frozen: the features of a backbone are computed once, and every method trains a head on them with the same "
        "steps; rows of one backbone so differ by their method alone. From scratch all of the network learns, in a "
        "budget of its own, so that its rows differ from the others by both.",
        "The deciding score is the method's own; on the lines that say so the one that `calibrate --score auto` chose "
        "from calibration images alone, with nothing else changed.",
    ),
)
