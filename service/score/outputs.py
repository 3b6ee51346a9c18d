"""Writes rows to CSV, JSON lines or Parquet, by the suffix of the file, which appears complete or not at all.

A file name that is not UTF-8 keeps its bytes in CSV, is written with lone surrogates (\\udc80 to \\udcff, as Python's
os.fsdecode gives it) in JSON, and with backslashes (\\xff) in Parquet, whose strings must be UTF-8.
"""

import csv
import importlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from service.score.errors import ScoreError
from service.score.journal import ENCODER
from service.score.rows import ResultRow, Type

PARQUET_ROWS = 10_000  # in memory at once

Write = Callable[[Path, Mapping[str, Type], Iterable[ResultRow], Mapping[str, Any]], None]


def writer(out: Path) -> Write:
    """The function for that suffix. Raises ScoreError for an unknown one, or when pyarrow is not installed."""
    if out.suffix not in WRITERS:
        raise ScoreError(f"--out {out} has no known suffix: name it {', '.join(WRITERS)}")
    if out.suffix == ".parquet":
        _pyarrow()
    return WRITERS[out.suffix]


def write(out: Path, kinds: Mapping[str, Type], rows: Iterable[ResultRow], about: Mapping[str, Any]) -> None:
    """Write `rows` of the columns `kinds` to `out`; `about` goes where the format has a place for it."""
    unfinished = temporary(out)
    try:
        writer(out)(unfinished, kinds, rows, about)
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
        table = csv.writer(file, lineterminator="\n")
        table.writerow(kinds)
        table.writerows(row.values() for row in rows)


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


def _pyarrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ScoreError(
            f"Parquet needs pyarrow ({error}): pip install 'tailguard[parquet]', or name the output .csv or .jsonl"
        ) from error


WRITERS: dict[str, Write] = {".parquet": _parquet, ".csv": _csv, ".jsonl": _jsonl}
