"""service/observe/tracing.py: what a real collector receives, decoded; off, and nothing imported; dead collectors."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import structlog

from service.errors import SettingsError
from service.observe import tracing
from service.observe.tracing import Tracer, http_attributes
from service.settings import Settings

EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
PARENT = (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
MS = 1_000_000


class Collector:
    """A real HTTP server on loopback that keeps what is posted to it."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, str, bytes]] = []
        posts = self.posts

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                posts.append((self.path, self.headers["content-type"], body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing on standard error."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def resource_and_spans(self) -> tuple[dict[str, str], list[Any]]:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        resource: dict[str, str] = {}
        spans: list[Any] = []
        for path, kind, body in self.posts:
            assert (path, kind) == ("/v1/traces", "application/x-protobuf")
            for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                resource |= {a.key: a.value.string_value for a in of_resource.resource.attributes}
                spans += [span for of_scope in of_resource.scope_spans for span in of_scope.spans]
        return resource, spans


@pytest.fixture(autouse=True)
def _no_standard_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*tracing.STANDARD, "OTEL_SDK_DISABLED", "OTEL_SERVICE_NAME", "OTEL_TRACES_SAMPLER"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def collector() -> Iterator[Collector]:
    pytest.importorskip(EXPORTER, reason="OpenTelemetry is not installed: pip install 'tailguard[otel]'")
    found = Collector()
    thread = threading.Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


@pytest.fixture
def complaints(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    monkeypatch.setattr(tracing, "log", structlog.get_logger())
    with structlog.testing.capture_logs() as found:
        yield found


def started(url: str) -> Tracer:
    tracer = tracing.load(Settings(otlp_endpoint=url))
    assert tracer is not None
    return tracer


def record(tracer: Tracer, *headers: tuple[bytes, bytes], start: float = 1000.0, failed: bool = False) -> None:
    tracer.record("POST /classify", headers, start, start + 0.25, {}, {}, failed)


def test_a_request_arrives_as_it_was(collector: Collector) -> None:
    tracer = started(collector.url)
    begin, before_ns = time.perf_counter(), time.time_ns()
    stages = {  # in milliseconds after the begin
        "receive": (0, 10),
        "decode": (10, 30),
        "queue": (30, 100),
        "inference": (100, 240),
        "respond": (240, 250),
    }
    tracer.record(
        "POST /classify",
        [(b"host", b"x"), PARENT, (b"tracestate", b"vendor=7")],
        begin,
        begin + 0.25,
        {name: (begin + a / 1e3, begin + b / 1e3) for name, (a, b) in stages.items()},
        http_attributes("POST", "http", "/classify", "/classify", 200) | {"tailguard.decision": "reject", "n": 2},
        failed=False,
    )
    tracer.close()
    resource, spans = collector.resource_and_spans()
    assert resource["service.name"] == "tailguard"
    assert [s.name for s in spans] == [*stages, "POST /classify"]
    *children, root = spans
    assert {s.trace_id.hex() for s in spans} == {"0af7651916cd43dd8448eb211c80319c"}
    assert root.parent_span_id.hex() == "b7ad6b7169203331"
    assert root.trace_state == "vendor=7"
    assert {s.parent_span_id for s in children} == {root.span_id}
    assert len({s.span_id for s in spans}) == 6
    assert [s.kind for s in spans] == [1] * 5 + [2]  # internal, server
    assert root.status.code == 0  # unset
    assert abs(root.start_time_unix_nano - before_ns) < 1000 * MS  # the clock is the world's, not perf_counter's
    for span, (a, b) in zip(spans, [*stages.values(), (0, 250)], strict=True):
        assert abs(span.start_time_unix_nano - root.start_time_unix_nano - a * MS) <= 1000
        assert abs(span.end_time_unix_nano - span.start_time_unix_nano - (b - a) * MS) <= 1000
    attributes = {a.key: a.value for a in root.attributes}
    assert attributes["http.route"].string_value == "/classify"
    assert attributes["http.response.status_code"].int_value == 200
    assert attributes["tailguard.decision"].string_value == "reject"


@pytest.mark.parametrize("headers", [[], [(b"traceparent", b"00-nonsense")], [(b"traceparent", b"\xff\x00")]])
def test_without_a_usable_parent_a_trace_begins(collector: Collector, headers: list[tuple[bytes, bytes]]) -> None:
    tracer = started(collector.url)
    record(tracer, *headers)
    record(tracer, *headers, failed=True)
    tracer.close()
    _, (first, second) = collector.resource_and_spans()
    assert first.parent_span_id == second.parent_span_id == b""
    assert first.trace_id != second.trace_id
    assert (first.status.code, second.status.code) == (0, 2)  # unset, error


def test_the_client_and_the_sampler_choose(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = started(collector.url)
    record(tracer, (PARENT[0], PARENT[1][:-2] + b"00"))  # the client traces, and not this one
    record(tracer)
    tracer.close()
    assert len(collector.resource_and_spans()[1]) == 1
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    tracer = started(collector.url)
    record(tracer)
    tracer.close()
    assert len(collector.posts) == 1


def test_standard_variables_turn_it_on_and_off(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "plankton")
    tracer = tracing.load(Settings())
    assert tracer is not None
    record(tracer)
    tracer.close()
    assert collector.resource_and_spans()[0]["service.name"] == "plankton"
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert tracing.load(Settings()) is None


def test_standard_variable_with_a_bad_value_is_one_line(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1000000")
    with pytest.raises(SettingsError, match="does not start with the OTEL_ variables as they are: max_export_batch"):
        tracing.load(Settings(otlp_endpoint=collector.url))


def test_nothing_reaches_the_request(collector: Collector, complaints: list[Any]) -> None:
    tracer = started(collector.url)
    for _ in range(3):
        tracer.record("x", [PARENT], float("nan"), 0.0, {}, {}, failed=False)
    record(tracer)
    tracer.close()
    assert [c["event"] for c in complaints] == ["tracing"]  # once, not three times
    assert "NaN" in complaints[0]["problem"]
    assert len(collector.resource_and_spans()[1]) == 1


def test_a_collector_that_never_answers_is_left_behind(
    collector: Collector, complaints: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1000000")  # without the bound, close would wait for this
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracer = started(f"http://127.0.0.1:{silent.getsockname()[1]}")
        record(tracer)
        tracer.close(timeout_s=0.1)
        silent.accept()[0].close()
    assert [c["problem"] for c in complaints] == ["the last traces were not taken within 0.1 s and are lost"]


def test_a_dead_collector_ends_with_few_words(collector: Collector) -> None:
    """In a process, for nothing may reach standard error past the log, and the process must end."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    code = f"""
from service.observe import tracing
from service.settings import Settings
tracer = tracing.load(Settings(otlp_endpoint="http://127.0.0.1:{port}"))
for _ in range(5000):
    tracer.record("x", [], 1.0, 2.0, {{}}, {{}}, False)
tracer.close(0.3)
print("ended")
"""
    ended = python(code)
    assert (ended.returncode, ended.stderr) == (0, "")
    *said, last = ended.stdout.splitlines()
    assert last == "ended"
    assert len(said) == 1, ended.stdout
    assert "tracing" in said[0]


def test_off_imports_nothing() -> None:
    code = """
import sys
from service.observe import tracing
from service.settings import Settings
assert tracing.load(Settings()) is None
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    ended = python(code)
    assert (ended.stdout, ended.stderr) == ("[]\n", "")


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, EXPORTER, None)  # importing it fails, installed or not
    with pytest.raises(SettingsError, match=r"pip install 'tailguard\[otel\]', or leave TAILGUARD_OTLP_ENDPOINT out"):
        tracing.load(Settings(otlp_endpoint="http://localhost:4318"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://localhost:4318/v1/traces")
    assert tracing.load(Settings()) is None


@pytest.mark.parametrize("endpoint", ["localhost:4318", "ftp://x", "http://", "http://x:port", "http://[", "collector"])
def test_endpoint_that_is_none(endpoint: str) -> None:
    with pytest.raises(SettingsError, match=r"OTLP_ENDPOINT=.* is not valid: give the collector's address"):
        tracing.load(Settings(otlp_endpoint=endpoint))


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://c:4318", "http://c:4318/v1/traces"),
        ("https://c/otlp/", "https://c/otlp/v1/traces"),
        ("http://c:4318/v1/traces", "http://c:4318/v1/traces"),
        ("http://[::1]:4318?token=1", "http://[::1]:4318/v1/traces?token=1"),
    ],
)
def test_path_is_completed(given: str, used: str) -> None:
    assert tracing._traces_url(given) == used


def test_attributes_are_bounded_and_by_the_conventions() -> None:
    found = http_attributes("BREW", "http", "/" + "x" * 5000, None, 500)
    assert found["http.request.method"] == "_OTHER"
    assert len(str(found["url.path"])) == 1024
    assert found["error.type"] == "500"
    assert "http.route" not in found
    assert "error.type" not in http_attributes("GET", "http", "/", "/", 429)


def python(code: str) -> "subprocess.CompletedProcess[str]":
    root = Path(__file__).resolve().parents[3]
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=root, capture_output=True, text=True, timeout=60
    )
