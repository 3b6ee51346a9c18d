"""Labels that were given elsewhere: the JSON exports of Label Studio and of FiftyOne, to labels of kept images.

    Label Studio, JSON         [{"data": {"image": "…/0123456789abcdef.jpg"}, "annotations": [{"result": [
                                 {"type": "choices", "value": {"choices": ["cat"]}}]}]}]
    Label Studio, JSON-MIN     [{"image": "…", "choice": "cat"}]
    FiftyOne, classification   {"classes": ["cat"], "labels": {"0123456789abcdef": 0}}
    FiftyOne, whole dataset    {"samples": [{"filepath": "…", "ground_truth": {
                                 "_cls": "Classification", "label": "cat"}}]}

An image is known by its file's name, which begins with its key, as an export names it; whatever a tool has put before
the name or behind it does not matter.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from service.contract.bundle import OUTLIER_LABEL
from service.contract.once import named_once
from service.errors import InvalidParameter, MalformedRequest
from service.ledger.database import Database
from service.ledger.rows import Truth
from service.review import names, tables

KEY = re.compile(r"(?<![0-9a-f])(?:[0-9a-f]{64}|[0-9a-f]{16})(?![0-9a-f])")
LOCAL_FILES = "/data/local-files/?d="  # of Label Studio, followed by a path below its LOCAL_FILES_DOCUMENT_ROOT
OUTLIERS, UNSURE = {OUTLIER_LABEL, "outliers"}, {"unsure", "not sure"}
PREDICTED = ("predictions", "prediction")  # of FiftyOne: what a model said is no label that somebody gave
FIELDS = ("choice", "label", "class")  # of JSON-MIN: it is called as the labelling interface calls it
FORMATS = "Label Studio's JSON or FiftyOne's labels.json or samples.json"
NEW = """SELECT DISTINCT f.label FROM feedback f WHERE f.kind = 'new'
    AND f.row = (SELECT max(l.row) FROM feedback l WHERE l.decision_row = f.decision_row)"""


class Given(NamedTuple):
    """What a file says of one image; `label` None: nothing, or several things."""

    file: str
    label: str | None
    also: tuple[str, ...] = ()  # what `tailguard score` has named the file by, the surest first


class Plan(NamedTuple):
    """What an import will do. `labels`: the rows of the ledger to label, by what they are said to show."""

    labels: dict[Truth, list[int]]
    already: int  # images that have a label, which stays
    unknown: list[str]  # files that are no kept image
    skipped: int  # entries without one label


def read(text: bytes) -> list[Given]:
    """What a file of one of the FORMATS says. Raises MalformedRequest, InvalidParameter for any other."""
    try:
        found = json.loads(text, object_pairs_hook=named_once)
    except (ValueError, RecursionError) as error:
        raise MalformedRequest(f"the file is not JSON ({error}): send {FORMATS}") from error
    try:
        if isinstance(found, list):
            return [_task(task) for task in found]
        if isinstance(found, dict) and isinstance(found.get("samples"), list):
            return [_sample(sample) for sample in found["samples"]]
        if isinstance(found, dict) and isinstance(found.get("labels"), dict):
            return list(_classification(found))
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        raise InvalidParameter(f"the file is not as {FORMATS} has it: {type(error).__name__} {error}") from error
    raise InvalidParameter(f"the file is none that is known here: send {FORMATS}")


def plan(database: Database, given: list[Given]) -> Plan:
    """Which rows get which label. A class is named as a new one: where the deciding model has it, the ledger takes it
    as that class. Raises InvalidParameter for a label that can be no class's name, and for an image with two."""
    classes = {name for (held,) in database.fetch("SELECT classes FROM models") for name in json.loads(held)}
    classes.update(name for (name,) in database.fetch(NEW))
    made = Plan({}, 0, [], sum(entry.label is None for entry in given))
    already = 0
    said: dict[int, Truth] = {}
    for entry in given:
        if entry.label is None:
            continue
        meant = truth(entry.label, classes)
        if meant.kind in ("class", "new"):
            meant = Truth("new", meant.label)
            classes.add(meant.label)  # Sea slug is the sea slug of the line before
        rows = [row for key in KEY.findall(entry.file.lower())[-1:] for row in tables.rows_of(database, key)]
        if not rows:
            made.unknown.append(entry.file)
        last = {row: labels[-1] for row, labels in tables.history(database, rows).items()}
        free = [row for row in rows if row not in last or last[row].kind == "withdrawn"]
        already += bool(rows) and not free
        for row in free:
            if (before := said.setdefault(row, meant)) != meant:
                raise InvalidParameter(f"{entry.file[:100]!a} is said to show {before.label!a} and {meant.label!a}: "
                                       "give it one label")  # fmt: skip
        made.labels.setdefault(meant, []).extend(free)
    return made._replace(already=already, labels={meant: rows for meant, rows in made.labels.items() if rows})


def way_out(label: str) -> bool:
    """Whether a label names no class, but an outlier or somebody's doubt."""
    return label.casefold() in OUTLIERS | UNSURE


def truth(label: str, classes: set[str]) -> Truth:
    """What a label means, where there are these classes. InvalidParameter for what can be no new class's name."""
    if label in classes:
        return Truth("class", label)
    if label.casefold() in OUTLIERS:
        return Truth("outlier", OUTLIER_LABEL)
    if label.casefold() in UNSURE:
        return Truth("unsure", "")
    name = names.checked(label, classes)
    return Truth("class" if name in classes else "new", name)  # Cat is cat, where there is such a class


def _task(task: dict[str, Any]) -> Given:
    """Of Label Studio. The last annotation counts; one that was cancelled does not."""
    if "data" not in task:
        return Given(_file(task), _text(next((task[field] for field in FIELDS if field in task), None)), _scored(task))
    done = [a for a in task.get("annotations", task.get("completions", [])) if not a.get("was_cancelled")]
    choices = [c for r in (done[-1]["result"] if done else []) for c in r["value"].get("choices", [])]
    return Given(_file(task["data"]), _text(choices[0]) if len(choices) == 1 else None, _scored(task["data"]))


def _text(label: object) -> str | None:
    return label if isinstance(label, str) else None


def _scored(data: dict[str, Any]) -> tuple[str, ...]:
    return tuple(text for name in ("image", "path") if isinstance(text := data.get(name), str))


def _file(data: dict[str, Any]) -> str:
    """The value that names an image: the one with a key in it, or any."""
    texts = [value for value in data.values() if isinstance(value, str)]
    return next((text for text in texts if KEY.search(text.lower())), texts[0] if texts else "")


def _sample(sample: dict[str, Any]) -> Given:
    """Of FiftyOne: ground_truth, or else the only field that is a classification, and not a model's."""
    fields = {
        k: v
        for k, v in sample.items()
        if isinstance(v, dict) and v.get("_cls") == "Classification" and k not in PREDICTED
    }
    chosen = fields.get("ground_truth") or (next(iter(fields.values())) if len(fields) == 1 else None)
    return Given(str(sample["filepath"]), _text(chosen.get("label")) if chosen else None)


def _classification(found: dict[str, Any]) -> Iterator[Given]:
    classes = found.get("classes") or []
    for file, target in found["labels"].items():
        label = target.get("label") if isinstance(target, dict) else target
        if isinstance(label, int) and not isinstance(label, bool):
            if not 0 <= label < len(classes):
                raise InvalidParameter(f"the label of {file[:100]!a} is {label}, and there are {len(classes)} classes")
            label = classes[label]
        yield Given(str(file), _text(label))
