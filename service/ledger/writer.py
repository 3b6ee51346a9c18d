"""The ledger: every decision and every true label, written by one thread that no request waits for.

    ledger.record(entry)              # on the request path: an append to a queue in memory, some microseconds
    await ledger.record_feedback(...) # answered once it is committed

The thread writes the queue in one transaction, a fifth of a second after its first row came, and deletes the oldest
rows beyond `ledger_max_rows`, `ledger_max_age_days` and `ledger_max_bytes`, a thousand at a time. A database that is
locked, full or unreachable fails no classification: rows stay in the queue, failed attempts are counted and logged, and
rows that come while the queue is full are dropped and counted. TERM writes what is queued; KILL loses what was not yet
committed (less than a second's rows) and damages nothing. When a connection breaks during a commit of PostgreSQL, the
batch is written again, so its rows may be there twice.

Files that the policy keeps (policy.py) ride in their rows to that thread, which knows them by their hash and hands them
to the thread of the image store (keeper.py); images.py says how rows and files stay in agreement.

Several replicas: each with a file of its own knows only the requests that it answered, so feedback must reach the
replica that did. With one PostgreSQL database for all, feedback may go to any of them.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import TypeVar

import structlog

from service.contract.bundle import OUTLIER_LABEL, Manifest
from service.contract.decision import Scope
from service.contract.lines import one_line
from service.errors import InvalidParameter, NotReady
from service.ledger.audit import Audit, audit
from service.ledger.database import MEMORY, check, shared_memory
from service.ledger.keeper import Keeper
from service.ledger.policy import Policy
from service.ledger.queue import UNAVAILABLE, Queue
from service.ledger.reading import Reader
from service.ledger.rows import (
    Entry,
    Feedback,
    FeedbackRecord,
    Forget,
    Kind,
    Labels,
    Source,
    Tally,
    Truth,
)
from service.ledger.schema import of_database
from service.ledger.store import open_store
from service.ledger.work import OnFeedback, Worker
from service.observe.metrics import Metrics
from service.settings import PREFIX, Settings

OFF = "off"
UNREADABLE = "the ledger cannot be read now, the service's log says why: send the request again later"
CLOSE_LEDGER_S = 1.5  # less than service/web/server.py leaves after the drain

Answer = TypeVar("Answer")

log = structlog.get_logger()


class Ledger:
    """`Ledger.open(settings, …)` starts the threads. What records, labels and forgets is called from the event loop.

    `on_feedback(record, 1)` is called from the ledger's thread for feedback once it is committed, and
    `on_feedback(record, -1)` for what it corrects.
    """

    def __init__(self, settings: Settings, metrics: Metrics, on_feedback: OnFeedback) -> None:
        """Raises SettingsError when the ledger named can never work."""
        check(settings.ledger)
        where = settings.ledger
        if where == MEMORY:
            where = shared_memory()
            log.info(f"the ledger is in memory and ends with the process: set {PREFIX}LEDGER to keep it")
        self._where, self._timeout_s = where, settings.request_timeout_s
        self._dropped, self._images = metrics.ledger_rows.labels("dropped"), metrics.store_images
        self._queue = Queue()
        self.store = open_store(settings)
        self.policy = Policy(settings, metrics.store_images) if settings.keeps else None
        self._keeper = None
        if self.store is not None:
            self._keeper = Keeper(self.store, metrics, settings.max_pixels, self._queue.tell)
        self._worker = Worker(where, settings, self._queue, self._keeper, metrics, on_feedback)

    @classmethod
    def open(cls, settings: Settings, metrics: Metrics, on_feedback: OnFeedback) -> "Ledger | None":
        """The ledger that the settings name; None for "off". Raises SettingsError as __init__ does."""
        return None if settings.ledger == OFF else cls(settings, metrics, on_feedback)

    def reader(self) -> Reader:
        """A connection of its own that reads what this ledger holds. Raises NotReady where the database fails."""
        try:
            return Reader(self._where, self.store)
        except Exception as error:  # each driver has its own
            if not of_database(error):
                raise
            log.error("the ledger cannot be read", error=one_line(error))
            raise NotReady(UNREADABLE) from error

    @property
    def where(self) -> str:
        """What another connection to this ledger names; see database.connect."""
        return self._where

    # From the event loop ----------------------------------------------------------------------------------------------

    def record(self, entry: Entry) -> None:
        """Queue one decision. Never raises, never waits. Its file is kept if as many bytes more may wait."""
        size = 0 if entry.image is None else len(entry.image)
        if size and (self._keeper is None or not self._keeper.room.take(size)):
            self._images.labels("dropped").inc()
            entry = entry._replace(image=None, embedding=None, sample_rate=None, keep_probability=None)
            size = 0
        if not self._queue.offer(entry):
            self._dropped.inc()
            if size and self._keeper is not None:
                self._keeper.room.give_back(size)
                self._images.labels("dropped").inc()

    async def record_feedback(
        self, request_id: str, position: int | None, truth: str, *, key: str | None, may_review: bool = False
    ) -> FeedbackRecord:
        """Write the true label of an image, and return once it is committed. The same label again changes nothing.

        `request_id` is the service's, or the one that the client gave. `key` is the name of the caller's API key, which
        must be that of the request unless `may_review`. Raises NotFound, Forbidden, InvalidParameter for a label that
        the deciding model does not have and for no `position` in a request of several images, and NotReady when it
        cannot be written within the request timeout.
        """
        answer: Future[FeedbackRecord] = Future()
        self._queue.ask(Feedback(time.time(), request_id, position, truth, key, may_review, answer))
        return await self._answered(answer)

    async def label(
        self,
        decision_rows: Sequence[int],
        *,
        kind: Kind,
        label: str,
        source: Source,
        group_id: str | None = None,
        key: str | None = None,
        again: bool = True,
        seen: Mapping[int, int] | None = None,
    ) -> list[FeedbackRecord]:
        """Give rows one true label, in one transaction, and return once it is committed.

        The records are those of the rows that are still held, in the order given, and have no label yet, or `again`;
        others keep theirs, and so do rows whose last label is not the one of the number in `seen`. `label` is "" for
        the kinds 'unsure' and 'withdrawn', and is not read for 'outlier'. A 'new' class that the deciding model of a
        row has is an ordinary class there. Raises InvalidParameter for a 'class' that the deciding model of a row
        lacks, and then no row is labelled; and NotReady as record_feedback does.
        """
        if kind in ("class", "new"):
            if not label or label == OUTLIER_LABEL:
                raise InvalidParameter(f"label={label!r} is no name of a class: give one, or the kind 'outlier'")
        else:
            label = OUTLIER_LABEL if kind == "outlier" else ""
        answer: Future[list[FeedbackRecord]] = Future()
        truth = Truth(kind, label)
        self._queue.ask(Labels(time.time(), decision_rows, truth, source, group_id, key, answer, again, seen))
        return await self._answered(answer)

    async def forget(self, request_id: str, *, key: str | None, may_review: bool = False) -> int:
        """Have nothing kept of a request's images, and return their number once that is committed; again is no error.

        File and thumbnail are deleted a moment later, unless another row has the same file. Raises NotFound, Forbidden
        and NotReady as record_feedback does.
        """
        answer: Future[int] = Future()
        self._queue.ask(Forget(request_id, key, may_review, answer))
        return await self._answered(answer)

    def tally(self, manifest: Manifest) -> Tally | None:
        """The counts of this bundle as of the last commit, from before the last start too; None: nothing yet."""
        return self._worker.tally(manifest)

    def audit(self, manifest: Manifest, operating_point: str, scope: Scope) -> Audit:
        """What the audit sample says of this bundle's stream, as of some seconds ago."""
        return audit(self._worker.audit(manifest), manifest, operating_point, scope)

    def close(self, timeout_s: float = CLOSE_LEDGER_S) -> None:
        """Write what is queued and end the threads; what cannot be written in time is dropped, counted and logged."""
        self._worker.close(timeout_s)

    async def _answered(self, answer: Future[Answer]) -> Answer:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(answer), self._timeout_s)
        except TimeoutError:
            raise NotReady(UNAVAILABLE) from None
