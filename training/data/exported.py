"""The list that `tailguard review export` writes beside its folders: who said what of each image.

The folder of a class writes as %XX what no folder may be called ("Acacia sp%2E"), so it is the list that names it.
"""

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from training.data import lists
from training.data.listing import Parts, by_frequency, some

LISTS = ("labels.csv", "labels.parquet")
MARK = "request_id"  # a column that labels.csv of another origin has not


def folder_of(where: Path) -> Path:
    """The folder of an export, which may be named by its list."""
    return where.parent if where.name in LISTS else where


def rows(where: Path) -> Sequence[lists.ListRow]:
    """Those of an export's list; nothing for another folder. DataError where the list cannot be read."""
    folder = folder_of(where)
    for listed in (folder / name for name in LISTS):
        if listed.is_file() and _is_of_an_export(listed):
            found = listed.stat()
            return _rows(listed, found.st_mtime_ns, found.st_size)
    return ()


def _is_of_an_export(listed: Path) -> bool:
    """By its first line; a list of somebody's own may be written in any way."""
    with listed.open("rb") as file:
        return listed.suffix != ".csv" or MARK.encode() in file.readline()


@lru_cache(maxsize=1)
def _rows(listed: Path, *state: int) -> Sequence[lists.ListRow]:
    """Read once, however often it is asked for, until it is another file."""
    return tuple(row for row in lists.rows(listed) if MARK in row)


def unlisted(where: Path, paths: Sequence[str]) -> list[str]:
    """A note about those of `paths` that the list of an export does not know, where there is one.

    An image that somebody has moved to another folder has a row: files are named by their content.
    """
    known = {os.path.basename(str(row.get("path"))) for row in rows(where)}
    lost = sorted({path for path in paths if os.path.basename(path) not in known}) if known else []
    if not lost:
        return []
    shown = some([os.path.relpath(path, folder_of(where)) for path in lost])
    return [
        f"{where}: {len(lost)} images have no row in the list of the export ({shown}): their folder is their class, "
        "and who looked at which together is lost. If one export was copied over another, append the rows of its list"
    ]


def named(folder: Path, parts: Parts) -> Parts:
    """The parts that were read from the folder of an export, each image in the class that the list says.

    An image that somebody has moved to another folder is in the class of that folder, and so is one without a row.
    """
    if not rows(folder):
        return parts
    said: dict[str, str] = {}
    of_folder: dict[str, str] = {}
    for path, label in ((row.get("path"), row.get("label")) for row in rows(folder)):
        if path and label:
            place = os.path.abspath(folder / path)
            said[place] = of_folder[os.path.dirname(place)] = unicodedata.normalize("NFC", str(label).strip())

    def label_of(path: str, written: str) -> str:
        place = os.path.abspath(path)
        return said.get(place) or of_folder.get(os.path.dirname(place)) or _unwritten(written)

    labelled = {
        part: [
            (path, label_of(path, listing.classes[label]))
            for path, label in zip(listing.paths, listing.labels.tolist(), strict=True)
        ]
        for part, listing in parts.parts.items()
    }
    classes = parts.parts["train"].classes
    used = {label for listing in parts.parts.values() for label in listing.labels.tolist()}
    empty = [_unwritten(name) for label, name in enumerate(classes) if label not in used]
    notes = unlisted(folder, [path for listing in parts.parts.values() for path in listing.paths])
    return replace(parts, parts=by_frequency(labelled, more=empty), notes=[*parts.notes, *notes])


def beside_notes(folder: Path) -> list[str]:
    """A note about lists in `folder` that are not of an export: one of them may say what the folders do not."""
    own = [path for path in sorted(folder.iterdir()) if lists.is_list(path)]
    found = [path.name for path in own if path.name not in LISTS or not _is_of_an_export(path)]
    if not found:
        return []
    said = "as the folders say the classes: where a list says them, give it in the place of the folder"
    return [f"{folder}: did not read {some(found)}, {said}"]


def _unwritten(folder: str) -> str:
    """The class for which an export has this folder."""
    try:
        return unicodedata.normalize("NFC", unquote(folder, errors="strict"))
    except UnicodeDecodeError:
        return folder
