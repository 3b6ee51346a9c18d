"""Labels of files that no ledger knows, as a list that `tailguard fit`, `train` and `learn --from` read.

    path,label,kind,source,reviewer
    /photos/a.jpg,cat,class,import,eva
    /photos/b.jpg,sea slug,new,import,eva      of no class of the bundle, where one is named
    /photos/c.jpg,,outlier,import,eva          in no class: `learn` takes it, and `--outliers LIST` does

A file is known by what `tailguard score --format` has written of it. 'unsure' is left out.
"""

import json
import os
import unicodedata
from collections.abc import Iterator, Sequence
from glob import escape
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import unquote

from service.contract.bundle import require_class_names, spelling
from service.contract.comma_separated import CommaSeparated
from service.errors import InvalidParameter
from service.ledger.rows import Truth
from service.review.imports import LOCAL_FILES, Given, truth, way_out

COLUMNS = ("path", "label", "kind", "source", "reviewer")
SUFFIXES = (".csv", ".jsonl")
SOURCE = "import"


class Listed(NamedTuple):
    """`labels`: what each file is said to show, by its absolute path."""

    labels: dict[str, Truth]
    unknown: list[str]  # files that are not here
    skipped: int  # entries without one label, and unsure ones


def plan(given: Sequence[Given], root: Path | None, classes: Sequence[str] | None) -> Listed:
    """What each file is said to show. `root`: the folder that names count from; None: the root of the file system in
    addresses of Label Studio's local files, elsewhere the current folder. `classes`: of a bundle; None: all are known.

    Raises InvalidParameter for a label that can be no class's name, for two spellings of one name, and
    for a file that is said to show two things.
    """
    said = [(one, unicodedata.normalize("NFC", one.label.strip())) for one in given if one.label is not None]
    known = set(classes) if classes is not None else {label for _, label in said if not way_out(label)}
    made = Listed({}, [], 0)
    unsure = 0
    for one, label in said:
        shown = truth(label, known)
        if shown.kind == "unsure":
            unsure += 1
        elif (path := found(one, root)) is None:
            made.unknown.append(one.file)
        elif (before := made.labels.setdefault(path, shown)) != shown:
            raise InvalidParameter(f"{path} is said to show {before.label!r} and {shown.label!r}: give it one label")
    _check({shown.label for shown in made.labels.values() if shown.kind != "outlier"})
    return made._replace(skipped=len(given) - len(said) + unsure)


def found(given: Given, root: Path | None) -> str | None:
    """The absolute path of the file that is meant; None where there is none."""
    places = [place for name in dict.fromkeys((*given.also, given.file)) if name for place in _places(name, root)]
    for place in places:
        if _is_file(place):
            return os.path.abspath(place)
    for place in places:  # FiftyOne's labels.json names files without their suffix
        if len(alike := [p for p in place.parent.glob(f"{escape(place.name)}.*") if p.is_file()]) == 1:
            return os.path.abspath(alike[0])
    return None


def _places(name: str, root: Path | None) -> Iterator[Path]:
    """Where a file of this name may be, the likeliest first."""
    _, local, path = name.partition(LOCAL_FILES)
    if local:
        yield (root or Path("/")) / unquote(path, errors="surrogateescape")
        return
    if root is not None:
        yield root / name
    yield Path(name)


def _is_file(place: Path) -> bool:
    try:
        return place.is_file()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


def _check(labels: set[str]) -> None:
    alike: dict[str, str] = {}
    for label in sorted(labels):
        try:
            require_class_names([label])
        except ValueError as error:
            raise InvalidParameter(str(error)) from error
        other = alike.setdefault(spelling(label), label)
        if other != label:
            raise InvalidParameter(f"two classes are called {other!r} and {label!r}: write them alike")


def write(out: Path, labels: dict[str, Truth], reviewer: str | None) -> None:
    """The list, as CSV or JSON lines by its suffix; it appears when it is whole. OSError where it cannot be written;
    InvalidParameter for a path that is no text, in CSV."""
    if out.exists():
        raise FileExistsError(out)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            _lines(file, out.suffix.lower(), labels, reviewer or "")
        os.rename(partial, out)
    except UnicodeEncodeError as error:
        path = ascii(error.object[:200])
        raise InvalidParameter(f"CSV holds text, and a path is none ({path}): name the list .jsonl") from error
    finally:
        partial.unlink(missing_ok=True)


def _lines(file: IO[str], suffix: str, labels: dict[str, Truth], reviewer: str) -> None:
    rows = ((path, "" if t.kind == "outlier" else t.label, t.kind, SOURCE, reviewer) for path, t in labels.items())
    if suffix == ".csv":
        CommaSeparated(file).rows([COLUMNS, *rows])
    else:
        file.writelines(json.dumps(dict(zip(COLUMNS, row, strict=True))) + "\n" for row in rows)
