"""The tree above the classes: from nested folders, a column `taxonomy` of a list, or a file of `class,path`.

    class,path
    orange,fruit/citrus
    milk,packages

A path leads from the root down to the class, which may be its last name or not. A run keeps the tree that it found when
it began in taxonomy.json, by the names of the classes.
"""

import csv
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.data.listing import Listing
from training.data.readers import DataError

COLUMN = "taxonomy"
TAXONOMY_FILE = "taxonomy.json"
FOLDERS = "nested folders"
Nodes = tuple[str, ...]


@dataclass(frozen=True)
class Taxonomy:
    """`paths`: by the name of a class the nodes above it, from the root down; `source`: where they were found."""

    source: str
    paths: Mapping[str, Nodes]

    def of(self, classes: Sequence[str]) -> list[Nodes]:
        """For each class; one that came later hangs where its own name says, Fruit/Fig, or below the root."""
        return [self.paths.get(name, tuple(name.split("/")[:-1])) for name in classes]

    def write(self, run: Path) -> None:
        run.mkdir(parents=True, exist_ok=True)
        paths = {name: "/".join(path) for name, path in self.paths.items()}
        temporary = run / f".{TAXONOMY_FILE}.partial"
        temporary.write_text(json.dumps({"source": self.source, "paths": paths}, indent=1, ensure_ascii=False), "utf-8")
        temporary.replace(run / TAXONOMY_FILE)


def read(path: Path, classes: Sequence[str]) -> Taxonomy:
    """That of a CSV file with a line `class,path` for each class. DataError that names the line."""
    try:
        rows = [row for row in csv.reader(path.read_text(encoding="utf-8-sig").splitlines(), strict=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"--taxonomy {path} cannot be read as CSV ({error}): give lines class,path") from error
    found: dict[str, Nodes] = {}
    for number, row in enumerate(rows, 1):
        if number == 1 and [part.strip().lower() for part in row] == ["class", "path"]:
            continue
        if len(row) != 2:
            raise DataError(
                f"{path}: line {number} has {len(row)} columns: write class,path, as in orange,fruit/citrus"
            )
        name = unicodedata.normalize("NFC", row[0].strip())
        if name in found:
            raise DataError(f"{path}: line {number} names {name!r} a second time: one line for each class")
        found[name] = _nodes(row[1], name, f"{path}: line {number}")
    if missing := [name for name in classes if name not in found]:
        raise DataError(f"{path} has no line for {', '.join(missing[:5])}: give one for every class")
    return _some(path.name, {name: found[name] for name in classes}, f"--taxonomy {path}")


def find(listing: Listing) -> Taxonomy | None:
    """That of a list's column or of nested class folders. DataError where a class has two paths."""
    if COLUMN in listing.columns:
        paths: dict[str, Nodes] = {}
        first: dict[str, str] = {}
        for label, text in zip(listing.labels.tolist(), listing.columns[COLUMN], strict=True):
            name = listing.classes[label]
            if first.setdefault(name, text) != text:
                raise DataError(f"the column {COLUMN} has {first[name]!r} and {text!r} for {name}: one for a class")
            paths[name] = _nodes(text, name, f"the column {COLUMN}")
        return _some(f"the column {COLUMN}", paths, f"the column {COLUMN}")
    nested = {name: tuple(name.split("/")[:-1]) for name in listing.classes}
    return Taxonomy(FOLDERS, nested) if any(nested.values()) else None


def recorded(run: Path | None) -> Taxonomy | None:
    """What a run has written down; None where it has none."""
    if run is None or not (path := run / TAXONOMY_FILE).is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    paths = {name: tuple(text.split("/")) if text else () for name, text in content["paths"].items()}
    return Taxonomy(content["source"], paths)


def _nodes(text: str, name: str, where: str) -> Nodes:
    """The names of a path, without the class at its end."""
    parts = [unicodedata.normalize("NFC", part.strip()) for part in text.split("/")] if text.strip(" /") else []
    if any(not part for part in parts):
        raise DataError(f"{where} has the path {text!r}, with an empty name: write fruit/citrus")
    return tuple(parts[:-1] if parts and parts[-1] == name else parts)


def _some(source: str, paths: dict[str, Nodes], where: str) -> Taxonomy:
    if not any(paths.values()):
        raise DataError(f"{where} puts every class below the root, which is no tree: name the nodes above them")
    return Taxonomy(source, paths)
