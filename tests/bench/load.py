"""The load generator: closed-loop keep-alive connections in a process of its own, so that its CPU is not the server's.

    python -m tests.bench.load < spec.json      # prints "measuring", "measured" and the LoadTally, one JSON line each

A connection sends its next request when the answer to the last has come. One that is shed (429 or 503) waits for what
Retry-After says, at most 0.1 s so that a short run keeps pushing, with jitter; `ignore_retry_after` sends at once.
"""

import asyncio
import contextlib
import json
import math
import os
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import httptools

SHED = (429, 503)
LONGEST_WAIT_S = 0.1
RECONNECT_S = 0.05
FINISH_S = 5.0  # for the answers still under way when the time is over, so that they do not fall into the next level


@dataclass(frozen=True)
class Spec:
    """What to send and for how long. `request` is one whole HTTP request, head and body, as latin-1 text."""

    host: str
    port: int
    request: str
    connections: int
    warmup_s: float
    seconds: float
    ignore_retry_after: bool = False


@dataclass
class LoadTally:
    """What came back while it was measured. Latencies are those of answered (2xx) requests, milliseconds."""

    seconds: float = 0.0
    answered: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    connection_errors: int = 0
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    generator_cpu_s: float = 0.0

    @property
    def shed(self) -> int:
        return sum(self.statuses.get(str(status), 0) for status in SHED)

    @property
    def failed(self) -> int:
        """Answers that are neither 2xx nor shed."""
        return sum(self.statuses.values()) - self.answered - self.shed


def percentile(ascending: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile: the smallest value that at least `share` of all do not exceed; None of nothing."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)] if ascending else None


class Generator:
    """All connections and what they saw. Only what ends between `begin` and `end` counts."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.request = spec.request.encode("latin-1")
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(_give_up)
        self.random = random.Random(0)
        self.counting = self.stopping = False
        self.under_way = 0
        self._latencies: list[float] = []
        self._statuses: Counter[int] = Counter()
        self._errors = 0
        self._connecting: set[asyncio.Task[None]] = set()

    async def run(self) -> LoadTally:
        for _ in range(self.spec.connections):
            self.connect()
        await asyncio.sleep(self.spec.warmup_s)
        _say("measuring")
        self.counting = True
        begun, cpu = time.perf_counter(), time.process_time()
        await asyncio.sleep(self.spec.seconds)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        self.counting, self.stopping = False, True
        _say("measured")
        deadline = time.monotonic() + FINISH_S
        while self.under_way and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        return self._tally(seconds, cpu)

    def connect(self) -> None:
        if not self.stopping:
            task = self.loop.create_task(self._connect())
            self._connecting.add(task)  # the loop itself keeps no task alive
            task.add_done_callback(self._connected)

    async def _connect(self) -> None:
        try:
            await self.loop.create_connection(lambda: Connection(self), self.spec.host, self.spec.port)
        except OSError:
            self.failed()

    def _connected(self, task: asyncio.Task[None]) -> None:
        self._connecting.discard(task)
        if not (self.stopping and task.cancelled()):  # still connecting when the time was over
            task.result()  # what it raises here ends the process, see _give_up

    def answered(self, status: int, seconds: float) -> None:
        if self.counting:
            self._statuses[status] += 1
            if 200 <= status < 300:
                self._latencies.append(seconds)

    def failed(self) -> None:
        """A connection was refused or broken: count it and open another soon."""
        if self.counting:
            self._errors += 1
        self.loop.call_later(RECONNECT_S, self.connect)

    def wait_s(self, status: int, retry_after: bytes | None) -> float:
        """How long a connection rests after an answer, seconds."""
        if status not in SHED or self.spec.ignore_retry_after:
            return 0.0
        try:
            asked = float(retry_after or b"0")
        except ValueError:  # a date: further away than we would wait
            asked = LONGEST_WAIT_S
        return min(asked, LONGEST_WAIT_S) * self.random.uniform(0.5, 1.0)

    def _tally(self, seconds: float, cpu: float) -> LoadTally:
        ascending = sorted(1000 * s for s in self._latencies)
        statuses = {str(status): count for status, count in sorted(self._statuses.items())}
        return LoadTally(
            seconds=seconds,
            answered=len(ascending),
            statuses=statuses,
            connection_errors=self._errors,
            p50_ms=percentile(ascending, 0.5),
            p90_ms=percentile(ascending, 0.9),
            p99_ms=percentile(ascending, 0.99),
            generator_cpu_s=cpu,
        )


class Connection(asyncio.Protocol):
    """One keep-alive connection; httptools calls the `on_` methods."""

    def __init__(self, generator: Generator) -> None:
        self._all = generator
        self._waiting = self._ended = False
        self._retry_after: bytes | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if self._waiting:
            self._done_waiting()
            self._all.failed()
        elif not self._ended:  # closed by the server between two requests: no error, a server may do that
            self._all.connect()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            self._retry_after = value

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue comes before the answer
            return
        self._done_waiting()
        self._all.answered(status, time.perf_counter() - self._sent)
        wait_s = self._all.wait_s(status, self._retry_after)
        if not self._parser.should_keep_alive():
            self._ended = True
            self._transport.close()
            self._all.loop.call_later(wait_s, self._all.connect)
        elif wait_s:
            self._all.loop.call_later(wait_s, self._send)
        else:
            self._all.loop.call_soon(self._send)  # the parser cannot be replaced while it runs

    def _send(self) -> None:
        if self._all.stopping or self._transport.is_closing():
            return
        self._parser = httptools.HttpResponseParser(self)
        self._retry_after = None
        self._waiting = True
        self._all.under_way += 1
        self._sent = time.perf_counter()
        self._transport.write(self._all.request)

    def _done_waiting(self) -> None:
        self._waiting = False
        self._all.under_way -= 1


def _say(line: Any) -> None:
    print(json.dumps(line), flush=True)


def _give_up(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What a generator with an error of its own counts is no measurement."""
    loop.default_exception_handler(context)
    sys.stderr.flush()
    os._exit(1)


def main() -> None:
    spec = Spec(**json.load(sys.stdin))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = spec.connections + 64
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard) if hard >= 0 else wanted, hard))

    async def run() -> LoadTally:
        return await Generator(spec).run()

    with contextlib.suppress(ImportError):  # not on every platform; asyncio's own loop does the same, slower
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    _say(asdict(asyncio.run(run())))


if __name__ == "__main__":
    main()
