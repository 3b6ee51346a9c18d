"""Read what the ledger keeps beside the thread that writes it: kept rows with their labels and embeddings, images.

A connection of its own that can only read. SQLite's readers do not lock its writer (WAL); PostgreSQL's are in a
read-only session. Rows come in the order in which they were written, so `after_row` reads on where one stopped.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.contract.decision import Decision, Scope
from service.contract.reasons import Reason
from service.ledger import schema
from service.ledger.database import connect
from service.ledger.rows import Kind, ModelKey, Source, unpacked
from service.ledger.store import Store

CHUNK_ROWS = 1000
SELECT = """SELECT d.row, d.time, d.request_id, d.position, m.name, m.version, m.sha256, d.operating_point, d.scope,
    d.by_deployment, d.label, d.class_group, d.decision, d.score, d.threshold, d.p_value, d.scores, d.api_key,
    d.image_key, d.embedding, d.sample_rate, d.keep_probability, d.reason, d.node,
    f.kind, f.label, f.source, f.group_id, f.api_key, f.time, f.row
    FROM decisions d JOIN models m ON m.model = d.model LEFT JOIN feedback f
    ON f.row = (SELECT max(l.row) FROM feedback l WHERE l.decision_row = d.row) """
KEPT = SELECT + "WHERE d.row > ? AND d.keep_probability IS NOT NULL ORDER BY d.row LIMIT ?"
LABELLED_ROWS = "SELECT DISTINCT decision_row FROM feedback WHERE decision_row > ? ORDER BY decision_row LIMIT ?"
LABELLED = SELECT + f"WHERE d.row IN ({LABELLED_ROWS}) ORDER BY d.row"
BY_ROW = SELECT + "WHERE d.row = ?"
BY_REQUEST = SELECT + "WHERE d.request_id = ? AND d.position = ? ORDER BY d.row DESC LIMIT 1"


class Label(NamedTuple):
    """The label that counts. `label`: a class, known or new; "outlier"; '' for 'unsure'."""

    kind: Kind
    label: str
    source: Source
    group_id: str | None
    reviewer: str | None  # the name of an API key
    time: float
    number: int  # grows with every label, whatever the clock says


class DecidedRow(NamedTuple):
    """One classified image as it was answered, what is kept of it, and its label; see Entry and schema.py."""

    row: int
    time: float
    request_id: str
    position: int  # in the request
    model: ModelKey
    operating_point: str
    scope: Scope
    by_deployment: bool
    predicted: str
    group: str
    decision: Decision
    score: float | None  # None: not finite
    threshold: float
    p_value: float
    scores: dict[str, float | None]
    api_key: str | None
    image_key: str | None
    embedding: NDArray[np.float32] | None  # [D], unit-norm
    sample_rate: float | None  # of the audit sample, for a row in it
    keep_probability: float | None  # None: not kept
    reason: Reason | None  # of a refusal, where the bundle told it
    node: str | None  # the path that a refusal was told, '' for none; None: not asked for, or not noted
    label: Label | None

    @property
    def sampled(self) -> bool:
        return self.sample_rate is not None


class Reader:
    """Raises the driver's errors, and SchemaError for tables of another version. Any thread may call it, in turn."""

    def __init__(self, where: str, store: Store | None = None) -> None:
        self._database = connect(where, read_only=True)
        self._store = store
        self._lock = threading.Lock()
        try:
            schema.check(self._database)
        except BaseException:
            self._database.close()
            raise

    def kept(self, after_row: int = 0, limit: int = CHUNK_ROWS) -> list[DecidedRow]:
        """At most `limit` kept rows with a number above `after_row`."""
        return [_decided(row) for row in self.fetch(KEPT, (after_row, limit))]

    def labelled(self, after_row: int = 0) -> Iterator[DecidedRow]:
        """Every row that has a label, kept or not; of several labels the last, and none whose last was taken back."""
        while rows := self.fetch(LABELLED, (after_row, CHUNK_ROWS)):
            after_row = rows[-1][0]
            yield from (decided for row in rows if (decided := _decided(row)).label is not None)

    def row(self, number: int) -> DecidedRow | None:
        """The row of this number."""
        rows = self.fetch(BY_ROW, (number,))
        return _decided(rows[0]) if rows else None

    def of_request(self, request_id: str, position: int = 0) -> DecidedRow | None:
        """The row of one image of a request, by the service's own id."""
        rows = self.fetch(BY_REQUEST, (request_id, position))
        return _decided(rows[0]) if rows else None

    def image(self, key: str) -> bytes | None:
        """The file, as it was sent; None when it is not there (any more, or yet). Raises ValueError for no key."""
        return None if self._store is None else self._store.get(key)

    def thumbnail(self, key: str) -> bytes | None:
        """A small JPEG; None and ValueError as for `image`."""
        return None if self._store is None else self._store.thumbnail(key)

    def fetch(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of any statement that reads; see database.py for how it is written."""
        with self._lock:
            return self._database.fetch(statement, values)

    def close(self) -> None:
        with self._lock:
            self._database.close()


def _decided(found: tuple[Any, ...]) -> DecidedRow:
    decided, label = list(found[:-7]), found[-7:]
    decided[4:7] = [ModelKey(*found[4:7])]
    for place, read in ((7, bool), (14, json.loads), (17, _vector)):
        decided[place] = read(decided[place])
    return DecidedRow._make([*decided, None if label[0] in (None, "withdrawn") else Label._make(label)])


def _vector(embedding: bytes | None) -> NDArray[np.float32] | None:
    found = unpacked(embedding)
    return None if found is None else found.astype(np.float32)
