"""What waits to be written to the ledger: rows that nobody waits for, and questions whose senders wait for an answer.

Bounded in rows, so that a database which is away costs memory of a known size. Filled by the event loop, emptied by the
ledger's thread; an append to a deque and the look at an event take less than a microsecond.
"""

import threading
from collections import deque
from typing import Any

from service.errors import NotReady, TailGuardError
from service.ledger.rows import Asking, Entry, Item, StoreNews

QUEUE_ROWS = 10_000  # about 10 MB
FLUSH_S = 0.2  # from the first row to its transaction
UNAVAILABLE = "the ledger cannot be written now, its log says why: send the request again later"


class Queue:
    """First in, first out. `offer` and `ask` are called from the event loop, `wait` and `take` from the thread."""

    def __init__(self) -> None:
        self._waiting: deque[Item] = deque()
        self._wake, self._flush_now = threading.Event(), threading.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def rows(self) -> int:
        """Of what waits, decisions and questions."""
        return sum(not isinstance(item, StoreNews) for item in list(self._waiting))

    def offer(self, entry: Entry) -> bool:
        """Queue one row; False when the queue is full. Never waits."""
        if len(self._waiting) >= QUEUE_ROWS:
            return False
        self._waiting.append(entry)
        if not self._wake.is_set():
            self._wake.set()
        return True

    def ask(self, item: Asking) -> None:
        """Queue what somebody waits for, and have it written at once. Raises NotReady when the queue is full."""
        if len(self._waiting) >= QUEUE_ROWS or self._closed:
            raise NotReady(UNAVAILABLE)
        self._waiting.append(item)
        self._flush_now.set()
        self._wake.set()

    def tell(self, news: StoreNews) -> None:
        """Queue what the image store has done; from its thread. Never refused: the store's own queue is bounded."""
        self._waiting.append(news)
        self._wake.set()

    def close(self) -> None:
        """Ask for nothing more, and have what waits written at once."""
        self._closed = True
        self._flush_now.set()
        self._wake.set()

    def wait(self, seconds: float) -> None:
        """Until there is something to write and a batch had time to form, or `seconds` have passed."""
        if seconds and self._wake.wait(seconds):
            self._flush_now.wait(FLUSH_S)
        if not self._closed:
            self._wake.clear()  # before the queue is read: what comes later sets it again
            self._flush_now.clear()

    def take(self, rows: int) -> list[Item]:
        """The first of what waits, without what nobody waits for any more."""
        taken: list[Item] = []
        while self._waiting and len(taken) < rows:
            item = self._waiting.popleft()
            if isinstance(item, Entry | StoreNews) or not item.answer.cancelled():
                taken.append(item)
        return taken


def settle(item: Asking, answer: Any) -> None:
    """Tell whoever asked: a result, or a TailGuardError."""
    if not item.answer.set_running_or_notify_cancel():
        return  # its sender has gone
    if isinstance(answer, TailGuardError):
        item.answer.set_exception(answer)
    else:
        item.answer.set_result(answer)
