"""Lists of image files, CSV, JSON lines or Parquet, to listings.

    path,label,split,group
    shelf/0001.jpg,apple,train,visit-17

`path` (relative to the list's own folder, or absolute) and `label` are needed; `split` is train, val or test; every
other column may be named by --group-by column:NAME. The lists of `review export` and `review import` are such: their
rows of the kind `outlier` have no label, and are in no class. Names of columns are taken in any letter case, and in the
place of commas may stand semicolons or tabs.
"""

import csv
import json
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from typing import IO, Any

from service.contract.bundle import OUTLIER_LABEL
from training.data.folders import PARTS, SPLIT_NAMES
from training.data.listing import Labelled, Parts, by_frequency
from training.data.readers import DataError

SUFFIXES = (".csv", ".jsonl", ".parquet")
SEPARATORS = (",", ";", "\t")  # Excel writes the second where a comma stands before the decimals
COLUMNS = ("path", "label", "split")  # in any letter case: a "Split" passed over would be trained on, test part and all
ListRow = dict[str, Any]


def is_list(path: Path) -> bool:
    """Whether it is a file with a suffix of SUFFIXES."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def read_list(path: Path) -> Parts:
    """The parts of a list. DataError with the line where it is not one."""
    labelled: Labelled = {}
    columns: dict[str, dict[str, list[str]]] = {}
    outliers, again = 0, 0
    seen = set[tuple[str, str, str]]()
    for number, row in enumerate(rows(path), start=1):
        if is_outlier(row):
            outliers += 1
            continue
        _require_path_and_label(row, f"{path}: row {number}")
        split = _text(row.get("split")).lower() or "train"
        if split not in SPLIT_NAMES:
            raise DataError(f"{path}: row {number} has the split {split!r}: use {', '.join(PARTS)}")
        part = SPLIT_NAMES[split]
        image, label = _place(path.parent, row["path"]), unicodedata.normalize("NFC", _text(row["label"]))
        if (one := (part, os.path.abspath(image), label)) in seen:
            again += 1
            continue
        seen.add(one)
        labelled.setdefault(part, []).append((image, label))
        for name in row.keys() - {*COLUMNS}:
            before = len(labelled[part]) - 1
            values = columns.setdefault(part, {}).setdefault(str(name), [])
            values += [""] * (before - len(values))  # rows of JSON lines may lack it
            values.append(_text(row[name]))
    if "train" not in labelled:
        raise DataError(f"{path} has no row of the split train: every class needs some")
    for part, named in columns.items():
        for values in named.values():
            values += [""] * (len(labelled[part]) - len(values))
    notes = [f"{path}: {outliers} rows are outliers, in no class: --outliers {path} trains on them"] if outliers else []
    if again:
        notes.append(f"{path}: {again} rows name an image of a class and a split once more: it is taken once")
    return Parts(by_frequency(labelled, columns), notes)


def _text(value: Any) -> str:
    """A cell as text: "" for what is missing, also as the NaN of pandas, which makes 1.0 of the 1 beside it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def _place(folder: Path, name: str) -> str:
    """Where the file is that a row names, also in the way of Windows."""
    place = str(folder / name)
    return str(folder / PureWindowsPath(name).as_posix()) if "\\" in name and not os.path.exists(place) else place


def _require_path_and_label(row: ListRow, where: str) -> None:
    """DataError where a row lacks one, or has what str() would make a class of: a list, a NaN of pandas."""
    for needed in ("path", "label"):
        value = row.get(needed)
        if value is None or (isinstance(value, str) and not value.strip()):
            remedy = "give it one" if needed in row else f"call the column of it {needed!r}"
            raise DataError(f"{where} has no {needed}; it has {sorted(map(str, row))}: {remedy}")
        number = needed == "label" and isinstance(value, int | float) and math.isfinite(value)
        if not isinstance(value, str) and not number:
            raise DataError(f"{where} has the {needed} {value!r}, which is no text: write one {needed} as text")


def is_outlier(row: ListRow) -> bool:
    """Whether a row is of an image of no class."""
    return _text(row.get("kind")) == OUTLIER_LABEL and not _text(row.get("label"))


def outliers(path: Path) -> list[str]:
    """The files of the rows that are outliers. DataError where it is no list, or one without such rows."""
    every = (_place(path.parent, str(row["path"])) for row in rows(path) if is_outlier(row) and row.get("path"))
    found = [*{os.path.abspath(one): one for one in every}.values()]
    if not found:
        raise DataError(f"{path} has no row of the kind {OUTLIER_LABEL} with an empty label: name other outliers")
    return found


def rows(path: Path) -> Iterable[ListRow]:
    """The rows of a list as they are, COLUMNS by these names. DataError where it is none."""
    try:
        found = _read(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not in UTF-8 ({error}): save it in that encoding, Excel's CSV UTF-8") from error
    except DataError:
        raise
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise DataError(f"{path} cannot be read as {path.suffix[1:].upper()} ({error}): save it again") from error
    if bad := next((i for i, row in enumerate(found, start=1) if not isinstance(row, dict)), None):
        raise DataError(f"{path}: line {bad} is no JSON object: write one object a line, with path and label")
    rest = [row.pop(None, []) for row in found]  # fields beyond those of the first line; none after a last comma
    if bad := next((i for i, fields in enumerate(rest, start=1) if any(fields)), None):
        more = ", ".join(rest[bad - 1])
        raise DataError(f"{path}: row {bad} has more fields than the first line names ({more}): put a text with a "
                        'comma in it between quotes, "apple, red"')  # fmt: skip
    return [{_column(name, row): value for name, value in row.items()} for row in found]


def _column(name: str, row: ListRow) -> str:
    meant = name.strip().lower()
    return meant if meant in COLUMNS and meant not in row else name


def _read(path: Path) -> list[Any]:
    if path.suffix.lower() == ".parquet":
        return _parquet(path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix.lower() != ".csv":
            return [json.loads(line) for line in file if line.strip()]
        table = _table(file)
        if twice := [name for name, n in Counter(table.fieldnames).items() if name and n > 1]:
            raise DataError(f"{path} has two columns {twice[0]!r}: remove one of them, or name it otherwise")
        return list(table)


def _table(file: IO[str]) -> "csv.DictReader[str]":
    """Its rows, by the one of SEPARATORS by which the first line names path and label, or else most columns."""

    def by(mark: str) -> "csv.DictReader[str]":
        file.seek(0)
        return csv.DictReader(file, strict=True, delimiter=mark)

    def fits(mark: str) -> tuple[bool, int]:
        try:
            names = [name.strip().lower() for name in by(mark).fieldnames or ()]
        except csv.Error:  # something else stands behind a quote
            return False, 0
        return {"path", "label"} <= set(names), len(names)

    return by(max(SEPARATORS, key=fits))


def _parquet(path: Path) -> list[ListRow]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs pyarrow: install the extra parquet, or save a CSV") from error
    rows: list[ListRow] = parquet.read_table(path).to_pylist()
    return rows
