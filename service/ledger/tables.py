"""The ledger's tables, and the few things done with them: append, look up for feedback, tally, delete the oldest.

    decisions   one row for each classified image
    feedback    one row for each true label told; the last one of an image holds, the ones before stay
    tallies     images by predicted label, decision and true label ('' until one is told), changed in the transaction
                that appends, so that they always agree; what retention deletes stays counted
    models      which bundle decided, with its classes

An image is known by request id and position in the request. Clients choose request ids, so they may repeat: the
latest row is the one meant.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby

from service.contract.bundle import Group, Manifest
from service.errors import InvalidParameter, NotFound, TailGuardError
from service.ledger.database import Database
from service.ledger.rows import (
    OUTLIER,
    Entry,
    Feedback,
    FeedbackRecord,
    ModelKey,
    Tally,
    TallyKey,
    Written,
    key_of,
    outcome,
)

CHUNK_ROWS = 1000  # per transaction, so that nobody waits long for one to end
TABLES = ("decisions", "feedback", "tallies", "models")
SCHEMA = (
    """CREATE TABLE IF NOT EXISTS models (
        model {id}, name TEXT NOT NULL, version TEXT NOT NULL, sha256 TEXT NOT NULL, classes TEXT NOT NULL,
        since DOUBLE PRECISION NOT NULL, UNIQUE (name, version, sha256))""",
    """CREATE TABLE IF NOT EXISTS decisions (
        row {id}, time DOUBLE PRECISION NOT NULL, request_id TEXT NOT NULL, position INTEGER NOT NULL,
        model BIGINT NOT NULL, operating_point TEXT NOT NULL, scope TEXT NOT NULL,
        label TEXT NOT NULL, class_group TEXT NOT NULL, decision TEXT NOT NULL,
        score DOUBLE PRECISION, threshold DOUBLE PRECISION NOT NULL, p_value DOUBLE PRECISION NOT NULL,
        scores TEXT NOT NULL, api_key TEXT, image {blob})""",
    "CREATE INDEX IF NOT EXISTS decisions_request ON decisions (request_id, position{newest})",
    """CREATE TABLE IF NOT EXISTS feedback (
        row {id}, time DOUBLE PRECISION NOT NULL, decision_row BIGINT NOT NULL, label TEXT NOT NULL, api_key TEXT)""",
    "CREATE INDEX IF NOT EXISTS feedback_decision ON feedback (decision_row{newest})",
    """CREATE TABLE IF NOT EXISTS tallies (
        model BIGINT NOT NULL, operating_point TEXT NOT NULL, scope TEXT NOT NULL, label TEXT NOT NULL,
        decision TEXT NOT NULL, truth TEXT NOT NULL, images BIGINT NOT NULL,
        PRIMARY KEY (model, operating_point, scope, label, decision, truth))""",
)
APPEND = """INSERT INTO decisions (time, request_id, position, model, operating_point, scope, label, class_group,
    decision, score, threshold, p_value, scores, api_key, image) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
FIND = """SELECT d.row, d.model, d.operating_point, d.scope, d.label, d.class_group, d.decision,
    (SELECT f.label FROM feedback f WHERE f.decision_row = d.row ORDER BY f.row DESC LIMIT 1)
    FROM decisions d WHERE d.request_id = ? AND d.position = ? ORDER BY d.row DESC LIMIT 1"""
INSERT_FEEDBACK = "INSERT INTO feedback (time, decision_row, label, api_key) VALUES (?, ?, ?, ?)"
TALLY = """INSERT INTO tallies VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (model, operating_point, scope, label, decision,
    truth) DO UPDATE SET images = tallies.images + excluded.images"""
ENDS = "SELECT (SELECT min(row) FROM decisions), (SELECT max(row) FROM decisions)"  # each from the end of the index


class Tables:
    """The ledger through one connection; made anew with every connection."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._models: dict[int, tuple[ModelKey, dict[str, Group], float]] = {}
        self._numbers: dict[ModelKey, int] = {}
        with database.transaction():
            for statement in SCHEMA:
                database.execute(statement.format(**database.words))

    def write(self, batch: Sequence[Entry | Feedback]) -> Written:
        """Append all of it in its order, or nothing. Feedback that means nothing is answered, and no error here."""
        written = Written(sum(isinstance(item, Entry) for item in batch), [], [], {})
        with self._database.transaction():
            for kind, items in groupby(batch, type):
                if kind is Entry:
                    self._append([item for item in items if isinstance(item, Entry)], written)
                else:
                    for item in items:
                        assert isinstance(item, Feedback)
                        try:
                            written.answers.append((item, self._record_feedback(item, written)))
                        except TailGuardError as error:
                            written.answers.append((item, error))
            self._database.execute_many(
                TALLY, [(n, *key, images) for n, found in written.tallies.items() for key, images in found.items()]
            )
        return written

    def tallies(self) -> dict[ModelKey, Tally]:
        """Everything counted, by all replicas that share this ledger."""
        self._read_models()
        found = {key: Tally(since, Counter()) for key, _, since in self._models.values()}
        for model, point, scope, label, decision, truth, images in self._database.fetch("SELECT * FROM tallies"):
            found[self._model(model)[0]].images[TallyKey(point, scope, label, decision, truth)] = images
        return found

    def model(self, number: int) -> tuple[ModelKey, float]:
        """Which model has this number, and since when it is in the ledger."""
        key, _, since = self._model(number)
        return key, since

    def held_rows(self) -> int:
        """Rows between the oldest and the newest; PostgreSQL leaves numbers out now and then, SQLite does not."""
        oldest, newest = self._database.fetch(ENDS)[0]
        return 0 if oldest is None else int(newest - oldest + 1)

    def size_bytes(self) -> int:
        return self._database.size_bytes(TABLES)

    def trim(self, max_rows: int, max_age_s: float) -> int:
        """Delete, with their feedback, at most CHUNK_ROWS of the oldest rows that are too many or too old; how many."""
        oldest, newest = self._database.fetch(ENDS)[0]
        if oldest is None:
            return 0
        last = min(oldest + CHUNK_ROWS - 1, newest)
        aged = self._database.fetch(
            "SELECT max(row) FROM decisions WHERE row <= ? AND time < ?", (last, time.time() - max_age_s)
        )[0][0]
        last = max(min(last, newest - max_rows), -1 if aged is None else aged)
        if last < oldest:
            return 0
        with self._database.transaction():
            self._database.execute("DELETE FROM feedback WHERE decision_row <= ?", (last,))
            self._database.execute("DELETE FROM decisions WHERE row <= ?", (last,))
        return int(last - oldest + 1)

    def close(self) -> None:
        self._database.close()

    def _append(self, entries: Iterable[Entry], written: Written) -> None:
        rows = []
        for time_s, request_id, position, manifest, scores, verdict, key, image in entries:
            number = self._number(manifest, time_s)
            info = manifest.classes[verdict.class_index]
            point, scope, decision = verdict.operating_point, verdict.scope, verdict.decision
            finite = {name: value if math.isfinite(value) else None for name, value in scores.items()}
            rows.append(
                (time_s, request_id, position, number, point, scope, info.name, info.group, decision,
                 finite[manifest.deciding_score], verdict.threshold, verdict.p_value, json.dumps(finite), key, image)
            )  # fmt: skip
            written.tallies.setdefault(number, Counter())[TallyKey(point, scope, info.name, decision, "")] += 1
        self._database.execute_many(APPEND, rows)

    def _record_feedback(self, feedback: Feedback, written: Written) -> FeedbackRecord:
        found = self._database.fetch(FIND, (feedback.request_id, feedback.position))
        if not found:
            raise NotFound(
                f"the ledger holds no image {feedback.position} of request {feedback.request_id}: send the request_id "
                "of an answer, and index for an image of a batch; old rows are deleted"
            )
        row, number, point, scope, label, group, decision, before = found[0]
        model, classes, _ = self._model(number)

        def record(truth: str) -> FeedbackRecord:
            return FeedbackRecord(model, label, group, decision, truth, outcome(label, truth))

        if feedback.truth != OUTLIER and feedback.truth not in classes:
            raise InvalidParameter(
                f"label={feedback.truth[:100]!r} is no class of {model.name} version {model.version}, which decided "
                f"that request: send one of {', '.join(classes)}, or {OUTLIER}"
            )
        if feedback.truth == before:
            return record(before)
        self._database.execute(INSERT_FEEDBACK, (feedback.time, row, feedback.truth, feedback.key))
        for truth, change in ((before, -1), (feedback.truth, 1)):
            if truth is not None:
                written.feedback.append((record(truth), change))
                written.tallies.setdefault(number, Counter())[TallyKey(point, scope, label, decision, truth)] += change
        return record(feedback.truth)

    def _number(self, manifest: Manifest, since: float) -> int:
        key = key_of(manifest)
        if key not in self._numbers:
            classes = json.dumps({info.name: info.group for info in manifest.classes})
            self._database.execute(
                "INSERT INTO models (name, version, sha256, classes, since) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (name, version, sha256) DO NOTHING",
                (*key, classes, since),
            )
            self._read_models()
        return self._numbers[key]

    def _model(self, number: int) -> tuple[ModelKey, dict[str, Group], float]:
        if number not in self._models:
            self._read_models()
        return self._models[number]

    def _read_models(self) -> None:
        for number, name, version, sha256, classes, since in self._database.fetch(
            "SELECT model, name, version, sha256, classes, since FROM models"
        ):
            key = ModelKey(name, version, sha256)
            self._models[number], self._numbers[key] = (key, json.loads(classes), since), number
