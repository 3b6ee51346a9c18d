"""uvicorn's HTTP protocol with what a service in the open needs: who left, who says nothing, and how much may come.

    idle        waiting for the first byte of a request         at most `idle_timeout_s`
    head        from there to the end of the headers            at most HEAD_TIMEOUT_S
    answering   the application has the request and its own deadline; a client that takes no answer: at most STALL_S
    rest        answered, and its body still comes              at most REST_TIMEOUT_S

DrainingServer calls `check` of every connection once a second, so there is no state without a limit, whatever bytes
come. Under another ASGI server the application still works: it then watches for clients that leave by reading from the
connection (service/web/admission.py), and that server has to bound its connections itself.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.web.limits import BodyBudget

SCOPE_KEY = "tailguard.connection"  # in the ASGI scope: the Protocol, for `on_lost` and `over_budget`
HEAD_TIMEOUT_S = 10.0
REST_TIMEOUT_S = 10.0
STALL_S = 30.0
CLOSE_TIMEOUT_S = 5.0  # for what is still to be written when a connection is closed
MAX_HEAD_BYTES = 64 * 2**10  # of a head; and of whatever comes without any body: chunk extensions, trailers
WAKE_BYTES = 256 * 2**10
PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"
PROBE_S = 0.05
OFFER_HEADERS = (b"upgrade", b"connection", b"http2-settings")


class Protocol(HttpToolsProtocol):
    """One connection. `on_lost` is called once when the client leaves while a request has set it."""

    # Of the process; service/web/server.py sets them in a subclass.
    max_connections = 4096
    idle_timeout_s = 75.0
    budget = BodyBudget(2**62)

    on_lost: Callable[[], None] | None = None
    lost = False
    over_budget = False  # of the current request: its body did not fit into the budget
    _deadline: float | None = None  # in the loop's time; None while the application answers
    _stalled_at: float | None = None
    _closing_at: float | None = None
    _bodiless_bytes = 0  # received since the last that brought a part of a body, or since the head began
    _head_ended = False
    _message_ended = True
    _chunk_bytes = 0
    _counted_bytes = 0

    # The life of the connection ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.timeout_keep_alive = self.idle_timeout_s  # type: ignore[assignment]  # only handed to call_later
        self._chunks: list[bytes] = []
        if len(self.connections) > self.max_connections:
            transport.abort()  # an answer would cost what the bound is there to save
            return
        self._deadline = self.loop.time() + HEAD_TIMEOUT_S

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        super().connection_lost(exc)
        self._give_back()
        if self.on_lost is not None:
            on_lost, self.on_lost = self.on_lost, None
            on_lost()

    def check(self, now: float) -> None:
        """Close the connection when its state has lasted too long. `now`: the loop's time."""
        if self.transport.is_closing():
            self._closing_at = self._closing_at or now
            if now - self._closing_at > CLOSE_TIMEOUT_S:
                self.transport.abort()  # what was to be written is not taken
        elif self._deadline is not None:
            if now >= self._deadline:
                self.transport.close()
        elif not self.flow.write_paused:
            self._stalled_at = None
        else:
            self._stalled_at = self._stalled_at or now
            if now - self._stalled_at > STALL_S:
                self.transport.abort()

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that has sent everything may close its half and still take its answer; or it has left.

        The two look alike until something is sent: a client that has left answers it with a reset.
        """
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not self._message_ended:
            return False  # nothing to answer, or never the whole of it: the transport closes
        cycle.keep_alive = False
        if self.scope["http_version"] == "1.1" and not cycle.response_started:
            self.transport.write(PROBE)  # before the answer any client of HTTP/1.1 must take it (RFC 9110, 15.2)
            self._look_for_reset()
        return True

    def _look_for_reset(self) -> None:
        if self.lost or self.cycle.response_complete:
            return
        connected = self.transport.get_extra_info("socket")
        if connected is not None and connected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self.loop.call_later(PROBE_S, self._look_for_reset)

    # Bytes in ---------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._bodiless_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._read_without_offer(data[offer.args[0] :])
            return
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
            return
        if self._bodiless_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The headers are too large: at most 64 KiB are read.")

    def on_message_begin(self) -> None:
        self._unset_keepalive_if_required()
        super().on_message_begin()
        self._bodiless_bytes = 0
        self._head_ended = self._message_ended = self.over_budget = False
        self._chunks, self._chunk_bytes = [], 0
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope[SCOPE_KEY] = self
        if self._answered:
            self._deadline = self.loop.time() + HEAD_TIMEOUT_S

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_ended:  # trailers are no headers: the request was judged without them
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head_ended = True
        self._bodiless_bytes = 0
        if self.parser.should_upgrade():  # the parser takes what follows for another protocol: data_received goes on
            return
        self._deadline = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        # The application wants the body whole: it is not woken for every packet, but at its end or when much waits.
        # uvicorn would copy every packet into a bytearray, and that into bytes.
        self._bodiless_bytes = 0
        if self._answered:
            return
        self._chunks.append(body)
        self._chunk_bytes += len(body)
        self._counted_bytes += len(body)
        self.over_budget |= not self.budget.count(len(body))
        if self._chunk_bytes >= WAKE_BYTES or self.over_budget:
            self._hand_over()
            self.flow.pause_reading()
            self.cycle.message_event.set()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._message_ended = True
        self._hand_over()
        super().on_message_complete()
        if self._answered:
            self._deadline = self.loop.time() + self.idle_timeout_s
        elif not self.pipeline:
            self.flow.resume_reading()  # nobody reads the body any more, and a client that leaves is to be noticed

    def on_response_complete(self) -> None:
        if not self.pipeline:
            self._give_back()
        super().on_response_complete()
        if self._answered:  # and no pipelined request has begun
            wait_s = self.idle_timeout_s if self._message_ended else REST_TIMEOUT_S
            self._deadline = self.loop.time() + wait_s

    @property
    def body_arrived(self) -> bool:
        """The whole body of the current request has been received."""
        return self._message_ended

    @property
    def _answered(self) -> bool:
        """No request is with the application."""
        return self.cycle is None or self.cycle.response_complete

    def _hand_over(self) -> None:
        if self._chunks and not self._answered:
            held = [bytes(self.cycle.body)] if self.cycle.body else []
            chunks = held + self._chunks
            # bytes where uvicorn has a bytearray: it only ever reads them, takes their length and replaces them
            self.cycle.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)  # type: ignore[assignment]
        self._chunks, self._chunk_bytes = [], 0

    def _give_back(self) -> None:
        self.budget.give_back(self._counted_bytes)
        self._counted_bytes = 0

    def _read_without_offer(self, rest: bytes) -> None:
        """Read the request again without its offer of another protocol (RFC 9110, 7.8: it may be ignored)."""
        if self.parser.get_method() == b"CONNECT":
            self.send_400_response("CONNECT is not served here.")
            return
        kept = [(name, value) for name, value in self.headers if name not in OFFER_HEADERS]
        tokens = [t.strip() for name, value in self.headers if name == b"connection" for t in value.split(b",")]
        kept += [(b"connection", t) for t in tokens if t.lower() not in OFFER_HEADERS]
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + self.parser.get_http_version().encode()]
        lines += [name + b": " + value for name, value in kept]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join([*lines, b"", b""]) + rest)
