"""What the review reads and writes in the ledger's database, through a connection of its own.

Labels are written by the ledger's thread (Ledger.label), so that tallies and metrics stay right; groups and claims are
of nobody else's concern and are written here. Statements as in service/ledger/schema.py.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.contract.reasons import Reason
from service.ledger.database import Database
from service.ledger.rows import Kind, ModelKey, Source, unpacked

CHUNK_ROWS = 500  # of one statement, and of one transaction: nobody waits long for it to end
MOST_AT_ONCE = 1000  # labels of one action, and of others that came between them
LOOK_BACK = 5000  # labels, for the last one that can be undone
LONGEST_S = 600.0  # of a claim, with what the clocks of replicas differ by: a later one is of a wrong clock
LOOKED_AT = "image_key IS NOT NULL AND keep_probability IS NOT NULL AND (decision = 'reject' OR sampled = 1)"
NEWEST = f"SELECT row FROM decisions WHERE {LOOKED_AT} ORDER BY row DESC LIMIT ?"
ITEMS = """SELECT d.row, d.time, d.request_id, d.position, d.label, d.class_group, d.decision, d.score, d.p_value,
    d.image_key, d.embedding, d.sampled, d.keep_probability, d.api_key, m.name, m.version, m.sha256, d.reason, d.node
    FROM decisions d JOIN models m ON m.model = d.model WHERE d.row IN ({marks}) AND d.image_key IS NOT NULL
    ORDER BY d.row"""
TRUTHS = """SELECT row, decision_row, time, kind, label, api_key, source, group_id FROM feedback
    WHERE row > ? AND decision_row >= ? ORDER BY row LIMIT ?"""
LABEL = """SELECT row, decision_row, time, kind, label, api_key, source, group_id FROM feedback WHERE row = ?"""
HISTORY = """SELECT row, decision_row, time, kind, label, api_key, source, group_id FROM feedback
    WHERE decision_row IN ({marks}) ORDER BY row"""
GIVEN_BY = """SELECT row, decision_row, time, kind, label, api_key, source, group_id FROM feedback
    WHERE row <= ? AND source = 'review' AND kind <> 'withdrawn' AND COALESCE(api_key, '') = ?
    ORDER BY row DESC LIMIT ?"""
GIVEN_AT = """SELECT row, decision_row, time, kind, label, api_key, source, group_id FROM feedback
    WHERE row > ? AND row <= ? AND source = 'review' AND COALESCE(api_key, '') = ? AND time = ? ORDER BY row"""
GROUP = """INSERT INTO review_groups (decision_row, group_id) VALUES (?, ?)
    ON CONFLICT (decision_row) DO UPDATE SET group_id = excluded.group_id"""
CLAIM = """INSERT INTO claims (item, reviewer, until) VALUES (?, ?, ?) ON CONFLICT (item) DO UPDATE
    SET reviewer = excluded.reviewer, until = excluded.until WHERE claims.reviewer = excluded.reviewer
    OR claims.until < ?"""


class Item(NamedTuple):
    """A kept image. `embedding` is float16 [D], unit-norm; None where the bundle gives none."""

    row: int
    time: float
    request_id: str
    position: int
    predicted: str
    class_group: str
    decision: str
    score: float | None
    p_value: float
    image_key: str
    embedding: NDArray[np.float16] | None
    sampled: bool
    keep_probability: float
    sender: str | None  # the name of the API key
    model: ModelKey
    reason: Reason | None = None  # of a rejection, where the bundle told it
    node: str | None = None  # of a taxonomy, told of a rejection; '': nothing could be promised


class Label(NamedTuple):
    """One row of feedback. `row` grows with every label; `key` names who gave it."""

    row: int
    decision_row: int
    time: float
    kind: Kind
    label: str
    key: str | None
    source: Source
    group_id: str | None


class Claim(NamedTuple):
    """Somebody looks at an item until then, in seconds since the epoch."""

    reviewer: str
    until: float


def newest(database: Database, most: int) -> list[int]:
    """The rows to be looked at, or looked at already: rejected or sampled ones whose image is kept; ascending."""
    return [int(row) for (row,) in reversed(database.fetch(NEWEST, (most,)))]


def items(database: Database, rows: Iterable[int]) -> list[Item]:
    """Those of `rows` that are held, ascending."""
    found = []
    for chunk in _chunks(rows):
        for values in database.fetch(ITEMS.format(marks=_marks(chunk)), chunk):
            *first, embedding, sampled, probability, sender, name, version, sha256, reason, node = values
            vector, model = unpacked(embedding), ModelKey(name, version, sha256)
            last = (vector, bool(sampled), probability, sender, model, reason, node)
            found.append(Item._make((*first, *last)))
    return found


def labels_after(database: Database, label_row: int, oldest_decision: int) -> Iterator[Label]:
    """Every label after `label_row` about a decision from `oldest_decision` on, in the order given."""
    while page := database.fetch(TRUTHS, (label_row, oldest_decision, CHUNK_ROWS)):
        yield from (Label(*values) for values in page)
        label_row = page[-1][0]


def label(database: Database, label_row: int) -> Label | None:
    """The label of this number; None where it was forgotten with its image."""
    found = database.fetch(LABEL, (label_row,))
    return Label(*found[0]) if found else None


def history(database: Database, rows: Iterable[int]) -> dict[int, list[Label]]:
    """All labels of each decision in the order given; decisions without one are left out."""
    found: dict[int, list[Label]] = {}
    for chunk in _chunks(rows):
        for values in database.fetch(HISTORY.format(marks=_marks(chunk)), chunk):
            label = Label(*values)
            found.setdefault(label.decision_row, []).append(label)
    return found


def given_by(database: Database, key: str | None, action: int | None) -> Iterator[Label]:
    """The labels that a reviewer gave here, the last first; `action`: that one alone."""
    last, most = (2**62, LOOK_BACK) if action is None else (action, 1)
    for values in database.fetch(GIVEN_BY, (last, key or "", most)):
        label = Label(*values)
        if action is None or label.row == action:
            yield label


def given_at(database: Database, key: str | None, time: float, last: int) -> list[Label]:
    """The labels that a reviewer gave at one time, up to the label `last`: those of one action."""
    return [Label(*values) for values in database.fetch(GIVEN_AT, (last - MOST_AT_ONCE, last, key or "", time))]


def groups(database: Database) -> dict[int, str]:
    """The group of every row that has one."""
    return {int(row): group for row, group in database.fetch("SELECT decision_row, group_id FROM review_groups")}


def write_groups(database: Database, changed: Mapping[int, str | None]) -> None:
    """Put each row into its group; None takes it out of the one it is in."""
    for chunk in _chunks(changed):
        put = [(row, group) for row in chunk if (group := changed[row]) is not None]
        out = [(row,) for row in chunk if changed[row] is None]
        with database.transaction():
            if put:
                database.execute_many(GROUP, put)
            if out:
                database.execute_many("DELETE FROM review_groups WHERE decision_row = ?", out)


def has_image(database: Database, key: str) -> bool:
    """Whether a row of this ledger keeps the image of this key."""
    return bool(database.fetch("SELECT 1 FROM decisions WHERE image_key = ? LIMIT 1", (key,)))


def classes_of(database: Database, rows: Sequence[int]) -> list[set[str]]:
    """The classes of each model that decided one of the rows."""
    found = database.fetch(
        f"SELECT classes FROM models WHERE model IN (SELECT model FROM decisions WHERE row IN ({_marks(rows)}))", rows
    )
    return [{*json.loads(classes)} for (classes,) in found]


def rows_of(database: Database, key: str) -> list[int]:
    """The rows whose image's key begins with `key`."""
    found = database.fetch(
        "SELECT row FROM decisions WHERE image_key >= ? AND image_key < ? AND image_key IS NOT NULL", (key, key + "g")
    )
    return [int(row) for (row,) in found]


def claim(database: Database, wanted: Sequence[str], reviewer: str, now: float, seconds: float) -> dict[str, Claim]:
    """Take items that nobody else holds, for so many seconds from now; whose each of them is then."""
    with database.transaction():
        database.execute("DELETE FROM claims WHERE until < ? OR until > ?", (now, now + LONGEST_S))
        database.execute_many(CLAIM, [(item, reviewer, now + seconds, now) for item in wanted])
        held = claims(database, now)
    return {item: held[item] for item in wanted}


def release(database: Database, wanted: Sequence[str], reviewer: str) -> None:
    """Free what this reviewer holds of the items."""
    with database.transaction():
        database.execute_many("DELETE FROM claims WHERE item = ? AND reviewer = ?", [(i, reviewer) for i in wanted])


def claims(database: Database, now: float) -> dict[str, Claim]:
    """Every claim that holds."""
    within = (now, now + LONGEST_S)
    found = database.fetch("SELECT item, reviewer, until FROM claims WHERE until BETWEEN ? AND ?", within)
    return {item: Claim(reviewer, until) for item, reviewer, until in found}


def _chunks(rows: Iterable[int]) -> Iterator[list[int]]:
    rest = iter(rows)
    while chunk := list(islice(rest, CHUNK_ROWS)):
        yield chunk


def _marks(chunk: Sequence[Any]) -> str:
    return ", ".join("?" * len(chunk))
