"""python -m service as a real process on a real socket: start, serve, drain, and starts that fail in one line."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import service
from service.__main__ import main
from tests import warm
from tests.service import tiny

ROOT = Path(service.__file__).parent.parent
LIMIT_S = 60
COMMAND = ["-m", "service"]


def start(*arguments: str, popen: type = warm.Popen, **settings: str) -> subprocess.Popen[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("TAILGUARD_")}
    environ = inherited | {f"TAILGUARD_{k}": v for k, v in settings.items()}
    command = [sys.executable, *COMMAND, *arguments]
    if COMMAND[0] != "-m":
        popen = subprocess.Popen
    process: subprocess.Popen[str] = popen(
        command, cwd=ROOT, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    return process


@contextmanager
def serving(popen: type = warm.Popen, **settings: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server on a free port, once it listens."""
    process = start(popen=popen, **{"PORT": "0", "DRAIN_GRACE_S": "0"} | settings)
    try:
        assert process.stderr is not None
        seen = []
        for line in process.stderr:
            seen.append(line)
            if found := re.search(r"listening on http://127\.0\.0\.1:(\d+)", line):
                yield process, int(found[1])
                return
        raise AssertionError("".join(seen))
    finally:
        process.kill()
        process.communicate()


def test_classify_over_a_socket_and_a_big_body(tiny_bundle: Path) -> None:
    """Of a process that has imported all itself."""
    with serving(subprocess.Popen, BUNDLE=str(tiny_bundle)) as (process, port):
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=LIMIT_S) as client:
            multipart = client.post("/classify", files={"file": ("a.png", tiny.photo(), "image/png")})
            raw = client.post("/classify", content=tiny.photo(), headers={"content-type": "image/png"})
            assert multipart.json()["label"] == raw.json()["label"] == "red"
            big = client.post("/classify", content=bytes(20_000_000), headers={"content-type": "image/png"})
            assert (big.status_code, big.headers["connection"]) == (413, "close")
            chunks = (bytes(100_000) for _ in range(200))
            chunked = client.post("/classify", content=chunks, headers={"content-type": "image/png"})
            assert chunked.status_code == 413
            assert client.get("/health/ready").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0


def test_term_answers_what_is_in_flight_and_exits_0(tiny_bundle: Path) -> None:
    with serving(BUNDLE=str(tiny_bundle)) as (process, port):
        photo = tiny.photo()
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as connection:
            head = (
                f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(photo)}\r\n"
                "Expect: 100-continue\r\n\r\n"
            )
            connection.sendall(head.encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 100")  # the request is being handled now
            process.send_signal(signal.SIGTERM)
            wait_until_refused(port)
            connection.sendall(photo)
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"label":"red"' in answer
        assert process.wait(LIMIT_S) == 0


def wait_until_refused(port: int) -> None:
    """Return once the listening socket is closed: the drain has begun."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S).close()
        except ConnectionError:
            return


def test_starts_that_fail_do_so_in_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    changed = tiny.write(tmp_path / "changed")
    (changed / "model.onnx").write_bytes(b"other")
    golden = [tiny.golden("examples/red.png", (1, 2, 3))]
    wrong = tiny.write(tmp_path / "wrong", golden=golden)
    cases = [
        ({"BUNDLE": "/nowhere"}, "/nowhere is not a bundle"),
        ({"BUNDLE": str(changed)}, "model.onnx has sha256"),
        ({"BUNDLE": str(wrong)}, "golden example examples/red.png"),
        ({"BUNDLE": str(tiny_bundle), "HOST": "0.0.0.0"}, "set TAILGUARD_API_KEY"),
        ({"BUNDEL": "x"}, "TAILGUARD_BUNDEL is not a setting: did you mean TAILGUARD_BUNDLE?"),
    ]
    if not tiny.HAS_CUDA:
        cases.append(({"BUNDLE": str(tiny_bundle), "PROVIDER": "cuda"}, "provider cuda was asked for"))
    for settings, words in cases:
        process = start(**settings)
        _, errors = process.communicate(timeout=LIMIT_S)
        said = [line for line in errors.splitlines() if "[info" not in line]
        assert process.returncode == 1, settings
        assert len(said) == 1, errors
        assert said[0].startswith("tailguard: ")
        assert words in said[0]
        assert "listening" not in errors


def test_port_in_use_is_said(tiny_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start("serve", BUNDLE=str(tiny_bundle), PORT=str(port))
        _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert f"tailguard: cannot listen on 127.0.0.1:{port}: " in errors
    assert "Traceback" not in errors


def test_settings_are_printed_without_the_key(tiny_bundle: Path) -> None:
    process = start(BUNDLE="/nowhere", API_KEY="hunter2", LOG_FORMAT="json")
    output, errors = process.communicate(timeout=LIMIT_S)
    assert '"api_key": "set"' in errors
    assert "hunter2" not in output + errors


def test_inspect(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny_bundle)]) == 0
    assert '"deciding_score": "energy"' in capsys.readouterr().out
    assert main(["inspect", "/nowhere"]) == 1
    assert capsys.readouterr().err == (
        "tailguard: /nowhere is not a bundle: manifest.json cannot be read (No such file or directory)\n"
    )


def test_inspect_reads_the_exemplars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny.write_exemplars(tmp_path / "1"))]) == 0
    assert '"count": 4' in capsys.readouterr().out
    assert main(["inspect", str(tiny.write_exemplars(tmp_path / "2", count=5))]) == 1
    assert "holds 4 exemplars and 0 thumbnails, its manifest says 5 and 0" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["console", "json"])
def test_logs_never_hold_keys_or_image_bytes(tiny_bundle: Path, form: str) -> None:
    marker = b"SECRETPIXELS"
    keys = {"API_KEYS": "ci=hunter2", "ADMIN_KEYS": "ops=4dm1n"}
    with (
        serving(BUNDLE=str(tiny_bundle), LOG_FORMAT=form, **keys) as (process, port),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S) as client,
    ):
        for key in ("hunter2", "4dm1n", "wr0ng"):
            for headers in ({"x-api-key": key}, {"authorization": f"Bearer {key}"}):
                client.post("/classify", content=tiny.photo() + marker, headers=headers | {"content-type": "image/png"})
                client.post("/classify", content=marker, headers=headers | {"content-type": "image/png"})
                client.post(f"/classify?key={key}", files={"image": ("x", marker)}, headers=headers)
                client.put("/admin/bundle", json={"path": "/nowhere"}, headers=headers)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        rest = process.stderr.read()
        assert process.wait(LIMIT_S) == 0
    assert rest.count("refused") > 5
    for secret in ("hunter2", "4dm1n", "wr0ng", "SECRETPIXELS"):
        assert secret not in rest
    if form == "json":
        events = [json.loads(line) for line in rest.splitlines()]
        assert all({"event", "level", "timestamp"} <= set(event) for event in events)
        assert {event["request_id"] for event in events if event["event"] == "refused"}
