"""service/web/connection.py and server.py on a real socket: silence, floods, departures, and the ways to end."""

import http.client
import itertools
import re
import select
import signal
import socket
import time
from pathlib import Path

import httpx
import pytest

from service.settings import Settings
from tests.service import tiny
from tests.service.test_process import LIMIT_S, serving

PNG = {"content-type": "image/png"}


def test_client_that_leaves_is_noticed_and_its_slot_is_free_again(tiny_bundle: Path) -> None:
    slow = tiny.photo((220, 30, 30), (4000, 4000))  # some hundred milliseconds of decoding for each
    with serving(BUNDLE=str(tiny_bundle), QUEUE_IMAGES="8", DECODE_THREADS="1", INFERENCE_THREADS="1") as (_, port):
        head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(slow)}\r\n\r\n"
        for _ in range(24):  # three times what the queue holds: each leaves at once
            with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as connection:
                connection.sendall(head.encode() + slow)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S) as client:
            deadline = time.monotonic() + LIMIT_S
            while "tailguard_queue_images 0.0" not in (text := client.get("/metrics").text):
                assert time.monotonic() < deadline, text
                time.sleep(0.05)
            assert client.post("/classify", content=tiny.photo(), headers=PNG).json()["label"] == "red"
            assert 'reason="client-gone"' in client.get("/metrics").text


def test_unfinished_and_endless_headers_are_cut_off(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(BUNDLE=str(tiny_bundle)) as (_, port):
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as connection:
            connection.sendall(b"GET /health/live HTTP/1.1\r\nX-Endless: ")
            answer = b""
            try:
                for _ in range(100):
                    connection.sendall(b"x" * 10_000)
                while chunk := connection.recv(65536):
                    answer += chunk
            except ConnectionError:
                pass  # closed while we were still sending
            assert answer.startswith(b"HTTP/1.1 400") or not answer
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S) as client:
            assert client.get("/health/live").status_code == 200
            long = {"x-long": "x" * 30_000}
            assert client.post("/classify", content=tiny.photo(), headers=PNG | long).status_code == 200


def test_more_connections_than_allowed_are_turned_away(tiny_bundle: Path) -> None:
    with serving(BUNDLE=str(tiny_bundle), MAX_CONNECTIONS="4") as (_, port):
        held = [socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) for _ in range(4)]
        for connection in held:  # an answer on each: all four are known to the server
            connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as fifth:
            try:
                fifth.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
                assert fifth.recv(100) == b""
            except ConnectionError:
                pass
        held.pop().close()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S) as client:
            deadline = time.monotonic() + LIMIT_S
            while True:
                try:
                    assert client.get("/health/live").status_code == 200
                    break
                except httpx.TransportError:
                    assert time.monotonic() < deadline
        for connection in held:
            connection.close()


class Peer:
    """One raw connection to a service on a free port."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def answer(self) -> tuple[int, bytes]:
        """Status and body of the next answer that is not an interim one."""
        found = http.client.HTTPResponse(self.socket)
        found.begin()
        return found.status, found.read()

    def closed(self) -> bool:
        """Whether the server closes the connection within the test's limit."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionError:
            pass
        except TimeoutError:
            return False
        return True


HEALTH = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


def post(body: bytes, *lines: str) -> bytes:
    head = ["POST /classify HTTP/1.1", "Host: x", "Content-Type: image/png", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


def test_no_state_of_a_connection_lasts(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import service.web.connection as c; c.HEAD_TIMEOUT_S = c.REST_TIMEOUT_S = 1.0\n"
        "import sys; from service.__main__ import main; sys.exit(main(['serve']))"
    )
    monkeypatch.setattr("tests.service.test_process.COMMAND", ["-c", code])
    one_byte_of_a_refused_body = post(b"x" * 100)[:-99]
    states = (b"", b"\r\n", b"\r\n\r\n", b"GET /health", one_byte_of_a_refused_body)
    with serving(BUNDLE=str(tiny_bundle), API_KEY="k", IDLE_TIMEOUT_S="1") as (_, port):
        peers = [Peer(port) for _ in states]
        for peer, then in zip(peers, states, strict=True):
            peer.socket.sendall(HEALTH)
            assert peer.answer()[0] == 200
            peer.socket.sendall(then)
            if then is one_byte_of_a_refused_body:
                assert peer.answer()[0] == 401
        for peer, then in zip(peers, states, strict=True):
            with peer:
                assert peer.closed(), then


def test_an_idle_connection_outlives_the_usual_balancers(tiny_bundle: Path) -> None:
    assert Settings().idle_timeout_s > 60
    with serving(BUNDLE=str(tiny_bundle)) as (_, port), Peer(port) as peer:
        for _ in range(2):
            peer.socket.sendall(HEALTH)
            assert peer.answer()[0] == 200
            time.sleep(6)  # uvicorn's own limit is 5 s


def test_trailers_and_extensions_of_chunks_are_bounded(tiny_bundle: Path) -> None:
    with serving(BUNDLE=str(tiny_bundle), API_KEY="k") as (process, port):
        endless_ones = (b"0\r\nX-Trailer: ", b"0\r\nX: y\r\n" + b"A: b\r\n" * 20_000, b"5;x=")
        for endless, key in itertools.product(endless_ones, ("k", "wrong")):
            head = f"POST /classify HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nContent-Type: image/png\r\n"
            with Peer(port) as peer:
                peer.socket.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + endless)
                sent = 0
                try:
                    while sent < 32 * 2**20:
                        sent += peer.socket.send(b"x" * 65536)
                except ConnectionError:
                    pass
                assert sent < 32 * 2**20
        memory_kib = next(int(line.split()[1]) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
                          if line.startswith("VmHWM"))  # fmt: skip
        with Peer(port) as peer:
            peer.socket.sendall(HEALTH)
            assert peer.answer()[0] == 200
        assert memory_kib < 400 * 1024


def test_trailers_are_no_headers(tiny_bundle: Path) -> None:
    photo = tiny.photo()
    chunked = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = f"{len(photo):x}\r\n".encode() + photo + b"\r\n0\r\nX-Request-Id: trailer\r\n\r\n"
    with serving(BUNDLE=str(tiny_bundle)) as (_, port), Peer(port) as peer:
        peer.socket.sendall(chunked + body)
        status, answer = peer.answer()
        assert (status, b"trailer" in answer) == (200, False)


def test_offer_of_an_upgrade_is_ignored_and_the_body_read(tiny_bundle: Path) -> None:
    with serving(BUNDLE=str(tiny_bundle)) as (_, port):
        for offer in ("h2c", "websocket"):
            lines = ("Connection: Upgrade, HTTP2-Settings", f"Upgrade: {offer}", "HTTP2-Settings: AAE")
            offered = post(tiny.photo(), *lines)
            with Peer(port) as peer:
                peer.socket.sendall(offered)
                status, answer = peer.answer()
                assert (status, b'"label":"red"' in answer) == (200, True)
                for piece in (offered[:20], offered[20:190], offered[190:-5], offered[-5:]):
                    peer.socket.sendall(piece)
                    time.sleep(0.05)
                assert b'"label":"red"' in peer.answer()[1]
                peer.socket.sendall(HEALTH)
                assert peer.answer() == (200, b'{"status":"live"}')
                peer.socket.sendall(b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n")
                assert peer.answer()[0] == 400


def test_half_closed_connection_gets_its_answer(tiny_bundle: Path) -> None:
    slow = tiny.photo((220, 30, 30), (3000, 3000))
    with serving(BUNDLE=str(tiny_bundle)) as (_, port):
        for photo in (tiny.photo(), slow):
            with Peer(port) as peer:
                peer.socket.sendall(post(photo))
                peer.socket.shutdown(socket.SHUT_WR)
                status, answer = peer.answer()
                assert (status, b'"label":"red"' in answer) == (200, True)
                assert peer.closed()


def test_client_of_a_large_body_that_leaves_is_noticed(tiny_bundle: Path) -> None:
    slow = tiny.photo((220, 30, 30), (4000, 4000))
    sizes = (262_144, 300_000, 400_000)  # bytes after a PNG's end are nobody's business
    padded = [post(slow + bytes(size - len(slow))) for size in sizes * 3]
    with serving(BUNDLE=str(tiny_bundle), INFERENCE_THREADS="1") as (_, port):
        for body in padded:
            with Peer(port) as peer:
                peer.socket.sendall(body)
                time.sleep(0.02)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S) as client:
            deadline = time.monotonic() + LIMIT_S
            while "tailguard_queue_images 0.0" not in (text := client.get("/metrics").text):
                assert time.monotonic() < deadline, text
                time.sleep(0.05)
            gone = re.search(r'refused_total{reason="client-gone"} (\S+)', text)
            assert gone is not None
            assert float(gone[1]) >= len(padded) - 2  # one may just be done


def test_gathered_bytes_count_against_the_limit(tiny_bundle: Path) -> None:
    part = post(b"x" * 200_000)[:-50_000]
    with serving(BUNDLE=str(tiny_bundle), MAX_RECEIVING_BYTES="1000000") as (_, port):
        peers = [Peer(port) for _ in range(12)]
        for peer in peers:
            peer.socket.sendall(part)
        time.sleep(1)
        answered = select.select([peer.socket for peer in peers], [], [], 0)[0]
        refused = [peer for peer in peers if peer.socket in answered]
        assert {peer.answer()[0] for peer in refused} == {429}
        assert 12 - len(refused) <= 7
        for peer in peers:
            peer.socket.close()
        with Peer(port) as peer:
            photo = tiny.photo()
            peer.socket.sendall(post(photo))
            assert peer.answer()[0] == 200  # what was gathered has been given back


def test_term_is_not_ready_at_once_and_still_serves_during_the_grace(tiny_bundle: Path) -> None:
    with serving(BUNDLE=str(tiny_bundle), DRAIN_GRACE_S="3") as (process, port):
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S) as client:
            assert client.get("/health/ready").status_code == 200
            process.send_signal(signal.SIGTERM)
            while client.get("/health/ready").status_code != 503:
                pass
            answer = client.post("/classify", content=tiny.photo(), headers=PNG)
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
            assert client.get("/health/live").status_code == 200
        assert process.wait(LIMIT_S) == 0


def test_second_signal_ends_it_hard(tiny_bundle: Path) -> None:
    with serving(BUNDLE=str(tiny_bundle), DRAIN_GRACE_S="600") as (process, port):
        process.send_signal(signal.SIGTERM)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S) as client:
            while client.get("/health/ready").status_code != 503:
                pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 128 + signal.SIGTERM


def test_deadline_of_the_drain_ends_it_hard(tiny_bundle: Path) -> None:
    """A client that never finishes its body holds the drain until its time is up."""
    with (
        serving(BUNDLE=str(tiny_bundle), DRAIN_GRACE_S="0", DRAIN_S="1", REQUEST_TIMEOUT_S="600") as (process, port),
        socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as connection,
    ):
        connection.sendall(
            b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 99\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) in (0, 1)


def test_hup_reads_the_keys_again(tiny_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text('[keys.one]\nkey = "0ne"\n')
    with (
        serving(BUNDLE=str(tiny_bundle), KEYS_FILE=str(file)) as (process, port),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S) as client,
    ):
        assert client.get("/model", headers={"x-api-key": "0ne"}).status_code == 200
        for broken in ("", "[keys"):
            file.write_text(broken)
            process.send_signal(signal.SIGHUP)
            assert client.get("/model", headers={"x-api-key": "0ne"}).status_code == 200
        file.write_text('[keys.two]\nkey = "tw0"\n')
        process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + LIMIT_S
        while client.get("/model", headers={"x-api-key": "tw0"}).status_code != 200:
            assert time.monotonic() < deadline
        assert client.get("/model", headers={"x-api-key": "0ne"}).status_code == 401
