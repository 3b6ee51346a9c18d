"""Writes rows to CSV, JSON lines or Parquet by the suffix of the file, or for a labelling tool; complete or not at all.

A file name that is not UTF-8 keeps its bytes in CSV, is written with lone surrogates (\\udc80 to \\udcff, as Python's
os.fsdecode gives it) in JSON, and with backslashes (\\xff) in Parquet, whose strings must be UTF-8.
"""

import importlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from service.contract.comma_separated import CommaSeparated
from service.score import labelling
from service.score.errors import ScoreError
from service.score.journal import ENCODER
from service.score.labelling import Format, Places
from service.score.rows import ResultRow, Type

PARQUET_ROWS = 10_000  # in memory at once

Write = Callable[[Path, Mapping[str, Type], Iterable[ResultRow], Mapping[str, Any]], None]


def writer(out: Path, form: Format | None = None, places: Places | None = None) -> Write:
    """The function for that format, or that suffix.

    Raises ScoreError for a suffix that does not go with it, or when pyarrow is not installed.
    """
    if form is not None:
        if out.suffix != ".json":
            raise ScoreError(f"--out {out}: --format {form} writes JSON: name it .json")
        return partial(_labelling, form, places or Places())
    if out.suffix not in WRITERS:
        raise ScoreError(f"--out {out} has no known suffix: name it {', '.join(WRITERS)}, or give --format")
    if out.suffix == ".parquet":
        _pyarrow()
    return WRITERS[out.suffix]


def write(
    out: Path, kinds: Mapping[str, Type], rows: Iterable[ResultRow], about: Mapping[str, Any],
    form: Format | None = None, places: Places | None = None,
) -> None:  # fmt: skip
    """Write `rows` of the columns `kinds` to `out`; `about` goes where the format has a place for it."""
    with _whole(out) as unfinished:
        writer(out, form, places)(unfinished, kinds, rows, about)


def write_interface(out: Path, classes: Sequence[str], overwrite: bool) -> None:
    """The labelling interface beside the tasks of Label Studio. Raises ScoreError where another file lies there:
    `overwrite` is for one that was written so."""
    path, text = interface_path(out), labelling.interface(classes)
    there = path.read_text("utf-8", "replace") if path.is_file() else None
    if path.exists() and there != text:
        if there is None or not there.startswith(labelling.HEADER):
            raise ScoreError(f"{path} exists already and is no labelling interface of ours, which would go there: "
                             "choose another --out, or move it away")  # fmt: skip
        if not overwrite:
            raise ScoreError(
                f"{path}, the labelling interface, exists already: choose another --out, or give --overwrite"
            )
    with _whole(path) as unfinished:
        unfinished.write_text(text, "utf-8")


def interface_path(out: Path) -> Path:
    """Where the labelling interface goes."""
    return out.with_suffix(".xml")


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """The temporary file that takes the place of `out` in the end."""
    unfinished = temporary(out)
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())  # its name must not outlive its content when the power fails
        os.replace(unfinished, out)
    finally:
        unfinished.unlink(missing_ok=True)


def temporary(out: Path) -> Path:
    """The file that is written and then renamed to `out`; a later run overwrites what a killed one left."""
    return out.with_name(f".{out.name}.unfinished")


def _csv(path: Path, kinds: Mapping[str, Type], rows: Iterable[ResultRow], about: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        table = CommaSeparated(file)
        table.row(kinds)
        table.rows(row.values() for row in rows)


def _jsonl(path: Path, kinds: Mapping[str, Type], rows: Iterable[ResultRow], about: Mapping[str, Any]) -> None:
    with path.open("w", encoding="ascii") as file:
        file.writelines(ENCODER.encode(row) + "\n" for row in rows)


def _parquet(path: Path, kinds: Mapping[str, Type], rows: Iterable[ResultRow], about: Mapping[str, Any]) -> None:
    arrow, parquet = _pyarrow()
    types = {"vector": arrow.list_(arrow.float32())}
    schema = arrow.schema([(name, types.get(kind) or getattr(arrow, kind)()) for name, kind in kinds.items()])
    schema = schema.with_metadata({"tailguard": json.dumps(about)})
    with parquet.ParquetWriter(path, schema) as table:
        remaining: Iterator[ResultRow] = iter(rows)
        while part := list(islice(remaining, PARQUET_ROWS)):
            data = {name: [row[name] for row in part] for name in kinds}
            data["path"] = [os.fsencode(str(p)).decode("utf-8", "backslashreplace") for p in data["path"]]
            table.write_table(arrow.table(data, schema))


def _labelling(
    form: Format, places: Places, path: Path, kinds: Mapping[str, Type], rows: Iterable[ResultRow],
    about: Mapping[str, Any],
) -> None:  # fmt: skip
    with path.open("w", encoding="ascii") as file:
        if form == "label-studio":
            file.writelines(labelling.tasks(rows, about, places))
        else:
            file.writelines(labelling.samples(rows, kinds, about, places))


def _pyarrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ScoreError(
            f"Parquet needs pyarrow ({error}): pip install 'tailguard[parquet]', or name the output .csv or .jsonl"
        ) from error


WRITERS: dict[str, Write] = {".parquet": _parquet, ".csv": _csv, ".jsonl": _jsonl}
