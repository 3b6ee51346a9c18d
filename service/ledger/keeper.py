"""Brings files to the image store and deletes them there, in a thread of its own of low priority.

Neither requests nor the ledger wait for it: a store that is slow, full or away costs images, which are counted, and
memory of a known size. What it has done goes back to the ledger as StoreNews.
"""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from queue import SimpleQueue

import structlog

from service.contract.lines import one_line
from service.ledger.rows import StoreNews
from service.ledger.store import Store
from service.ledger.thumbnails import thumbnail
from service.ledger.users import RENEW_S, User
from service.observe.metrics import Metrics

NICENESS = 15
HELD_BYTES = 32 * 2**20  # of files that wait: for the ledger to write their row, then for the store
QUIET_S = 60.0  # between two lines that say that the store fails
SEEN_KEYS = 10_000  # of files of which this process knows that the store has them

log = structlog.get_logger()


class Room:
    """Bytes that may wait at once. Taken in the event loop, given back by the threads."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        with self._lock:
            if self._held + size > self._limit:
                return False
            self._held += size
            return True

    def give_back(self, size: int) -> None:
        with self._lock:
            self._held -= size


class Keeper:
    """`tell(news)` is called from its thread. The ledger's thread calls the rest."""

    def __init__(self, store: Store, metrics: Metrics, max_pixels: int, tell: Callable[[StoreNews], None]) -> None:
        self.room = Room(HELD_BYTES)
        self._store, self._max_pixels, self._tell = store, max_pixels, tell
        self._images = metrics.store_images
        self._user: User | None = None
        self._claimed_at: float | None = None
        self._failing = self._hurry = False
        self._said_at = -QUIET_S
        self._seen: OrderedDict[str, int] = OrderedDict()  # and its bytes
        self._coming, self._going = set[str](), set[str]()  # keys that wait: a slow store is not asked twice
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="keeper", daemon=True)
        self._thread.start()

    def serve(self, user: User) -> None:
        """Keep for this copy of a ledger. Before anything else."""
        if self._user != user:  # another one where the file of the ledger was replaced
            self._user, self._claimed_at = user, None

    def renew(self) -> None:
        """Say that the store is in use, if it is and has not been said for RENEW_S."""
        if self._claimed_at is not None and self._is_due():
            self._jobs.put(self._renew)

    def put(self, key: str, data: bytes, *, known: bool) -> None:
        """Store a file and its thumbnail. `known`: the ledger believes that the store has it."""
        self._coming.add(key)
        self._jobs.put(lambda: self._put(key, data, known))

    def delete(self, keys: Iterable[str]) -> None:
        """Delete files that nothing refers to, unless that is waiting to be done."""
        new = [key for key in dict.fromkeys(keys) if key not in self._going]
        self._going.update(new)
        for start in range(0, len(new), self._store.together):
            some = new[start : start + self._store.together]
            self._jobs.put(lambda some=some: self._delete(some))  # type: ignore[misc]

    def look_for(self, keys: Iterable[str]) -> None:
        """Say whether files are there that somebody did not finish storing; those that wait here come yet."""
        for key in keys:
            if key not in self._coming:
                self._jobs.put(lambda key=key: self._look_for(key))  # type: ignore[misc]

    def close(self, timeout_s: float) -> None:
        """Do what was asked for, and end; what cannot be done in time another start finds undone."""
        self._jobs.put(None)
        self._thread.join(timeout_s)
        self._hurry = True

    # The thread -------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        with suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while (job := self._jobs.get()) is not None and not self._hurry:
            job()

    def _put(self, key: str, data: bytes, known: bool) -> None:
        try:
            self._claim()
            if not self._is_there(key, known):
                small = self._thumbnail(key, data)
                self._store.put(key, data, small)
                self._saw(key, len(data) + len(small or b""))
            if not known:
                self._tell(StoreNews(stored=[(key, self._seen[key])]))
        except Exception as error:  # of a disk, a network, a driver
            self._failed(error)
            self._images.labels("failed").inc()
            if not known:
                self._tell(StoreNews(failed=[key]))
        else:
            self._images.labels("kept").inc()
            self._works()
        finally:
            self._coming.discard(key)
            self.room.give_back(len(data))

    def _delete(self, keys: list[str]) -> None:
        try:
            self._claim()  # another ledger's images are not deleted
            self._store.delete(keys)
        except Exception as error:
            self._failed(error)
        else:
            for key in keys:
                self._seen.pop(key, None)
            self._tell(StoreNews(deleted=keys))
        finally:
            self._going.difference_update(keys)

    def _look_for(self, key: str) -> None:
        try:
            self._claim()
            data = self._store.get(key)
            size = len(data or b"") + len(self._store.thumbnail(key) or b"")
        except Exception as error:
            self._failed(error)
        else:
            self._tell(StoreNews(failed=[key]) if data is None else StoreNews(stored=[(key, size)]))

    def _claim(self) -> None:
        """Whatever is done follows it by less than RENEW_S: a copy of the ledger may have taken the store meanwhile."""
        if self._is_due():
            assert self._user is not None  # serve comes before
            self._store.claim(self._user)
            self._claimed_at = time.monotonic()

    def _is_due(self) -> bool:
        return self._claimed_at is None or time.monotonic() - self._claimed_at >= RENEW_S

    def _renew(self) -> None:
        try:
            self._claim()
        except Exception as error:
            self._failed(error)

    def _thumbnail(self, key: str, data: bytes) -> bytes | None:
        try:
            return thumbnail(data, self._max_pixels)
        except Exception as error:  # it was decoded once already: memory, perhaps
            log.warning("a kept image has no thumbnail", image=key, error=str(error))
            return None

    def _is_there(self, key: str, known: bool) -> bool:
        """The same image a thousand times costs the store one write. A store that was emptied is filled again."""
        return (known or key in self._seen) and self._store.has(key)

    def _saw(self, key: str, size: int) -> None:
        self._seen[key] = size
        if len(self._seen) > SEEN_KEYS:
            self._seen.popitem(last=False)

    def _failed(self, error: Exception) -> None:
        """Say it once, and once a minute while large files fail and small ones still find room."""
        if not self._failing and time.monotonic() - self._said_at >= QUIET_S:
            self._failing, self._said_at = True, time.monotonic()
            log.error("the image store fails, images are not kept", error=one_line(error))

    def _works(self) -> None:
        if self._failing:
            self._failing = False
            log.info("the image store works again")
