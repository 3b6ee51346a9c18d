"""Scored files as what labelling tools read: the tasks of Label Studio, and a data set of FiftyOne; both JSON.

    label-studio   [{"data": {"image": "/data/local-files/?d=photos/a.jpg", "verdict": "cat, 93%", …},
                     "predictions": [{"model_version": "shop 3", "score": .93, "result": [{"type": "choices", …}]}]}]
                   and its labelling interface beside it, OUT.xml
    fiftyone       {"samples": [{"filepath": "/photos/a.jpg", "tags": ["accept"], "predictions": {
                     "_cls": "Classification", "label": "cat", "confidence": .93, "decision": "accept", …}}]}

A refused image is never mistaken for an accepted one: Label Studio is offered no class for it, so that nobody confirms
one by pressing a key, and its verdict stands above the picture; in FiftyOne sample and label are tagged `reject`. What
could not be read is a task without a prediction, or a sample tagged `error`. One row is in memory at a time.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from service.contract.bundle import OUTLIER_LABEL
from service.review import imports
from service.score.errors import ScoreError
from service.score.journal import ENCODER
from service.score.remote import is_remote
from service.score.rows import ResultRow, Type

Format = Literal["label-studio", "fiftyone"]
FORMATS: tuple[Format, ...] = get_args(Format)
LOCAL_FILES = imports.LOCAL_FILES
IMAGE, CHOICE, PREDICTIONS = "image", "choice", "predictions"  # the names that review import looks for
UNSURE = "unsure"
HIDDEN = ("path", "label", "class_index", "embedding")  # of a row: shown under another name, or of no use to a reader
FIELDS: dict[Type, str] = {
    "string": "StringField", "int32": "IntField", "float32": "FloatField", "float64": "FloatField",
    "vector": "ListField",
}  # fmt: skip


@dataclass(frozen=True)
class Places:
    """How a tool finds the files. `root`: the folder that paths count from; None: the root of the file system."""

    prefix: str = LOCAL_FILES
    root: Path | None = None

    def check(self, paths: Sequence[str], form: Format) -> None:
        """Raise ScoreError for a file that the tool could not find."""
        for path in paths:
            if is_remote(path):
                if form == "fiftyone":
                    raise ScoreError(f"{shown(path)}: FiftyOne opens files of its own machine only: fetch them first")
            elif self.root is not None and relative(path, self.root).split("/")[0] == "..":
                raise ScoreError(f"{shown(path)} does not lie below --image-root {self.root}: name a folder above it")

    def url(self, path: str) -> str:
        """What Label Studio loads: an address as it is, a path percent-encoded behind the prefix."""
        return path if is_remote(path) else self.prefix + quote(os.fsencode(relative(path, self.root)), safe="/")

    def file(self, path: str) -> str:
        """What FiftyOne opens: an absolute path, or one relative to the root."""
        return shown(relative(path, self.root) if self.root is not None else slashes(os.path.abspath(path)))


def relative(path: str, root: Path | None) -> str:
    """`path` from `root`, or without the root of the file system, with slashes."""
    whole = os.path.abspath(path)
    if root is None:
        return slashes(whole).lstrip("/")
    return slashes(os.path.relpath(whole, os.path.abspath(root)))


def slashes(path: str, separator: str = os.sep) -> str:
    """A path as it stands in an address; a backslash is a separator on Windows alone."""
    return path.replace(separator, "/")


def shown(path: str) -> str:
    """A path as text: JSON for a database holds no lone surrogates, so bytes that are no UTF-8 are \\xff."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


# ---- Label Studio ----------------------------------------------------------------------------------------------------


def tasks(rows: Iterable[ResultRow], about: Mapping[str, Any], places: Places) -> Iterator[str]:
    """Lines of the file: a task for each row."""
    yield from _array((_task(row, str(about["bundle"]), places) for row in rows), "[", "]")


def _task(row: ResultRow, model: str, places: Places) -> dict[str, Any]:
    path = str(row["path"])
    data: dict[str, Any] = {IMAGE: places.url(path), "path": shown(path), "verdict": verdict(row)}
    data |= {name: value for name, value in row.items() if name not in HIDDEN and value is not None}
    if row["error"] is not None:
        return {"data": data, PREDICTIONS: []}
    data["predicted"] = row["label"]
    prediction: dict[str, Any] = {"model_version": model, "result": []}
    if row["decision"] == "accept":
        chosen = {"choices": [row["label"]]}
        prediction["score"] = row["probability"]
        prediction["result"] = [{"from_name": CHOICE, "to_name": IMAGE, "type": "choices", "value": chosen}]
    return {"data": data, PREDICTIONS: [prediction]}


def verdict(row: ResultRow) -> str:
    """A row in words, for the line above the picture."""
    if row["error"] is not None:
        return f"not read ({row['error']}): {row['error_detail']}"
    share = "" if row["probability"] is None else f", {float(row['probability']):.0%}"  # type: ignore[arg-type]
    if row["decision"] == "accept":
        return f"{row['label']}{share}"
    why = row.get("unfit") or row.get("reason")
    return f"refused{f' ({why})' if why else ''}; it would have been {row['label']}{share}"


HEADER = '<View>\n  <Header value="$verdict"/>\n'


def interface(classes: Sequence[str]) -> str:
    """The labelling interface of the tasks, to be pasted under Settings, Labeling Interface, Code."""
    choices = "\n".join(
        f"    <Choice value={quoteattr(name)}/>" for name in dict.fromkeys((*classes, OUTLIER_LABEL, UNSURE))
    )
    return (
        f'{HEADER}  <Image name="{IMAGE}" value="${IMAGE}"/>\n'
        f'  <Choices name="{CHOICE}" toName="{IMAGE}" choice="single">\n{choices}\n  </Choices>\n</View>\n'
    )


# ---- FiftyOne --------------------------------------------------------------------------------------------------------


def samples(
    rows: Iterable[ResultRow], kinds: Mapping[str, Type], about: Mapping[str, Any], places: Places
) -> Iterator[str]:
    """Lines of the file: what SampleCollection.write_json writes, with a sample for each row."""
    head = {
        "name": f"{about['bundle']} predictions",
        "media_type": "image",
        "info": {key: value for key, value in about.items() if key != "columns"},
        "sample_fields": dict(_schema(kinds)),
    }
    start = ENCODER.encode(head).removesuffix("}") + ',"samples":['
    yield from _array((_sample(row, places) for row in rows), start, "]}")


def _attributes(kinds: Iterable[str]) -> dict[str, str]:
    """Columns that become attributes of the label, by their names there, which hold no dot; of two that would be one
    (classes a.b and a_b) the second ends in _."""
    taken = (*HIDDEN, "probability", "error", "error_detail")
    names: dict[str, str] = {}  # attribute → column
    for column in kinds:
        if column not in taken:
            name = column.removeprefix("score_").replace(".", "_")
            while name in names:
                name += "_"
            names[name] = column
    return {column: name for name, column in names.items()}


def _schema(kinds: Mapping[str, Type]) -> Iterator[tuple[str, str]]:
    """The fields and their types, declared, so that all can be filtered by at once."""
    field, label = "fiftyone.core.fields", "fiftyone.core.labels.Classification"
    yield PREDICTIONS, f"{field}.EmbeddedDocumentField({label})"
    for column, name in _attributes(kinds).items():
        yield f"{PREDICTIONS}.{name}", f"{field}.{FIELDS[kinds[column]]}"
    for column in ("error", "error_detail"):
        yield column, f"{field}.StringField"
    if "embedding" in kinds:
        yield "embedding", f"{field}.{FIELDS['vector']}"


def _sample(row: ResultRow, places: Places) -> dict[str, Any]:
    # The kind is named, as FiftyOne would guess it from the suffix and refuse all where one is unknown to it.
    found: dict[str, Any] = {"filepath": places.file(str(row["path"])), "_media_type": "image"}
    if row["error"] is not None:
        return found | {"tags": ["error"], "error": row["error"], "error_detail": row["error_detail"]}
    attributes = {name: row[column] for column, name in _attributes(row).items()}
    tags = [row["decision"]]
    label = {"_cls": "Classification", "tags": tags, "label": row["label"], "confidence": row["probability"]}
    found |= {"tags": tags, PREDICTIONS: label | attributes}
    return found | ({"embedding": row["embedding"]} if "embedding" in row else {})


def _array(items: Iterable[dict[str, Any]], start: str, end: str) -> Iterator[str]:
    """The text of an array, an item a line."""
    yield start
    before = "\n"
    for item in items:
        yield before + ENCODER.encode(item)
        before = ",\n"
    yield f"\n{end}\n"
