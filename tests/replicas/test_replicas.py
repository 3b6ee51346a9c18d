"""Three processes, a real proxy, one PostgreSQL, one image store: one is killed, one drained, and nothing is lost."""

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.ledger.reading import Reader
from tests.replicas import proxies
from tests.service import postgres, tiny
from tests.service.test_process import serving

KEY = {"x-api-key": "r00t"}
CLIENTS = 6
LIMIT_S = 60.0

pytestmark = pytest.mark.skipif(postgres.missing() is not None, reason=postgres.missing() or "")


@pytest.fixture(params=list(proxies.PROGRAMS))
def name(request: pytest.FixtureRequest) -> str:
    if reason := proxies.missing(request.param):
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture(scope="module")
def database() -> Iterator[Path]:
    with postgres.server() as folder:
        yield folder


def shared(where: str, folder: Path, **more: str) -> tuple[list[Path], dict[str, str]]:
    """(two versions of a bundle, the settings of replicas that share a ledger and an image store)."""
    bundles = [tiny.write(folder / "models" / "tiny" / v, version=v) for v in ("1", "2")]
    given = {"BUNDLE": str(bundles[0]), "LEDGER": where, "ADMIN_KEYS": "ops=r00t", "INFERENCE_THREADS": "1",
             "KEEP": "all", "STORE": str(folder / "images")}  # fmt: skip
    return bundles, given | more


class Load:
    """Clients that classify one image after the other until they are told to stop; every outcome is kept."""

    def __init__(self, url: str) -> None:
        self._url, self._ending = url, threading.Event()
        self.answers: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, headers=KEY, timeout=LIMIT_S) as client:
            while not self._ending.is_set():
                try:
                    done = client.post("/classify", content=tiny.photo(), headers={"content-type": "image/png"})
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    continue
                if done.status_code == 200:
                    self.answers.append(done.json())
                else:
                    self.failures.append(f"{done.status_code} {done.text[:200]}")

    def wait_for(self, more: int) -> None:
        """Until so many more answers came."""
        wanted, deadline = len(self.answers) + more, time.monotonic() + LIMIT_S
        while len(self.answers) < wanted:
            assert time.monotonic() < deadline, self.failures[:3]
            time.sleep(0.01)

    def end(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()


def test_one_is_killed_and_one_is_drained_under_load(name: str, database: Path, tmp_path: Path) -> None:
    where = postgres.new_database(database, f"load_{name}")
    bundles, given = shared(where, tmp_path, DRAIN_GRACE_S="1.5")
    with ExitStack() as stack:
        replicas = [stack.enter_context(serving(**given)) for _ in range(3)]
        port = stack.enter_context(proxies.proxy(name, [port for _, port in replicas], tmp_path))
        url = f"http://127.0.0.1:{port}"
        load = Load(url)
        try:
            load.wait_for(100)
            replicas[0][0].kill()
            load.wait_for(100)
            at_kill = list(load.failures)
            replicas[1][0].send_signal(signal.SIGTERM)
            assert replicas[1][0].wait(LIMIT_S) == 0
            load.wait_for(100)
        finally:
            load.end()
        assert len(at_kill) <= CLIENTS, at_kill  # what the killed one was at; the proxies send most of that again
        assert load.failures == at_kill, load.failures  # a drained one loses nothing
        _is_seen_from_everywhere(url, where, load.answers, bundles[1], replicas[2][1])


def _is_seen_from_everywhere(url: str, where: str, answers: list[dict[str, Any]], second: Path, left: int) -> None:
    """The rows of all three are in the one ledger, labels find them, and the last replica follows a promotion."""
    ids = [answer["request_id"] for answer in answers]
    assert len(set(ids)) == len(ids)
    with httpx.Client(base_url=url, headers=KEY, timeout=LIMIT_S) as client:
        told = Counter(
            client.post("/feedback", json={"request_id": i, "label": "red"}).status_code for i in ids[:: len(ids) // 50]
        )
        assert told[200] >= sum(told.values()) - CLIENTS, told  # rows of the killed one that were not written yet
        reader, after, rows = Reader(where), 0, []
        while found := reader.kept(after):
            after = found[-1].row
            rows += found
        reader.close()
        assert len({row.image_key for row in rows}) == 1  # all sent one image, which is stored once
        assert {row.label.label for row in rows if row.label is not None} <= {"red"}
        live = client.get("/stats").json()["all"]["live"]
        assert live["accuracy"]["count"] == live["accuracy"]["of"] == told[200]
        # the killed one takes with it what it had not written; what it was at was asked twice
        assert 0.5 * len(ids) < live["rejected"]["of"] <= len(ids) + CLIENTS
        done = client.put("/admin/bundle", json={"path": str(second)})
        assert done.json()["version"] == "2", done.text
    direct = httpx.get(f"http://127.0.0.1:{left}/model", headers=KEY, timeout=LIMIT_S)
    assert direct.json()["version"] == "2"


def test_a_promoted_bundle_reaches_all_and_any_replica_takes_a_label(name: str, database: Path, tmp_path: Path) -> None:
    bundles, given = shared(postgres.new_database(database, f"deploy_{name}"), tmp_path, REQUESTS_PER_S="1000")
    with ExitStack() as stack:
        ports = [stack.enter_context(serving(**given))[1] for _ in range(3)]
        url = f"http://127.0.0.1:{stack.enter_context(proxies.proxy(name, ports, tmp_path))}"
        with httpx.Client(base_url=url, headers=KEY, timeout=LIMIT_S) as client:
            ids = [client.post("/classify", content=tiny.photo(), headers={"content-type": "image/png"})
                   .json()["request_id"] for _ in range(9)]  # fmt: skip
            for i, request_id in enumerate(ids):  # each label to another replica than the one before
                direct = f"http://127.0.0.1:{ports[i % 3]}/feedback"
                _until(lambda d=direct, r=request_id: _label(d, r) == 200)  # type: ignore[misc]
            client.put("/admin/bundle", json={"path": str(bundles[1])})
        versions = [f"http://127.0.0.1:{port}/model" for port in ports]
        _until(lambda: all(httpx.get(v, headers=KEY).json()["version"] == "2" for v in versions))
        stats = [httpx.get(f"http://127.0.0.1:{port}/stats", headers=KEY).json() for port in ports]
        assert stats[0] == stats[1] == stats[2]
        review = [httpx.get(f"http://127.0.0.1:{port}/review/progress", headers=KEY).json() for port in ports]
        assert review[0] == review[1] == review[2]


def _label(url: str, request_id: str) -> int:
    return httpx.post(url, json={"request_id": request_id, "label": "red"}, headers=KEY, timeout=LIMIT_S).status_code


def _until(true: Any) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)
