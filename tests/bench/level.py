"""One level of load on a running server: the generator's tally, the server's CPU and memory, and the health polls."""

import http.client
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, suppress
from dataclasses import asdict, dataclass

from service.settings.places import ROOT
from tests.bench.load import LoadTally, Spec, percentile
from tests.bench.processes import BenchError, Endpoint, cpu_s, memory_bytes

POLL_S = 0.05
POLL_TIMEOUT_S = 10.0
OF_THE_TREE = "/proc, the whole process tree"
OF_THE_METRICS = "process_cpu_seconds_total of GET /metrics"


@dataclass(frozen=True)
class Level:
    """What one level of load gave. `cpu_ms`: CPU of the server per answered request, that of refusals included."""

    image: str
    body: str  # raw or form
    connections: int
    tally: LoadTally
    req_s: float
    cpu_ms: float | None  # None: nothing answered, or the CPU is not known
    cpu_of: str | None
    health_p50_ms: float | None
    health_p99_ms: float | None
    memory_mb: float | None
    limit_req_s_ratio: float | None = None
    limit_cpu_ratio: float | None = None


@dataclass(frozen=True)
class Load:
    """What is sent and for how long."""

    image: str
    body: str
    request: bytes
    connections: int
    warmup_s: float
    seconds: float
    ignore_retry_after: bool = False


def measure(server: Endpoint, load: Load, *, key: str | None = None, health: str = "/health/live") -> Level:
    """Push `load` at `server` from a process of its own. Raises BenchError when the generator fails."""
    spec = Spec(
        server.host, server.port, load.request.decode("latin-1"), load.connections, load.warmup_s, load.seconds,
        load.ignore_retry_after,
    )  # fmt: skip
    command = [sys.executable, "-m", "tests.bench.load"]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as errors,  # not a pipe: one that nobody reads blocks its writer when it is full
        subprocess.Popen(command, cwd=ROOT, text=True, stdin=pipe, stdout=pipe, stderr=errors) as generator,
    ):
        assert generator.stdin
        assert generator.stdout
        try:
            with suppress(BrokenPipeError):  # it has ended; why is on its stderr
                generator.stdin.write(json.dumps(asdict(spec)))
                generator.stdin.close()
            generator.stdout.readline()
            before = server_cpu_s(server, key)
            with HealthPolls(server, health) as polls:
                generator.stdout.readline()
            after = server_cpu_s(server, key)
            memory = None if server.pid is None else sum(map(memory_bytes, server.roots)) / 1e6
            last = generator.stdout.readline()
            if generator.wait() or not last:
                errors.seek(0)
                why = errors.read().strip()[-2000:]
                raise BenchError(f"the load generator ended with {generator.returncode}: {why}")
        finally:
            generator.kill()
    tally = LoadTally(**json.loads(last))
    used = None if before is None or after is None or not tally.answered else 1000 * (after - before) / tally.answered
    source = None if used is None else OF_THE_METRICS if server.pid is None else OF_THE_TREE
    polled = sorted(polls.taken_ms)
    return Level(
        image=load.image,
        body=load.body,
        connections=load.connections,
        tally=tally,
        req_s=tally.answered / tally.seconds,
        cpu_ms=used,
        cpu_of=source,
        health_p50_ms=percentile(polled, 0.5),
        health_p99_ms=percentile(polled, 0.99),
        memory_mb=memory,
    )


def server_cpu_s(server: Endpoint, key: str | None) -> float | None:
    """CPU seconds the server has used: of its tree if we started it, else what it publishes, else None."""
    if server.pid is not None:
        return sum(map(cpu_s, server.roots))
    found = re.search(r"^process_cpu_seconds_total (\S+)$", metrics(server, key), re.MULTILINE)
    return float(found[1]) if found else None


def metrics(server: Endpoint, key: str | None) -> str:
    """The text of GET /metrics; empty when the server has none, or does not let us read it."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with (
        suppress(OSError, http.client.HTTPException),
        closing(http.client.HTTPConnection(server.host, server.port, timeout=POLL_TIMEOUT_S)) as connection,
    ):
        connection.request("GET", "/metrics", headers=headers)
        answer = connection.getresponse()
        if answer.status == 200:
            return answer.read().decode()
    return ""


class HealthPolls:
    """GET of the health route 20 times a second from a thread, on one connection, while the block runs.

    Not in the generator: there the polls would wait for its own connections. A poll that fails counts with the time it
    took to fail, at least the timeout's.
    """

    def __init__(self, server: Endpoint, path: str) -> None:
        self._server, self._path = server, path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self.taken_ms: list[float] = []

    def __enter__(self) -> "HealthPolls":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(POLL_TIMEOUT_S + 1)

    def _poll(self) -> None:
        connection = http.client.HTTPConnection(self._server.host, self._server.port, timeout=POLL_TIMEOUT_S)
        due = time.monotonic()
        while not self._stop.is_set():
            begun = time.perf_counter()
            try:
                connection.request("GET", self._path)
                answer = connection.getresponse()
                answer.read()
                good = answer.status == 200
            except (OSError, http.client.HTTPException):
                connection.close()
                good = False
            taken_ms = 1000 * (time.perf_counter() - begun)
            self.taken_ms.append(taken_ms if good else max(taken_ms, 1000 * POLL_TIMEOUT_S))
            due = max(due + POLL_S, time.monotonic())
            self._stop.wait(due - time.monotonic())
        connection.close()
