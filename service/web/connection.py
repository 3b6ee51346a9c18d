"""uvicorn's HTTP protocol with what a service in the open needs: who left, who says nothing, and how many may come.

Used by service/web/server.py. Under another ASGI server the application still works: it then watches for clients that
leave by reading from the connection (service/web/admission.py), and that server has to bound its connections itself.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

SCOPE_KEY = "tailguard.connection"  # in the ASGI scope: the Protocol, for `on_lost`
HEAD_TIMEOUT_S = 10.0  # from connecting, or from the first byte of a later request, to the end of the headers
MAX_HEAD_BYTES = 64 * 2**10
WAKE_BYTES = 256 * 2**10


class Protocol(HttpToolsProtocol):
    """`on_lost` is called once when the client leaves while a request has set it."""

    max_connections = 4096  # of the process; service/web/server.py sets it

    on_lost: Callable[[], None] | None = None
    lost = False
    _chunk_bytes = 0
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()  # an answer would cost what the bound is there to save
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._head_arrived()
        super().connection_lost(exc)
        if self.on_lost is not None:
            on_lost, self.on_lost = self.on_lost, None
            on_lost()

    def data_received(self, data: bytes) -> None:
        if self._head_timer is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        # Only what is still an unfinished head after parsing counts: a body may come with its head.
        if self._head_timer is not None and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The headers are too large: at most 64 KiB are read.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._chunks: list[bytes] = []
        self._chunk_bytes = 0
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope[SCOPE_KEY] = self
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        self._head_arrived()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        # The application wants the body whole: it is not woken for every packet, but at its end or when much waits.
        # uvicorn would copy every packet into a bytearray, and that into bytes.
        if not self.cycle.response_complete:
            self._chunks.append(body)
            self._chunk_bytes += len(body)
            if self._chunk_bytes >= WAKE_BYTES:
                self._hand_over()
                self.flow.pause_reading()
                self.cycle.message_event.set()

    def on_message_complete(self) -> None:
        self._hand_over()
        super().on_message_complete()

    def _hand_over(self) -> None:
        if self._chunks:
            held = [bytes(self.cycle.body)] if self.cycle.body else []
            chunks = held + self._chunks
            # bytes where uvicorn has a bytearray: it only ever reads them, takes their length and replaces them
            self.cycle.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)  # type: ignore[assignment]
            self._chunks, self._chunk_bytes = [], 0

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._silent)

    def _head_arrived(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _silent(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()
