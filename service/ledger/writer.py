"""The ledger: every decision and every true label, written by one thread that no request waits for.

    ledger.record(entry)              # on the request path: an append to a queue in memory, some microseconds
    await ledger.record_feedback(...) # answered once it is committed

The thread writes the queue in one transaction, a fifth of a second after its first row came, and deletes the oldest
rows beyond `ledger_max_rows`, `ledger_max_age_days` and `ledger_max_bytes`, a thousand at a time. A database that is
locked, full or unreachable fails no classification: rows stay in the queue, failed attempts are counted and logged, and
rows that come while the queue is full are dropped and counted. TERM writes what is queued; KILL loses what was not yet
committed (less than a second's rows) and damages nothing. When a connection breaks during a commit of PostgreSQL, the
batch is written again, so its rows may be there twice.

Several replicas: each with a file of its own knows only the requests that it answered, so feedback must reach the
replica that did. With one PostgreSQL database for all, feedback may go to any of them.
"""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

import structlog

from service.contract.bundle import OUTLIER_LABEL, Manifest
from service.errors import InvalidParameter, NotReady
from service.ledger.database import MEMORY, check, connect, shared_memory
from service.ledger.queue import UNAVAILABLE, Queue, settle
from service.ledger.reading import Reader
from service.ledger.rows import (
    Entry,
    Feedback,
    FeedbackRecord,
    Item,
    Kind,
    Labels,
    ModelKey,
    Source,
    Tally,
    Truth,
    Written,
    key_of,
)
from service.ledger.store import open_store
from service.ledger.tables import CHUNK_ROWS, Tables
from service.observe.metrics import Metrics
from service.settings import PREFIX, Settings

OFF = "off"
MEMORY_ROWS = 10_000  # of a ledger in memory: about 5 MB without images
MEMORY_BYTES = 64 * 2**20  # of a ledger in memory, with images
TICK_S = 10.0  # between looks at retention, sizes and what other replicas have counted
RETRY_S = 1.0  # after a failed attempt
LAST_RETRY_S = 0.1  # the same while the process ends
CLOSE_LEDGER_S = 1.5  # less than service/web/server.py leaves after the drain
DAY_S = 86_400.0

Answer = TypeVar("Answer")
OnFeedback = Callable[[FeedbackRecord, int], None]

log = structlog.get_logger()


class Ledger:
    """`Ledger.open(settings, …)` starts the thread. `record` and `record_feedback` are called from the event loop.

    `on_feedback(record, 1)` is called from the ledger's thread for feedback once it is committed, and
    `on_feedback(record, -1)` for what it corrects.
    """

    def __init__(self, settings: Settings, metrics: Metrics, on_feedback: OnFeedback) -> None:
        """Raises SettingsError when the ledger named can never work."""
        check(settings.ledger)
        self._where = settings.ledger
        self._max_rows, self._max_bytes = settings.ledger_max_rows, settings.ledger_max_bytes
        if self._where == MEMORY:
            self._max_rows = min(self._max_rows, MEMORY_ROWS)
            self._max_bytes = min(self._max_bytes, MEMORY_BYTES)
            self._where = shared_memory()
            log.info(f"the ledger is in memory and ends with the process: set {PREFIX}LEDGER to keep it")
        self._max_age_s = settings.ledger_max_age_days * DAY_S
        self._timeout_s = settings.request_timeout_s
        self._metrics, self._on_feedback = metrics, on_feedback
        self._written, self._dropped = (metrics.ledger_rows.labels(o) for o in ("written", "dropped"))
        self.store = open_store(settings)
        self._queue = Queue()
        self._batch: list[Item] = []  # taken from the queue and not yet committed
        self._tallies: dict[ModelKey, Tally] = {}
        self._tables: Tables | None = None
        self._looked_at = -TICK_S
        self._failing = False
        self._end = threading.Event()
        self._lock = threading.Lock()  # of the tallies
        self._end_at = 0.0
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, settings: Settings, metrics: Metrics, on_feedback: OnFeedback) -> "Ledger | None":
        """The ledger that the settings name; None for "off". Raises SettingsError as __init__ does."""
        return None if settings.ledger == OFF else cls(settings, metrics, on_feedback)

    def reader(self) -> Reader:
        """A connection of its own that reads what this ledger holds. Raises the driver's errors."""
        return Reader(self._where, self.store)

    # From the event loop ----------------------------------------------------------------------------------------------

    def record(self, entry: Entry) -> None:
        """Queue one decision. Never raises, never waits."""
        if not self._queue.offer(entry):
            self._dropped.inc()

    async def record_feedback(
        self, request_id: str, position: int, truth: str, *, key: str | None, may_review: bool = False
    ) -> FeedbackRecord:
        """Write the true label of an image, and return once it is committed. The same label again changes nothing.

        `request_id` is the service's, or the one that the client gave. `key` is the name of the caller's API key, which
        must be that of the request unless `may_review`. Raises NotFound, Forbidden, InvalidParameter for a label that
        the deciding model does not have, and NotReady when it cannot be written within the request timeout.
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
    ) -> list[FeedbackRecord]:
        """Give rows one true label, in one transaction, and return once it is committed.

        The records are those of the rows that are still held, in the order given. `label` is "" for the kinds 'unsure'
        and 'withdrawn', and is not read for 'outlier'. A 'new' class that the deciding model of a row has is an
        ordinary class there. Raises InvalidParameter for a 'class' that the deciding model of a row lacks, and then no
        row is labelled; and NotReady as record_feedback does.
        """
        if kind in ("class", "new"):
            if not label or label == OUTLIER_LABEL:
                raise InvalidParameter(f"label={label!r} is no name of a class: give one, or the kind 'outlier'")
        else:
            label = OUTLIER_LABEL if kind == "outlier" else ""
        answer: Future[list[FeedbackRecord]] = Future()
        self._queue.ask(Labels(time.time(), decision_rows, Truth(kind, label), source, group_id, key, answer))
        return await self._answered(answer)

    async def _answered(self, answer: Future[Answer]) -> Answer:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(answer), self._timeout_s)
        except TimeoutError:
            raise NotReady(UNAVAILABLE) from None

    def tally(self, manifest: Manifest) -> Tally | None:
        """The counts of this bundle as of the last commit, from before the last start too; None: nothing yet."""
        with self._lock:
            tally = self._tallies.get(key_of(manifest))
            return None if tally is None else Tally(tally.since, Counter(tally.images))

    def close(self, timeout_s: float = CLOSE_LEDGER_S) -> None:
        """Write what is queued and end the thread; what cannot be written in time is dropped, counted and logged."""
        self._end_at = time.monotonic() + timeout_s
        self._end.set()
        self._queue.close()
        self._thread.join(timeout_s + 2 * LAST_RETRY_S)
        if lost := len(self._batch) + len(self._queue):
            self._dropped.inc(lost)
            log.error("rows were lost at the end: the ledger could not be written", rows=lost)

    # The thread -------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        more = True  # reads the tallies before anything comes
        while True:
            self._queue.wait(0.0 if more else TICK_S)
            try:
                more = self._turn()
            except Exception as error:  # of the database, its driver, a disk or a network
                more = True
                self._fail(error)
                self._end.wait(RETRY_S)
                if self._end.is_set():
                    time.sleep(LAST_RETRY_S)
            if self._end.is_set() and (not more or time.monotonic() > self._end_at):
                break
        if self._tables is not None:
            self._tables.close()

    def _turn(self) -> bool:
        """Write a chunk of the queue and delete a chunk of what is beyond the limits; whether there is more to do."""
        self._batch += self._queue.take(CHUNK_ROWS - len(self._batch))
        if self._tables is None:
            self._tables = _opened(self._where)
        if self._batch:
            written = self._tables.write(self._batch)
            self._batch = []
            self._committed(self._tables, written)
        if self._failing:
            self._failing = False
            log.info("the ledger works again", rows_waiting=len(self._queue))
        trimmed = self._tables.trim(self._max_rows, self._max_age_s, self._max_bytes)
        now = time.monotonic()
        if now - self._looked_at >= TICK_S:
            tallies = self._tables.tallies()
            with self._lock:
                self._tallies = tallies
            self._metrics.ledger_bytes.set(self._tables.size_bytes())
            self._metrics.ledger_held_rows.set(self._tables.held_rows())
            self._looked_at = now
        return len(self._queue) > 0 or trimmed == CHUNK_ROWS

    def _committed(self, tables: Tables, written: Written) -> None:
        self._written.inc(written.entries)
        for number, images in written.tallies.items():
            model, since = tables.model(number)
            with self._lock:
                self._tallies.setdefault(model, Tally(since, Counter())).images.update(images)
        for record, change in written.feedback:
            self._on_feedback(record, change)
        for item, answer in written.answers:  # last: whoever is answered finds it counted
            settle(item, answer)

    def _fail(self, error: Exception) -> None:
        self._metrics.ledger_failures.inc()
        if not self._failing:
            self._failing = True
            log.error("the ledger cannot be written, its rows are queued", error=" ".join(str(error).split()))
        for item in self._batch:
            if not isinstance(item, Entry):  # its sender can send it again
                settle(item, NotReady(UNAVAILABLE))
        self._batch = [item for item in self._batch if isinstance(item, Entry)]
        if self._tables is not None:
            self._tables.close()
            self._tables = None


def _opened(where: str) -> Tables:
    database = connect(where)
    try:
        return Tables(database)
    except BaseException:
        database.close()
        raise
