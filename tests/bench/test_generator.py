"""The load generator against a server that is not ours and does not behave."""

import http.server
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import pytest

from service.settings.places import ROOT
from tests.bench import level, photos
from tests.bench.level import Level, Load
from tests.bench.load import Spec
from tests.bench.processes import BenchError, Endpoint
from tests.service import tiny

PNG = photos.Photo("a.png", tiny.photo(), "image/png")


class Alternating(http.server.BaseHTTPRequestHandler):
    """200 and 429 in turn on each connection; /close ends the connection after each answer, /break before it."""

    protocol_version = "HTTP/1.1"
    turn = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/break":
            self.close_connection = True
            return
        shed, self.turn = self.turn % 2, self.turn + 1
        self.send_response(429 if shed else 200)
        self.send_header("content-length", "2")
        self.send_header("retry-after", "0")
        if self.path == "/close":
            self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(b"ok")

    def do_GET(self) -> None:
        body = b"process_cpu_seconds_total 1.5\n" if self.path == "/metrics" else b"ok"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def alternating() -> Iterator[Endpoint]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Alternating) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Endpoint("127.0.0.1", server.server_address[1], None)
        server.shutdown()
        thread.join()


def push(server: Endpoint, path: str, connections: int = 3) -> Level:
    return level.measure(server, Load("a", "raw", photos.raw_request(path, PNG), connections, 0.1, 0.4))


def test_statuses_are_counted_apart() -> None:
    with alternating() as server:
        found = push(server, "/classify").tally
    assert set(found.statuses) == {"200", "429"}
    assert abs(found.statuses["200"] - found.statuses["429"]) <= 3
    assert (found.answered, found.shed, found.failed) == (found.statuses["200"], found.statuses["429"], 0)
    assert found.connection_errors == 0


def test_a_connection_closed_after_an_answer_is_no_error_and_one_closed_before_is() -> None:
    with alternating() as server:
        closed, broken = push(server, "/close"), push(server, "/break")
    assert closed.tally.answered > 0
    assert closed.tally.connection_errors == 0
    assert broken.tally.statuses == {}
    assert broken.tally.connection_errors > 0
    assert broken.cpu_ms is None


def test_cpu_of_a_server_that_is_not_ours_comes_from_its_metrics() -> None:
    with alternating() as server:
        assert level.server_cpu_s(server, None) == 1.5
        assert push(server, "/classify").cpu_of == level.OF_THE_METRICS
    assert level.server_cpu_s(server, None) is None  # nothing listens any more


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        found = push(Endpoint("127.0.0.1", unused.getsockname()[1], None), "/classify")
    assert (found.tally.answered, found.cpu_ms) == (0, None)
    assert found.tally.connection_errors > 0
    assert found.health_p99_ms == 1000 * level.POLL_TIMEOUT_S


def test_a_generator_with_an_error_of_its_own_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from tests.bench import load; load.Connection._send = lambda self: 1 / 0; load.main()"
    with alternating() as server:
        spec = Spec(server.host, server.port, "", 1, 0.1, 60)
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, input=json.dumps(asdict(spec)), capture_output=True, text=True
        )
        assert done.returncode == 1
        assert "ZeroDivisionError" in done.stderr
        monkeypatch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(BenchError, match="the load generator ended with 1"):
            push(server, "/classify")


def test_the_generator_stays_light() -> None:
    code = "import sys, tests.bench.load; print(sorted({'numpy', 'fastapi', 'onnxruntime', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
