"""A table as markdown and CSV, and the notes below it: settings, conventions, data, sources, what is missing."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from training.layout import markdown_table
from training.runs.files import Json
from training.tables.cells import LONG_TAILED, SETTINGS, Cell, Column, Line, Runs, Section, imbalance
from training.tables.grids import Table
from training.tables.published import OUTLIERS_NOTE, PER_SET, SETS_NOTE, TRAINING_NOTE
from training.tables.series import Picture

MISSING = "—"
CONVENTIONS = (
    "OOD is the positive class and scores are larger = more outlying. FPR95 (OOD positive): share of in-distribution "
    "(ID) images flagged when 95% of the OOD images are caught; FPR95 (ID positive): share of OOD images accepted when "
    "95% of the ID images are kept. AUPR is average precision and moves with the sizes of the sets. ACC95: accuracy on "
    "the ID images kept when 95% of the OOD images are caught. Percent; ACC many, medium and few are unweighted means "
    "over the classes of the group."
)
SPREAD = (
    "With several seeds: mean ± sample standard deviation over the seeds; with one seed the plain value, whose spread "
    "is unknown. Bold: the best of our measured means in the column of a grid, or in the line where the methods "
    "are columns; published figures take no part."
)
NAMES = {
    "width": "width", "epochs": "epochs", "batch_images": "ID images a step", "views": "views",
    "stage2_epochs": "epochs of stage 2 (where there is one)", "stage2_batch_images": "images a step there",
    "learning_rate": "learning rate", "calibration_fraction": "share of the training set kept for calibration",
}  # fmt: skip


# ---- Cells -----------------------------------------------------------------------------------------------------------


def cell_text(cell: Cell | str, seeds: int | None = None) -> str:
    """`86.05 ± 0.31`, `86.05`, or —. Says how many seeds where that is fewer than the line's."""
    if isinstance(cell, str):
        return cell
    if cell.mean is None:
        return MISSING
    text = f"{cell.mean:.2f}".replace("-", "−")
    text += f" ± {cell.std:.2f}" if cell.std is not None else ""
    return text + (f" (n={len(cell.values)})" if seeds is not None and len(cell.values) < seeds else "")


def shown_cell(section: Section, line: Line, column: Column) -> str:
    """The text of one cell; a change carries its sign, a line's own seeds are counted where it says how many."""
    cell, stated = section.cell(line, column), str(line.cells.get("seeds", ""))
    seeds = int(stated) if stated.isdigit() and column.origin == "ours" else None
    text = cell_text(cell, seeds)
    signed = column.key.endswith(("change", "difference")) and isinstance(cell, Cell) and (cell.mean or 0) > 0
    return f"+{text}" if signed else text


def markdown_grid(section: Section) -> str:
    rows = []
    for line in section.lines:
        cells = [line.label + ("*" if line.note else "")]
        for column in section.columns:
            text = shown_cell(section, line, column)
            cells.append(f"**{text}**" if section.is_best(line, column) else text)
        rows.append(cells)
    return markdown_table([section.first, *(c.label for c in section.columns)], rows)


def markdown(
    table: Table, sections: Sequence[Section], notes: Sequence[str], pictures: Sequence[Picture], name: str
) -> str:
    parts = [f"### {table.title}", f"Shows {table.shows}."]
    for section in sections:
        parts += [f"**{section.title}**", markdown_grid(section)]
    parts.append("\n".join(f"- {note}" for note in notes))
    parts += [f"![{p.alt}]({name}-{p.name}.png)\n\n{p.caption}" for p in pictures]
    return "\n\n".join(parts) + "\n"


def csv_text(name: str, sections: Sequence[Section]) -> str:
    """One line per number, so that no grid's columns are mixed with another's; empty where nothing was measured."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["table", "section", "row", "method", "column", "origin", "mean", "std", "seeds", "note"])
    for section in sections:
        for line in section.lines:
            for column in section.columns:
                cell = section.cell(line, column)
                if isinstance(cell, str):
                    continue
                mean = "" if cell.mean is None else f"{cell.mean:.2f}"
                std = "" if cell.std is None else f"{cell.std:.2f}"
                seeds = len(cell.values) if column.origin == "ours" else ""
                note = line.note if column.key.endswith("_unclear") else ""
                writer.writerow(
                    [name, section.title, line.label, line.method, column.label, column.origin, mean, std, seeds, note]
                )
    return buffer.getvalue()


# ---- Notes -----------------------------------------------------------------------------------------------------------


def notes(table: Table, runs: Runs, sections: Sequence[Section]) -> list[str]:
    """Everything a reader must know before comparing two numbers."""
    results = runs.all()
    notes = [settings(results)] if results else []
    notes += [*table.notes, CONVENTIONS, SPREAD]
    if runs.sets and table.on_ood:
        sizes = ", ".join(f"{name} {n:,}" for name, n in runs.sets.items())
        notes.append(
            f"Numbers on OOD are unweighted means over the sets, or of one set where it is named: {sizes} images."
        )
    notes.append(data_note(runs, table.on_ood))
    lines = [line for section in sections for line in section.lines]
    if sources := dict.fromkeys(line.source for line in lines if line.source):
        notes.append(f"Published figures: {'; '.join(sources)}.")
    for reason in dict.fromkeys(line.note for line in lines if line.note):
        marked = dict.fromkeys(line.label for line in lines if line.note == reason)
        notes.append(f"\\* {', '.join(marked)}: {reason}.")
    if missing := table.missing(runs):
        several = len(table.imbalances) > 1
        names = ", ".join(f"`{n.method}`" + (f" (imbalance {n.imbalance:g})" if several else "") for n in missing)
        notes.append(f"Not trained yet, shown as {MISSING}: {names}.")
    if commits := sorted({str(run.get("provenance", {}).get("commit", "unknown")) for run in results}):
        notes.append(f"Commits: {', '.join(commits)}.")
    return notes


def settings(results: Sequence[Json]) -> str:
    """Budget, network and training length; where rows differ, what each has."""
    budgets = sorted({str(run.get("budget", "not named")) for run in results})
    text = f"Budget {' and '.join(budgets)}: ResNet-18 (CIFAR form) with "
    same, differing = [], []
    for key in (k for k in SETTINGS if any(run["config"].get(k) is not None for run in results)):
        values: dict[Any, list[str]] = {}
        for run in results:
            row = run["method"] if imbalance(run) == LONG_TAILED else f"{run['method']} at imbalance {imbalance(run):g}"
            values.setdefault(run["config"].get(key), []).append(row)
        if len(values) == 1:
            same.append(f"{NAMES[key]} {next(iter(values))}")
        else:
            shares = (f"{v} ({', '.join(dict.fromkeys(rows))})" for v, rows in values.items())
            differing.append(f"{NAMES[key]}: {'; '.join(shares)}")
    text += ", ".join(same) + "."
    if differing:
        text += " Rows differ in " + ". ".join(differing) + "."
    seeds: dict[str, list[str]] = {}
    for run in results:
        seeds.setdefault(f"{run['method']}@{imbalance(run):g}", []).append(str(run["seed"]))
    lists = {", ".join(s) for s in seeds.values()}
    each = (
        f"Seeds of every row: {lists.pop()}."
        if len(lists) == 1
        else "Seeds: "
        + "; ".join(f"{row.removesuffix(f'@{LONG_TAILED:g}')} {', '.join(s)}" for row, s in seeds.items())
        + "."
    )
    return f"{text} {each}"


def data_note(runs: Runs, on_ood: bool) -> str:
    """Which data, and which training, are not the paper's."""
    if runs.dataset not in PER_SET:
        return f"Data: {runs.dataset}, which no published figure is about."
    test = f"{runs.dataset.upper()} and its long-tailed cut are the paper's own"
    held = {float(run["config"].get("calibration_fraction") or 0) for run in runs.all()}
    if max(held, default=0):
        test += f", less {'/'.join(f'{100 * h:g}%' for h in sorted(held))} of each class kept for calibration"
    tailed = [r["train_counts"] for r in runs.all() if imbalance(r) == LONG_TAILED and r.get("train_counts")]
    if tailed:
        counts = tailed[0]
        test += f" (trained on {sum(counts):,} images, {max(counts):,} down to {min(counts):,} a class)"
    if not on_ood:
        return f"Data: {test}."
    differing = [SETS_NOTE.get(name, f"{name}: not in the paper") for name in runs.sets]
    parts = "; ".join([test, OUTLIERS_NOTE, *differing])
    return (
        f"Data: {parts}. {TRAINING_NOTE} So levels on OOD cannot be compared with the papers', only which row is ahead."
    )
