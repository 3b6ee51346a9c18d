"""A swap outlives the process, reaches the other replica, and is whole whenever a process is killed."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service import tiny
from tests.service.test_process import serving

KEY = {"x-api-key": "r00t"}
LIMIT_S = 60.0


def settings(bundle: Path, where: str, **more: str) -> dict[str, str]:
    return {"BUNDLE": str(bundle), "LEDGER": where, "ADMIN_KEYS": "ops=r00t", "INFERENCE_THREADS": "1", **more}


def ask(port: int, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    done = httpx.request(method, f"http://127.0.0.1:{port}{path}", json=body, headers=KEY, timeout=LIMIT_S)
    assert done.status_code == 200, done.text
    return done.json()


def version(port: int) -> str:
    return str(ask(port, "GET", "/model")["version"])


def until(true: Callable[[], bool]) -> float:
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < LIMIT_S
        time.sleep(0.05)
    return time.monotonic() - started


def test_a_swap_reaches_the_other_replica_and_outlives_both(where: str, versions: list[Path], tmp_path: Path) -> None:
    one, two, three = versions
    given = settings(one, where)
    with serving(**given) as (_, first), serving(**given) as (_, second), \
         serving(**settings(three, where)) as (_, other):  # fmt: skip
        assert ask(first, "PUT", "/admin/bundle", {"path": str(two)})["version"] == "2"
        assert until(lambda: version(second) == "2") < 10
        assert version(other) == "3"  # another setting: a deployment of its own
        # back on the other replica, which knows what was before from the database alone
        assert ask(second, "POST", "/admin/back", {})["version"] == "1"
        until(lambda: version(first) == "1")
        assert ask(second, "POST", "/admin/promote", {"path": str(three), "force": True})["in_force"]["version"] == "3"
        until(lambda: version(first) == "3")
        assert ask(first, "POST", "/admin/back", {"to": "tiny/2"})["version"] == "2"
    with serving(**given) as (_, port):
        assert version(port) == "2"
    with serving(**settings(three, where)) as (_, port):  # a setting that names another bundle wins
        assert version(port) == "3"


def test_a_bundle_that_one_replica_cannot_load_changes_nothing_there(
    tmp_path: Path, versions: list[Path], where: str
) -> None:
    bundle = tiny.write(tmp_path / "models" / "tiny" / "9", version="9")
    given = settings(versions[0], where)
    with serving(**given) as (_, first):
        ask(first, "PUT", "/admin/bundle", {"path": str(bundle)})
    (bundle / "model.onnx").write_bytes(b"torn")
    with serving(**given) as (_, port):
        assert version(port) == "1"
        assert "tailguard_deployment_failed 1.0" in metrics(port)
        ask(port, "PUT", "/admin/bundle", {"path": str(versions[1])})
        assert version(port) == "2"
        assert "tailguard_deployment_failed 0.0" in metrics(port)


def metrics(port: int) -> str:
    return httpx.get(f"http://127.0.0.1:{port}/metrics", headers=KEY, timeout=LIMIT_S).text


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.1])
def test_killed_while_it_swaps_it_serves_the_old_or_the_new(
    tmp_path: Path, versions: list[Path], after_s: float
) -> None:
    given = settings(versions[0], str(tmp_path / "ledger.sqlite3"))
    with serving(**given) as (process, port), httpx.Client() as client:
        request = client.build_request(
            "PUT", f"http://127.0.0.1:{port}/admin/bundle", json={"path": str(versions[1])}, headers=KEY
        )
        timer = threading.Timer(after_s, process.kill)
        timer.start()
        with suppress(httpx.HTTPError):  # it may be quicker than the timer
            client.send(request)
        process.wait(LIMIT_S)
    with serving(**given) as (_, port):
        assert version(port) in ("1", "2")
        answer = httpx.post(f"http://127.0.0.1:{port}/classify", content=tiny.photo(),
                            headers=KEY | {"content-type": "image/png"}, timeout=LIMIT_S).json()  # fmt: skip
        assert answer["label"] == "red"
