"""What is done with the ledger's tables: append, label, tally, delete the oldest. See schema.py for them."""

import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from service.contract.bundle import Manifest
from service.errors import TailGuardError
from service.ledger import retention, schema
from service.ledger.audit import AuditKey
from service.ledger.database import Database
from service.ledger.forgetting import forget
from service.ledger.images import KeptImages, Stale
from service.ledger.labels import Labeller
from service.ledger.retention import ADD_BYTES, ENDS
from service.ledger.rows import (
    Asking,
    Entry,
    Forget,
    Item,
    Labels,
    ModelKey,
    RefusalKey,
    StoreNews,
    Tally,
    TallyKey,
    Written,
    key_of,
)
from service.ledger.store import key_of as store_key
from service.ledger.users import User, user

APPEND = """INSERT INTO decisions (time, request_id, position, model, operating_point, scope, label, class_group,
    decision, score, threshold, p_value, scores, api_key, client_id, by_deployment,
    image_key, embedding, sampled, sample_rate, keep_probability, reason, node)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
COUNT = """INSERT INTO tallies VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (model, operating_point, scope,
    by_deployment, label, decision, truth) DO UPDATE SET images = tallies.images + excluded.images"""
COUNT_REFUSAL = """INSERT INTO refusals VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (model, operating_point, scope,
    by_deployment, class_group, reason) DO UPDATE SET images = refusals.images + excluded.images"""
AUDIT = """SELECT d.model, d.sample_rate, d.operating_point, d.scope, d.by_deployment, d.label, d.decision, f.kind,
    COALESCE(f.label, ''), count(*) FROM decisions d LEFT JOIN feedback f
    ON f.row = (SELECT max(l.row) FROM feedback l WHERE l.decision_row = d.row)
    WHERE d.sampled = 1 GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9"""


class Tables:
    """The ledger through one connection; made anew with every connection."""

    def __init__(self, database: Database) -> None:
        """Make or migrate the tables. Raises SchemaError for those of a later version."""
        self._database = database
        self._models: dict[int, tuple[ModelKey, dict[str, str], float]] = {}
        self._numbers: dict[ModelKey, int] = {}
        self._known: dict[ModelKey, Manifest] = {}  # whose classes are written down
        self._labeller = Labeller(database, lambda number: self._model(number)[:2])
        self.images = KeptImages(database)
        schema.prepare(database)

    def write(self, batch: Sequence[Item]) -> Written:
        """Write the whole batch in its order, or nothing. Who asks for what is refused gets its error as the answer."""
        written = Written(sum(isinstance(item, Entry) for item in batch), [], [], {}, {}, [], [], [])
        with self._database.transaction():
            for is_entry, items in groupby(batch, lambda item: isinstance(item, Entry)):
                if is_entry:
                    self._append([item for item in items if isinstance(item, Entry)], written)
                    continue
                for item in items:
                    assert not isinstance(item, Entry)
                    if isinstance(item, StoreNews):
                        written.leaving.extend(self.images.hear(item))
                        continue
                    try:
                        written.answers.append((item, self._answer(item, written)))
                    except TailGuardError as error:
                        written.answers.append((item, error))
            for statement, tallied in ((COUNT, written.tallies), (COUNT_REFUSAL, written.refusals)):
                self._database.execute_many(statement, _counted(tallied))
        return written

    def tallies(self) -> dict[ModelKey, Tally]:
        """Everything counted, by all replicas that share this ledger."""
        self._read_models()
        tallies = {key: Tally(since, Counter(), Counter()) for key, _, since in self._models.values()}
        for model, point, scope, by_deployment, *rest, images in self._database.fetch("SELECT * FROM tallies"):
            key = TallyKey(point, scope, bool(by_deployment), *rest)
            tallies[self._model(model)[0]].images[key] = images
        for model, point, scope, by_deployment, *rest, images in self._database.fetch("SELECT * FROM refusals"):
            refusal = RefusalKey(point, scope, bool(by_deployment), *rest)
            tallies[self._model(model)[0]].refusals[refusal] = images
        return tallies

    def audit(self) -> dict[ModelKey, Counter[AuditKey]]:
        """The images of the audit sample whose rows are held, by their last label."""
        found: dict[ModelKey, Counter[AuditKey]] = {}
        for model, rate, point, scope, by_deployment, *rest, images in self._database.fetch(AUDIT):
            key = AuditKey(rate, point, scope, bool(by_deployment), *rest)
            found.setdefault(self._model(model)[0], Counter())[key] = images
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
        """Of the tables as the database stores them."""
        return self._database.size_bytes(schema.TABLE_NAMES)

    def trim(self, max_rows: int, before: float, max_bytes: int, now: float) -> tuple[int, list[str]]:
        """See retention.trim."""
        return retention.trim(self._database, self.images, max_rows, before, max_bytes, now)

    def newest(self, before: float) -> float | None:
        """See retention.newest."""
        return retention.newest(self._database, before)

    def trim_images(self, max_bytes: int, before: float) -> list[str]:
        """Have the oldest files beyond the limits leave; see KeptImages.trim."""
        with self._database.transaction():
            return self.images.trim(max_bytes, before)

    def stale_images(self) -> Stale:
        """See KeptImages.stale."""
        with self._database.transaction():
            return self.images.stale()

    def user(self, where: str) -> User:
        """By which the image store knows this ledger, which is at `where`."""
        return user(self._database, where)

    def close(self) -> None:
        self._database.close()

    def _append(self, entries: Iterable[Entry], written: Written) -> None:
        rows: list[tuple[Any, ...]] = []
        size = 0
        for e in entries:
            number = self._number(e.manifest, e.time)
            info = e.manifest.classes[e.verdict.class_index]
            point, scope, decision = e.verdict.operating_point, e.verdict.scope, e.verdict.decision
            finite = {name: value if math.isfinite(value) else None for name, value in e.scores.items()}
            rows.append(
                (e.time, e.request_id, e.position, number, point, scope, info.name, info.group, decision,
                 finite[e.manifest.deciding_score], e.verdict.threshold, e.verdict.p_value, json.dumps(finite), e.key,
                 e.client_id, int(e.by_deployment), self._arrive(e, written), e.embedding,
                 int(e.sample_rate is not None), e.sample_rate, e.keep_probability, e.verdict.reason, e.node)
            )  # fmt: skip
            size += schema.ROW_BYTES + len(e.embedding or b"")
            key = TallyKey(point, scope, e.by_deployment, info.name, decision, "")
            written.tallies.setdefault(number, Counter())[key] += 1
            if (reason := e.verdict.reason) is not None:
                refusal = RefusalKey(point, scope, e.by_deployment, info.group, reason)
                written.refusals.setdefault(number, Counter())[refusal] += 1
        self._database.execute_many(APPEND, rows)
        self._database.execute(ADD_BYTES, (size,))

    def _answer(self, item: Asking, written: Written) -> Any:
        if isinstance(item, Labels):
            return self._labeller.labels(item, written)
        if isinstance(item, Forget):
            return forget(self._database, self.images, self._labeller, item, written)
        return self._labeller.feedback(item, written)

    def _arrive(self, entry: Entry, written: Written) -> str | None:
        """The key under which the file of a row is kept, if it is."""
        if entry.image is None:
            return None
        key = store_key(entry.image)
        state = self.images.arrive(key, len(entry.image), time.time())
        if state is None:  # the same file is being deleted at this moment
            written.unkept.append(len(entry.image))
            return None
        written.arriving.append((key, entry.image, state == "kept"))
        return key

    def _number(self, manifest: Manifest, since: float) -> int:
        key = key_of(manifest)
        if manifest is self._known.get(key):
            return self._numbers[key]
        classes = {info.name: info.group for info in manifest.classes}
        self._database.execute(
            "INSERT INTO models (name, version, sha256, classes, since) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (name, version, sha256) DO NOTHING",
            (*key, json.dumps(classes), since),
        )
        self._read_models()
        number = self._numbers[key]
        before = self._models[number][1]
        if not classes.items() <= before.items():  # renamed under the same version: its earlier rows have the old names
            merged = json.dumps(before | classes)
            self._database.execute("UPDATE models SET classes = ? WHERE model = ?", (merged, number))
            self._read_models()
        self._known[key] = manifest
        return number

    def _model(self, number: int) -> tuple[ModelKey, dict[str, str], float]:
        if number not in self._models:
            self._read_models()
        return self._models[number]

    def _read_models(self) -> None:
        for number, name, version, sha256, classes, since in self._database.fetch(
            "SELECT model, name, version, sha256, classes, since FROM models"
        ):
            key = ModelKey(name, version, sha256)
            self._models[number], self._numbers[key] = (key, json.loads(classes), since), number


def _counted(tallied: Mapping[int, Mapping[Any, int]]) -> list[tuple[Any, ...]]:
    """Rows of tallies, or of refusals, that are counted up."""
    return [
        (number, point, scope, int(by_deployment), *rest, images)
        for number, counted in tallied.items()
        for (point, scope, by_deployment, *rest), images in counted.items()
    ]
