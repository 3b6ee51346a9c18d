"""service/web/connection.py and server.py on a real socket: silence, floods, departures, and the ways to end."""

import signal
import socket
import time
from pathlib import Path

import httpx
import pytest

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
