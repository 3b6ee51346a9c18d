"""The ledger's thread: writes the queue, deletes what is beyond the limits, and counts. See writer.py for the whole."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import structlog

from service.contract.bundle import Manifest
from service.contract.lines import one_line
from service.errors import NotReady
from service.ledger.audit import AuditKey
from service.ledger.clock import DAY_S, Clock
from service.ledger.database import LOCK_S, MEMORY, connect
from service.ledger.keeper import Keeper
from service.ledger.queue import UNAVAILABLE, Queue, settle
from service.ledger.retention import CHUNK_ROWS
from service.ledger.rows import Entry, FeedbackRecord, Item, ModelKey, StoreNews, Tally, Written, key_of
from service.ledger.tables import Tables
from service.observe.metrics import Metrics
from service.settings import Settings

MEMORY_ROWS = 10_000  # of a ledger in memory: about 5 MB without embeddings
MEMORY_BYTES = 64 * 2**20  # of a ledger in memory, and of its store
TICK_S = 10.0  # between looks at retention, sizes and what other replicas have counted
RETRY_S = 1.0  # after a failed attempt
LAST_RETRY_S = 0.1  # the same while the process ends
AUDIT_TIMES = 20

OnFeedback = Callable[[FeedbackRecord, int], None]

log = structlog.get_logger()


class Limits:
    """Of rows and of kept files; those of a ledger in memory are small."""

    def __init__(self, settings: Settings) -> None:
        self.rows, self.bytes, self.store_bytes = (
            settings.ledger_max_rows, settings.ledger_max_bytes, settings.store_max_bytes
        )  # fmt: skip
        if settings.ledger == MEMORY:
            self.rows, self.bytes = min(self.rows, MEMORY_ROWS), min(self.bytes, MEMORY_BYTES)
            self.store_bytes = min(self.store_bytes, MEMORY_BYTES)
        self.age_s = settings.ledger_max_age_days * DAY_S
        self.store_age_s = settings.store_max_age_days * DAY_S


class Worker:
    """Starts its thread at once. `tally` and `close` are called from others."""

    def __init__(
        self,
        where: str,
        settings: Settings,
        queue: Queue,
        keeper: Keeper | None,
        metrics: Metrics,
        on_feedback: OnFeedback,
    ) -> None:
        self._where, self._limits, self._queue, self._keeper = where, Limits(settings), queue, keeper
        self._metrics, self._on_feedback = metrics, on_feedback
        self._written, self._dropped = (metrics.ledger_rows.labels(o) for o in ("written", "dropped"))
        self._batch: list[Item] = []  # taken from the queue and not yet committed
        self._tallies: dict[ModelKey, Tally] = {}
        self._tables: Tables | None = None
        self._looked_at = -TICK_S
        self._clock = Clock()
        self._store_bytes = 0  # as of the last look, with what came since
        self._audited: dict[ModelKey, Counter[AuditKey]] = {}  # replaced as a whole
        self._audit_due = 0.0
        self._failing = False
        self._end = threading.Event()
        self._lock = threading.Lock()  # of the tallies
        self._end_at = 0.0
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)
        self._thread.start()

    def tally(self, manifest: Manifest) -> Tally | None:
        """See Ledger.tally."""
        with self._lock:
            tally = self._tallies.get(key_of(manifest))
            return None if tally is None else Tally(tally.since, Counter(tally.images), Counter(tally.refusals))

    def audit(self, manifest: Manifest) -> Counter[AuditKey]:
        """The audit sample of a model, as of some seconds ago."""
        return self._audited.get(key_of(manifest), Counter())

    def close(self, timeout_s: float) -> None:
        """See Ledger.close."""
        self._end_at = time.monotonic() + timeout_s
        self._end.set()
        self._queue.close()
        # What is on its way may wait for a lock: counted as lost now, it was counted as written once it had the lock.
        self._thread.join(timeout_s + 2 * LAST_RETRY_S + LOCK_S)
        if lost := sum(isinstance(item, Entry) for item in self._batch) + self._queue.rows():
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
        self._finish()

    def _finish(self) -> None:
        """Have the store finish too, as far as there is time, and note what it has done."""
        if self._keeper is not None:
            self._keeper.close(max(0.0, self._end_at - time.monotonic()))
            with suppress(Exception):  # logged before; what is not noted is done again at another start
                self._turn()
        if self._tables is not None:
            self._tables.close()

    def _turn(self) -> bool:
        """Write a chunk of the queue and delete a chunk of what is beyond the limits; whether there is more to do."""
        self._batch += self._queue.take(CHUNK_ROWS - len(self._batch))
        if self._tables is None:
            self._tables = _opened(self._where)
            self._clock.begin(self._tables.newest)
            self._looked_at = -math.inf  # it may be another ledger by now
            if self._keeper is not None:
                self._keeper.serve(self._tables.user(self._where))
        if self._batch:
            written = self._tables.write(self._batch)
            self._batch = []
            self._committed(self._tables, written)
        if self._failing:
            self._failing = False
            log.info("the ledger works again", rows_waiting=len(self._queue))
        limits, now = self._limits, self._clock.now()
        trimmed, leaving = self._tables.trim(limits.rows, now - limits.age_s, limits.bytes, now)
        self._delete(leaving)
        if time.monotonic() - self._looked_at >= TICK_S or self._store_bytes > self._limits.store_bytes:
            self._look(self._tables)
        return len(self._queue) > 0 or trimmed == CHUNK_ROWS

    def _look(self, tables: Tables) -> None:
        """At what changes without this process, or slowly."""
        self._delete(tables.trim_images(self._limits.store_bytes, self._clock.now() - self._limits.store_age_s))
        if self._keeper is not None:
            stale = tables.stale_images()
            self._keeper.look_for(stale.arriving)
            self._delete(stale.leaving)
            self._keeper.renew()
        self._read_tallies(tables)
        self._look_at_sample(tables)
        self._store_bytes = tables.images.size_bytes()
        self._metrics.store_bytes.set(self._store_bytes)
        self._metrics.ledger_bytes.set(tables.size_bytes())
        self._metrics.ledger_held_rows.set(tables.held_rows())
        self._looked_at = time.monotonic()

    def _look_at_sample(self, tables: Tables) -> None:
        """A sample of a million rows takes seconds to count: it is not asked for more than a twentieth of the time."""
        started = time.monotonic()
        if started >= self._audit_due:
            self._audited = tables.audit()
            self._audit_due = time.monotonic() + AUDIT_TIMES * (time.monotonic() - started)

    def _delete(self, keys: list[str]) -> None:
        if self._keeper is not None:  # without a store they wait for one
            self._keeper.delete(keys)

    def _committed(self, tables: Tables, written: Written) -> None:
        self._written.inc(written.entries)
        if self._keeper is not None:
            for key, data, known in written.arriving:
                self._keeper.put(key, data, known=known)
                self._store_bytes += 0 if known else len(data)
            for size in written.unkept:
                self._keeper.room.give_back(size)
                self._metrics.store_images.labels("dropped").inc()
            self._delete(written.leaving)  # after what is to be stored first
        if not all(self._count(tables, number, written) for number in written.tallies):
            self._read_tallies(tables)
        for record, change in written.feedback:
            self._on_feedback(record, change)
        for item, answer in written.answers:  # last: whoever is answered finds it counted
            settle(item, answer)

    def _count(self, tables: Tables, number: int, written: Written) -> bool:
        """Add what was written of a model to its tally. False where that would be less than nothing: a label was taken
        back that another process has given, a replica or `review import`, since the last look."""
        model, since = tables.model(number)
        with self._lock:
            tally = self._tallies.setdefault(model, Tally(since, Counter(), Counter()))
            if any(tally.images[key] + change < 0 for key, change in written.tallies[number].items()):
                return False
            tally.images.update(written.tallies[number])
            tally.refusals.update(written.refusals.get(number, {}))
        return True

    def _read_tallies(self, tables: Tables) -> None:
        tallies = tables.tallies()
        with self._lock:
            self._tallies = tallies

    def _fail(self, error: Exception) -> None:
        self._metrics.ledger_failures.inc()
        if not self._failing:
            self._failing = True
            log.error("the ledger cannot be written, its rows are queued", error=one_line(error))
        for item in self._batch:
            if not isinstance(item, Entry | StoreNews):  # its sender can send it again
                settle(item, NotReady(UNAVAILABLE))
        self._batch = [item for item in self._batch if isinstance(item, Entry | StoreNews)]
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
