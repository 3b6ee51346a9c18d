"""What the proxies do with a request whose replica is lost after it was sent: to classify alone is tried again."""

import http.server
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.replicas import proxies


class _Lost(http.server.BaseHTTPRequestHandler):
    """Ready, and gone when it has taken a request in."""

    seen: Counter[str]

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.seen[f"{self.command} {self.path}"] += 1
        self.close_connection = True

    do_PUT = do_POST


class _WithoutLedger(_Lost):
    """Classifies, and its database is away."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200 if self.path == "/classify" else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_DELETE = do_POST


class _Busy(_WithoutLedger):
    """Classifies, and takes a second to say that it is ready."""

    def do_GET(self) -> None:
        time.sleep(1)
        super().do_GET()


@contextmanager
def lost(seen: Counter[str], kind: type) -> Iterator[int]:
    handler = type("Handler", (kind,), {"seen": seen})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@contextmanager
def client_of(name: str, folder: Path, seen: Counter[str], kind: type) -> Iterator[httpx.Client]:
    """A client of the proxy `name` before three replicas of that kind; the test skips where the program is missing."""
    if reason := proxies.missing(name):
        pytest.skip(reason)
    with ExitStack() as stack:
        ports = [stack.enter_context(lost(seen, kind)) for _ in range(3)]
        port = stack.enter_context(proxies.proxy(name, ports, folder))
        yield stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60))


@pytest.mark.parametrize("name", list(proxies.PROGRAMS))
def test_what_an_administrator_sends_is_never_sent_twice(name: str, tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    with client_of(name, tmp_path, seen, _Lost) as client:
        for method, path in (("PUT", "/admin/bundle"), ("POST", "/admin/keys/reload")):
            assert refused(client, method, path)
            assert seen[f"{method} {path}"] == 1, path
            time.sleep(2.5)  # nginx tries a replica that failed again after 2 s
        assert refused(client, "POST", "/classify")
        if name == "nginx":  # HAProxy 2.6 tries another one only now and then
            assert seen["POST /classify"] > 1


@pytest.mark.parametrize("name", list(proxies.PROGRAMS))
def test_a_database_that_is_away_stops_no_classification(name: str, tmp_path: Path) -> None:
    """nginx took the 503 of a label for a fault of the replica, of one after the other, and then had none: 502."""
    with client_of(name, tmp_path, Counter(), _WithoutLedger) as client:
        for method, path in (("POST", "/feedback"), ("POST", "/review/labels"), ("DELETE", "/requests/lion")):
            asked = [client.request(method, path, content=b"{}").status_code for _ in range(4)]
            assert asked == [503] * 4, path
            assert client.post("/classify", content=b"lion").status_code == 200, path


@pytest.mark.parametrize("name", list(proxies.PROGRAMS))
def test_replicas_that_are_busy_are_not_away(name: str, tmp_path: Path) -> None:
    """HAProxy waited half a second for a check, and where all three were slow it had no server: 503."""
    with client_of(name, tmp_path, Counter(), _Busy) as client:
        for _ in range(25):
            assert client.post("/classify", content=b"lion").status_code == 200
            time.sleep(0.1)


def refused(client: httpx.Client, method: str, path: str) -> bool:
    """Whether the proxy says that there is no answer, or ends the connection as the replica did."""
    try:
        return client.request(method, path, content=b"{}").status_code in (502, 503)
    except httpx.RemoteProtocolError:
        return True
