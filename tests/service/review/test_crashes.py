"""KILL at random moments of keeping, labelling, grouping and promoting, all at once, several times over.

Nothing that was answered is lost, nothing is half done, and the service starts again each time.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from service.ledger.database import connect
from service.ledger.store import store_at
from service.review import regroup
from tests.service import tiny
from tests.service.review.kept import picture
from tests.service.test_process import serving

KEY = {"x-api-key": "r00t"}
DARK = (3, 2, 1)  # is refused
ROUNDS = 4
SAID = [("class", "red"), ("new", "violet"), ("outlier", ""), ("unsure", "")]
WAIT_S = 60


@dataclass
class Told:
    """What was answered, and what had been sent when there was no answer."""

    labels: dict[int, tuple[str, str]] = field(default_factory=dict)
    maybe: dict[int, set[tuple[str, str]]] = field(default_factory=dict)
    version: str = "1"
    maybe_version: set[str] = field(default_factory=set)
    classified: int = 0
    label_answers: int = 0


def keep_and_classify(client: httpx.Client, told: Told, draw: random.Random) -> None:
    file = picture(DARK, draw.randrange(2**16))
    client.post("/classify", content=file, headers={"content-type": "image/png"}).raise_for_status()
    told.classified += 1


def label(client: httpx.Client, told: Told, draw: random.Random) -> None:
    groups = client.get("/review/groups").raise_for_status().json()["groups"]
    if not groups:
        return
    name = draw.choice(groups)["id"]
    found = client.get(f"/review/groups/{name}")
    if found.status_code == 404:
        return  # it has been grouped anew
    rows = [image["row"] for image in found.raise_for_status().json()["shown"]][: draw.randint(1, 5)]
    kind, name_of_class = draw.choice(SAID)
    truth = (kind, "outlier" if kind == "outlier" else name_of_class)
    for row in rows:
        told.maybe.setdefault(row, set()).add(truth)
    body = {"rows": rows, "kind": kind, "label": name_of_class, "group": name}
    answer = client.post("/review/labels", json=body)
    if answer.status_code == 404:
        return
    for row in answer.raise_for_status().json()["rows"]:
        told.labels[row], told.maybe[row] = truth, set()
    told.label_answers += 1


def promote(client: httpx.Client, told: Told, draw: random.Random, models: list[Path]) -> None:
    path = draw.choice(models)
    told.maybe_version.add(path.name)
    body = {"path": str(path), "force": True}
    told.version = client.post("/admin/promote", json=body).raise_for_status().json()["in_force"]["version"]
    told.maybe_version = set()
    time.sleep(0.05)


def until_killed(url: str, stop: threading.Event, act: Callable[[httpx.Client], None], errors: list[str]) -> None:
    with httpx.Client(base_url=url, timeout=20, headers=KEY) as client:
        while not stop.is_set():
            try:
                act(client)
            except httpx.TransportError:
                return  # it was killed
            except httpx.HTTPStatusError as error:
                errors.append(f"{error}: {error.response.text}")
                return


@pytest.mark.skipif(regroup.missing() is not None, reason="scikit-learn is not installed")
def test_killed_again_and_again(where: str, tmp_path: Path) -> None:
    models = [tiny.write_embedding(tmp_path / "models" / v, version=v, name="tiny") for v in ("1", "2")]
    settings = {"BUNDLE": str(models[0]), "LEDGER": where, "STORE": str(tmp_path / "store"), "KEEP": "rejected",
                "ADMIN_KEYS": "ops=r00t", "INFERENCE_THREADS": "1", "KEEP_BURST_IMAGES": "10000"}  # fmt: skip
    told, errors = Told(), list[str]()
    for number in range(ROUNDS):
        draw = [random.Random(10 * number + i) for i in range(4)]
        with serving(**settings) as (process, port):
            url = f"http://127.0.0.1:{port}"
            require_version(url, told)
            stop = threading.Event()
            acts: list[Callable[[httpx.Client], None]] = [
                lambda client, d=draw[0]: keep_and_classify(client, told, d),  # type: ignore[misc]
                lambda client, d=draw[1]: label(client, told, d),  # type: ignore[misc]
                lambda client, d=draw[2]: promote(client, told, d, models),  # type: ignore[misc]
            ]
            threads = [threading.Thread(target=until_killed, args=(url, stop, act, errors)) for act in acts]
            before, deadline = told.label_answers, time.monotonic() + WAIT_S
            for thread in threads:
                thread.start()
            while told.label_answers < before + 3 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(draw[3].uniform(0, 0.7))
            process.kill()
            stop.set()
            for thread in threads:
                thread.join()
            assert process.stderr is not None
            assert errors == [], process.stderr.read()[-2000:]
    with serving(**settings) as (_, port):
        url = f"http://127.0.0.1:{port}"
        require_version(url, told)
        require_whole_groups(url)
    require_labels(where, told)
    require_tallies(where)
    require_files(where, tmp_path / "store")
    assert not list(tmp_path.rglob("*.partial"))


def require_version(url: str, told: Told) -> None:
    """The last promotion that was answered is in force, or one that had been sent."""
    found = httpx.get(f"{url}/model", headers=KEY).json()["version"]
    assert found in told.maybe_version | {told.version}
    told.version, told.maybe_version = found, set()


def require_whole_groups(url: str) -> None:
    """Every image that waits is in one group or alone."""
    deadline = time.monotonic() + WAIT_S
    with httpx.Client(base_url=url, headers=KEY, timeout=30) as client:
        while (found := client.get("/review/groups").raise_for_status().json())["grouping"]:
            assert time.monotonic() < deadline, "the grouping never ends"
            time.sleep(0.1)
        waiting = client.get("/review/progress").json()["waiting"]
        shown = sum(group["images"] for group in found["groups"])
        assert shown == waiting or (found["more"] and shown + found["more"] <= waiting)
        for group in found["groups"]:
            assert group["images"] > 0


def require_labels(where: str, told: Told) -> None:
    """No label that was answered is lost; each row has it, or what was sent after it."""
    database = connect(where, read_only=True)
    last = {row: (kind, name) for row, kind, name in
            database.fetch("SELECT decision_row, kind, label FROM feedback ORDER BY row")}  # fmt: skip
    database.close()
    assert told.label_answers >= 3 * ROUNDS
    for row, truth in told.labels.items():
        assert last[row] in told.maybe[row] | {truth}
    for row, truth in last.items():
        assert truth in told.maybe[row] | {told.labels.get(row, truth)}


def require_tallies(where: str) -> None:
    """What is counted is what the rows say, of every model."""
    database = connect(where, read_only=True)
    counted: Counter[tuple[int, str]] = Counter()
    for model, truth, images in database.fetch("SELECT model, truth, sum(images) FROM tallies GROUP BY model, truth"):
        counted[model, truth] += int(images)
    rows: Counter[tuple[int, str]] = Counter()
    last = {row: (kind, name) for row, kind, name in
            database.fetch("SELECT decision_row, kind, label FROM feedback ORDER BY row")}  # fmt: skip
    for row, model in database.fetch("SELECT row, model FROM decisions"):
        rows[model, ""] += 1
        kind, name = last.get(row, ("unsure", ""))
        if kind in ("class", "new", "outlier"):
            rows[model, name if kind == "class" else "outlier"] += 1
    groups = database.fetch("SELECT count(*) FROM review_groups WHERE decision_row NOT IN (SELECT row FROM decisions)")
    database.close()
    assert +counted == +rows
    assert groups[0][0] == 0


def require_files(where: str, folder: Path) -> None:
    """A file that is said to be there is there, whole."""
    database = connect(where, read_only=True)
    kept = [key for (key,) in database.fetch("SELECT image_key FROM images WHERE state = 'kept'")]
    database.close()
    store = store_at(str(folder))
    assert kept
    assert all(store.get(key) is not None for key in kept)
