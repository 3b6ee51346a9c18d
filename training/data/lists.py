"""Lists of image files, CSV, JSON lines or Parquet, to listings.

    path,label,split,group
    shelf/0001.jpg,apple,train,visit-17

`path` (relative to the list's own folder, or absolute) and `label` are needed; `split` is train, val or test; every
other column may be named by --group-by column:NAME. The lists of `review export` and `review import` are such: their
rows of the kind `outlier` have no label, and are in no class.
"""

import csv
import json
import math
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from service.contract.bundle import OUTLIER_LABEL
from training.data.folders import PARTS, SPLIT_NAMES
from training.data.listing import Labelled, Parts, by_frequency
from training.data.readers import DataError

SUFFIXES = (".csv", ".jsonl", ".parquet")
SEPARATORS = (";", "\t")  # which programs write in the place of commas
ListRow = dict[str, Any]


def is_list(path: Path) -> bool:
    """Whether it is a file with a suffix of SUFFIXES."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def read_list(path: Path) -> Parts:
    """The parts of a list. DataError with the line where it is not one."""
    labelled: Labelled = {}
    columns: dict[str, dict[str, list[str]]] = {}
    outliers = 0
    for number, row in enumerate(rows(path), start=1):
        if is_outlier(row):
            outliers += 1
            continue
        _require_path_and_label(row, f"{path}: row {number}")
        split = str(row.get("split") or "train").strip().lower()
        if split not in SPLIT_NAMES:
            raise DataError(f"{path}: row {number} has the split {split!r}: use {', '.join(PARTS)}")
        part = SPLIT_NAMES[split]
        label = unicodedata.normalize("NFC", str(row["label"]).strip())
        labelled.setdefault(part, []).append((str(path.parent / str(row["path"])), label))
        for name in row.keys() - {"path", "label", "split"}:
            before = len(labelled[part]) - 1
            values = columns.setdefault(part, {}).setdefault(str(name), [])
            values += [""] * (before - len(values))  # rows of JSON lines may lack it
            values.append("" if row[name] is None else str(row[name]))
    if "train" not in labelled:
        raise DataError(f"{path} has no row of the split train: every class needs some")
    for part, named in columns.items():
        for values in named.values():
            values += [""] * (len(labelled[part]) - len(values))
    left_out = [f"{path}: {outliers} rows are outliers, in no class: --outliers {path} trains on them"]
    return Parts(by_frequency(labelled, columns), left_out if outliers else [])


def _require_path_and_label(row: ListRow, where: str) -> None:
    """DataError where a row lacks one, or has what str() would make a class of: a list, a NaN of pandas."""
    for needed in ("path", "label"):
        value = row.get(needed)
        if value is None or (isinstance(value, str) and not value.strip()):
            mark = next((mark for mark in SEPARATORS if any(mark in str(name) for name in row)), None)
            named = "give it one" if needed in row else "name the columns so"
            remedy = f"separate the columns by commas, not by {mark!r}" if mark else named
            raise DataError(f"{where} has no {needed}; it has {sorted(map(str, row))}: {remedy}")
        number = needed == "label" and isinstance(value, int | float) and math.isfinite(value)
        if not isinstance(value, str) and not number:
            raise DataError(f"{where} has the {needed} {value!r}, which is no text: write one {needed} as text")


def is_outlier(row: ListRow) -> bool:
    """Whether a row is of an image of no class."""
    return row.get("kind") == OUTLIER_LABEL and not row.get("label")


def outliers(path: Path) -> list[str]:
    """The files of the rows that are outliers. DataError where it is no list, or one without such rows."""
    found = [str(path.parent / str(row["path"])) for row in rows(path) if is_outlier(row) and row.get("path")]
    if not found:
        raise DataError(f"{path} has no row of the kind {OUTLIER_LABEL} with an empty label: name other outliers")
    return found


def rows(path: Path) -> Iterable[ListRow]:
    """The rows of a list as they are. DataError where it is none."""
    try:
        if path.suffix.lower() == ".parquet":
            return _parquet(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                found: list[Any] = list(csv.DictReader(file, strict=True))
            else:
                found = [json.loads(line) for line in file if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not in UTF-8 ({error}): save it in that encoding") from error
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as {path.suffix[1:].upper()} ({error}): save it again") from error
    if bad := next((i for i, row in enumerate(found, start=1) if not isinstance(row, dict)), None):
        raise DataError(f"{path}: line {bad} is no JSON object: write one object a line, with path and label")
    rest = [row.pop(None, []) for row in found]  # fields beyond those of the first line; none after a last comma
    if bad := next((i for i, fields in enumerate(rest, start=1) if any(fields)), None):
        more = ", ".join(rest[bad - 1])
        raise DataError(f"{path}: row {bad} has more fields than the first line names ({more}): put a text with a "
                        'comma in it between quotes, "apple, red"')  # fmt: skip
    return found


def _parquet(path: Path) -> list[ListRow]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs pyarrow: install the extra parquet, or save a CSV") from error
    rows: list[ListRow] = parquet.read_table(path).to_pylist()
    return rows
