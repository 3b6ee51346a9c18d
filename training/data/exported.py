"""The list that `tailguard review export` writes beside its folders: who said what of each image.

The folder of a class writes as %XX what no folder may be called ("Acacia sp%2E"), so it is the list that names it.
"""

import os
import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from training.data import lists
from training.data.listing import Parts, by_frequency

LISTS = ("labels.csv", "labels.parquet")
MARK = "request_id"  # a column that labels.csv of another origin has not


def folder_of(where: Path) -> Path:
    """The folder of an export, which may be named by its list."""
    return where.parent if where.name in LISTS else where


def rows(where: Path) -> Iterable[lists.ListRow]:
    """Those of an export's list; nothing for another folder."""
    folder = folder_of(where)
    listed = next((folder / name for name in LISTS if (folder / name).is_file()), None)
    return [row for row in lists.rows(listed) if MARK in row] if listed else []


def named(folder: Path, parts: Parts) -> Parts:
    """The parts that were read from the folder of an export, each image in the class that the list says.

    An image that somebody has moved to another folder is in the class of that folder.
    """
    said = {
        os.path.abspath(folder / path): unicodedata.normalize("NFC", str(label).strip())
        for path, label in ((row.get("path"), row.get("label")) for row in rows(folder))
        if path and label
    }
    if not said:
        return parts
    labelled = {
        part: [
            (path, said.get(os.path.abspath(path), listing.classes[label]))
            for path, label in zip(listing.paths, listing.labels.tolist(), strict=True)
        ]
        for part, listing in parts.parts.items()
    }
    classes = parts.parts["train"].classes
    used = {label for listing in parts.parts.values() for label in listing.labels.tolist()}
    empty = [name for label, name in enumerate(classes) if label not in used]
    return replace(parts, parts=by_frequency(labelled, more=empty))
