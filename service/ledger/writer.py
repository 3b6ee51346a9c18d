"""The ledger: every decision and every true label told later, kept by one thread that no request waits for.

    ledger.record(entry)              # on the request path: an append to a queue in memory, some microseconds
    await ledger.record_feedback(...) # answered once it is committed

The thread writes what has gathered in one transaction, a fifth of a second after the first of it came, and deletes
the oldest rows beyond `ledger_max_rows` and `ledger_max_age_days` a thousand at a time. A database that is locked,
full or away fails no classification: rows wait in the queue, attempts are counted and logged, and when the queue is
full rows are dropped and counted. An end by TERM writes what is queued; one by KILL loses what was not yet committed
(less than a second's rows) and damages nothing. A connection that breaks while PostgreSQL commits leaves open whether
it did; the batch is written again then, so its rows may be there twice.

Several replicas: each with a file of its own knows only the requests that it answered, so feedback must reach the
replica that did. With one PostgreSQL database for all, feedback may go to any of them.
"""

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future

import structlog

from service.contract.bundle import Manifest
from service.errors import NotReady, TailGuardError
from service.ledger.database import MEMORY, check, connect
from service.ledger.rows import Entry, Feedback, FeedbackRecord, ModelKey, Tally, Written, key_of
from service.ledger.tables import CHUNK_ROWS, Tables
from service.observe.metrics import Metrics
from service.settings import PREFIX, Settings

OFF = "off"
QUEUE_ROWS = 10_000  # about 10 MB without images
QUEUE_IMAGE_BYTES = 64 * 2**20
MEMORY_ROWS = 10_000  # of a ledger in memory: about 4 MB
FLUSH_S = 0.2  # how long rows gather
TICK_S = 10.0  # without any, retention, sizes and what other replicas have counted
RETRY_S = 1.0  # after an attempt that failed
LAST_RETRY_S = 0.1  # the same while the process ends
CLOSE_S = 1.5  # within what service/web/server.py leaves after the drain
DAY_S = 86_400.0
UNAVAILABLE = "the ledger cannot be written now, its log says why: send the feedback again later"

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
        self._images = settings.ledger_images
        self._max_rows = settings.ledger_max_rows
        if self._where == MEMORY:
            self._max_rows = min(self._max_rows, MEMORY_ROWS)
            log.info(f"the ledger is in memory and ends with the process: set {PREFIX}LEDGER to keep it")
        self._max_age_s = settings.ledger_max_age_days * DAY_S
        self._timeout_s = settings.request_timeout_s
        self._metrics, self._on_feedback = metrics, on_feedback
        rows = metrics.ledger_rows
        self._written, self._dropped, self._failed = (rows.labels(o) for o in ("written", "dropped", "failed"))
        self._pending: deque[Entry | Feedback] = deque()
        self._batch: list[Entry | Feedback] = []  # taken from the queue and not yet committed
        self._image_bytes_in = self._image_bytes_out = 0  # each changed by one thread only
        self._tallies: dict[ModelKey, Tally] = {}
        self._tables: Tables | None = None
        self._looked_at = -TICK_S
        self._failing = False
        self._wake, self._hurry, self._end = threading.Event(), threading.Event(), threading.Event()
        self._lock = threading.Lock()  # of the tallies
        self._end_at = 0.0
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, settings: Settings, metrics: Metrics, on_feedback: OnFeedback) -> "Ledger | None":
        """The ledger that the settings name; None for "off". Raises SettingsError as __init__ does."""
        return None if settings.ledger == OFF else cls(settings, metrics, on_feedback)

    # From the event loop ----------------------------------------------------------------------------------------------

    def record(self, entry: Entry) -> None:
        """Keep one decision. Never raises and never waits; its image is kept only if the settings say so."""
        if len(self._pending) >= QUEUE_ROWS:
            self._dropped.inc()
            return
        if entry.image is not None:
            room = QUEUE_IMAGE_BYTES - (self._image_bytes_in - self._image_bytes_out)
            if self._images and len(entry.image) <= room:
                self._image_bytes_in += len(entry.image)
            else:
                entry = entry._replace(image=None)
        self._pending.append(entry)
        if not self._wake.is_set():
            self._wake.set()

    async def record_feedback(self, request_id: str, position: int, truth: str, key: str | None) -> FeedbackRecord:
        """Keep the true label of an image; what it means, once that is committed. The same again changes nothing.

        Raises NotFound, InvalidParameter for a label that the deciding model does not have, and NotReady.
        """
        if len(self._pending) >= QUEUE_ROWS or self._end.is_set():
            raise NotReady(UNAVAILABLE)
        answer: Future[FeedbackRecord] = Future()
        self._pending.append(Feedback(time.time(), request_id, position, truth, key, answer))
        self._hurry.set()
        self._wake.set()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(answer), self._timeout_s)
        except TimeoutError:
            raise NotReady(UNAVAILABLE) from None

    def tally(self, manifest: Manifest) -> Tally | None:
        """What is counted for this bundle as of the last commit, before the last start too; None: nothing yet."""
        with self._lock:
            found = self._tallies.get(key_of(manifest))
            return None if found is None else Tally(found.since, Counter(found.images))

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Write what is queued and end; what cannot be written in time is dropped, counted and logged."""
        self._end_at = time.monotonic() + timeout_s
        for event in (self._end, self._hurry, self._wake):
            event.set()
        self._thread.join(timeout_s + 2 * LAST_RETRY_S)
        if lost := len(self._batch) + len(self._pending):
            self._dropped.inc(lost)
            log.error("rows were lost at the end: the ledger could not be written", rows=lost)

    # The thread -------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        more = True  # read what is there before anything comes
        while True:
            if not more and self._wake.wait(TICK_S):
                self._hurry.wait(FLUSH_S)
            self._wake.clear()  # before the queue is looked at, so that nothing is overlooked
            self._hurry.clear()
            try:
                more = self._turn()
            except Exception as error:  # whatever a database, a disk or a network can do
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
        """Write what is queued, up to a chunk, and delete up to a chunk of what is too much; whether there is more."""
        self._take()
        if self._tables is None:
            self._tables = _opened(self._where)
        if self._batch:
            written = self._tables.write(self._batch)
            self._batch = []
            self._committed(self._tables, written)
        if self._failing:
            self._failing = False
            log.info("the ledger works again", rows_waiting=len(self._pending))
        trimmed = self._tables.trim(self._max_rows, self._max_age_s)
        now = time.monotonic()
        if now - self._looked_at >= TICK_S:
            tallies = self._tables.tallies()
            with self._lock:
                self._tallies = tallies
            self._metrics.ledger_bytes.set(self._tables.size_bytes())
            self._metrics.ledger_held_rows.set(self._tables.held_rows())
            self._looked_at = now
        return bool(self._pending) or trimmed == CHUNK_ROWS

    def _take(self) -> None:
        while self._pending and len(self._batch) < CHUNK_ROWS:
            item = self._pending.popleft()
            if isinstance(item, Entry) and item.image is not None:
                self._image_bytes_out += len(item.image)
            if isinstance(item, Entry) or not item.answer.cancelled():
                self._batch.append(item)

    def _committed(self, tables: Tables, written: Written) -> None:
        self._written.inc(written.entries)
        for number, images in written.tallies.items():
            model, since = tables.model(number)
            with self._lock:
                self._tallies.setdefault(model, Tally(since, Counter())).images.update(images)
        for record, change in written.feedback:
            self._on_feedback(record, change)
        for feedback, found in written.answers:  # last, so that whoever is answered finds it counted
            _answer(feedback, found)

    def _fail(self, error: Exception) -> None:
        self._failed.inc(len(self._batch))
        if not self._failing:
            self._failing = True
            log.error("the ledger cannot be written, its rows wait", error=" ".join(str(error).split()))
        for item in self._batch:
            if isinstance(item, Feedback):  # whoever sent it waits, and can send it again
                _answer(item, NotReady(UNAVAILABLE))
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


def _answer(feedback: Feedback, found: FeedbackRecord | TailGuardError) -> None:
    if not feedback.answer.set_running_or_notify_cancel():
        return  # nobody waits any more
    if isinstance(found, TailGuardError):
        feedback.answer.set_exception(found)
    else:
        feedback.answer.set_result(found)
