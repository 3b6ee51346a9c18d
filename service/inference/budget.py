"""Memory for decoding, shared by the threads that decode: a small file may hold an image of hundreds of megabytes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ByteBudget:
    """At most `limit_bytes` are held at once. More than that is granted alone, when nothing else is held."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._freed = threading.Condition()
        self._turn = threading.Lock()  # one thread waits for memory, the others behind it: a large image gets its turn

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Wait until `count` bytes are free and hold them. Blocks the thread."""
        with self._turn, self._freed:
            self._freed.wait_for(lambda: not self._held_bytes or self._held_bytes + count <= self._limit_bytes)
            self._held_bytes += count
        try:
            yield
        finally:
            with self._freed:
                self._held_bytes -= count
                self._freed.notify_all()
