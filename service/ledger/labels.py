"""True labels in the ledger's tables: which row one is about, what it replaces, and what is counted from then on.

An image is known by request id and position in the request, or by its row. The service's own ids are unique; a client's
may repeat, and then mean the latest row of the same API key. The last label of a row counts: a correction is appended.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from service.contract.bundle import OUTLIER_LABEL
from service.contract.decision import Decision, Scope
from service.errors import Forbidden, InvalidParameter, NotFound
from service.ledger.database import Database
from service.ledger.rows import Feedback, FeedbackRecord, Labels, ModelKey, Source, TallyKey, Truth, Written, outcome

FIND = """SELECT d.api_key, d.row, d.model, d.operating_point, d.scope, d.by_deployment, d.label, d.class_group,
    d.decision, f.row, f.kind, f.label FROM decisions d LEFT JOIN feedback f
    ON f.row = (SELECT max(l.row) FROM feedback l WHERE l.decision_row = d.row)
    WHERE {which} ORDER BY d.row DESC LIMIT 1"""
BY_ROW = FIND.format(which="d.row = ?")
BY_REQUEST_ID = FIND.format(which="d.request_id = ? AND d.position = ?")
BY_CLIENT_ID = FIND.format(which="d.client_id = ? AND (? OR COALESCE(d.api_key, '') = ?) AND d.position = ?")
OTHERS = """SELECT 1 FROM decisions WHERE request_id = (SELECT request_id FROM decisions WHERE row = ?)
    AND position > 0 LIMIT 1"""
INSERT = """INSERT INTO feedback (time, decision_row, label, api_key, kind, source, group_id)
    VALUES (?, ?, ?, ?, ?, ?, ?)"""
NO_TRUTH = Truth("withdrawn", "")

ModelOf = Callable[
    [int], tuple[ModelKey, dict[str, str]]
]  # of a number, the model and the group of each of its classes


class Found(NamedTuple):
    """A decision beside the label that counts now."""

    api_key: str | None
    row: int
    model: int
    operating_point: str
    scope: Scope
    by_deployment: int
    label: str
    group: str
    decision: Decision
    label_row: int | None  # the number of that label
    truth: Truth


class Labeller:
    """Writes labels within a transaction of the ledger."""

    def __init__(self, database: Database, model_of: ModelOf) -> None:
        self._database, self._model_of = database, model_of

    def feedback(self, given: Feedback, written: Written) -> FeedbackRecord:
        """Label one image by its request. Raises NotFound, Forbidden, or InvalidParameter for a label not known."""
        found = self._of_request(given, given.position or 0)
        if given.position is None and self._database.fetch(OTHERS, (found.row,)):  # its first would get what is not its
            raise InvalidParameter(
                f"request {given.request_id} had several images: send index too, which of them in the order sent"
            )
        truth = Truth("outlier" if given.truth == OUTLIER_LABEL else "class", given.truth)
        self._check(found, truth)
        return self._label(found, truth, given.time, "feedback", None, given.key, written)

    def labels(self, given: Labels, written: Written) -> list[FeedbackRecord]:
        """Label rows, all or none; the records of those that are still held, in the order given, without those that
        keep a label: here, within the transaction, since another replica may have given it a moment ago.

        A new class that the deciding model of a row has is an ordinary class there. Raises InvalidParameter for a class
        that the deciding model of one of the rows lacks.
        """
        rows = [found for row in dict.fromkeys(given.decision_rows) if (found := self._one(BY_ROW, row)) is not None]
        if given.seen is not None:
            rows = [found for found in rows if found.label_row == given.seen.get(found.row)]
        if not given.again:
            rows = [found for found in rows if found.truth.kind == "withdrawn"]
        for found in rows:
            self._check(found, given.truth)
        records = []
        for found in rows:
            kind, label = given.truth
            if kind == "new" and label in self._model_of(found.model)[1]:
                kind = "class"
            truth = Truth(kind, label)
            records.append(self._label(found, truth, given.time, given.source, given.group_id, given.key, written))
        return records

    def forget(self, row: int, written: Written) -> None:
        """Delete the labels of a row; they no longer count, so that a label given later counts once."""
        if (found := self._one(BY_ROW, row)) is not None:
            self._count(found, NO_TRUTH, written)
            self._database.execute("DELETE FROM feedback WHERE decision_row = ?", (row,))

    def _one(self, statement: str, *values: Any) -> Found | None:
        rows = self._database.fetch(statement, values)
        if not rows:
            return None
        *decided, kind, label = rows[0]
        return Found._make([*decided, NO_TRUTH if kind is None else Truth(kind, label)])

    def _of_request(self, given: Feedback, position: int) -> Found:
        key = given.key or ""
        if found := self._one(BY_REQUEST_ID, given.request_id, position):
            if (found.api_key or "") != key and not given.may_review:
                raise Forbidden(
                    f"request {given.request_id} was sent with another API key: send feedback with that key, or with "
                    "one that has the review role"
                )
            return found
        if found := self._one(BY_CLIENT_ID, given.request_id, given.may_review, key, position):
            return found
        raise NotFound(
            f"the ledger holds no image {position} of request {given.request_id}: send the request_id of an "
            "answer, and index for an image of a batch; old rows are deleted"
        )

    def _check(self, found: Found, truth: Truth) -> None:
        model, classes = self._model_of(found.model)
        if truth.kind == "class" and truth.label not in classes:
            raise InvalidParameter(
                f"label={truth.label[:100]!r} is no class of {model.name} version {model.version}, which decided "
                f"that request: send one of {', '.join(classes)}, or {OUTLIER_LABEL}"
            )

    def _label(
        self,
        found: Found,
        truth: Truth,
        time: float,
        source: Source,
        group_id: str | None,
        key: str | None,
        written: Written,
    ) -> FeedbackRecord:
        if truth != found.truth:
            self._database.execute(INSERT, (time, found.row, truth.label, key, truth.kind, source, group_id))
        self._count(found, truth, written)
        return self._record(found, truth)

    def _count(self, found: Found, truth: Truth, written: Written) -> None:
        """Count a row's new label in the place of the one before."""
        for before_or_after, change in ((found.truth, -1), (truth, 1)):
            counted = before_or_after.counted
            if counted is not None and found.truth.counted != truth.counted:
                written.feedback.append((self._record(found, before_or_after), change))
                by_deployment = bool(found.by_deployment)
                tally = TallyKey(
                    found.operating_point, found.scope, by_deployment, found.label, found.decision, counted
                )
                written.tallies.setdefault(found.model, Counter())[tally] += change

    def _record(self, found: Found, truth: Truth) -> FeedbackRecord:
        counted = truth.counted
        return FeedbackRecord(
            row=found.row,
            model=self._model_of(found.model)[0],
            label=found.label,
            group=found.group,
            decision=found.decision,
            kind=truth.kind,
            truth=counted or "",
            outcome=None if counted is None else outcome(found.label, counted),
            by_deployment=bool(found.by_deployment),
            operating_point=found.operating_point,
            scope=found.scope,
        )
