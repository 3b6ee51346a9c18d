"""POST /feedback through the whole application, beside classifications, batches and the Open Inference Protocol."""

import asyncio
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.ledger import database as ledger_database
from service.ledger import work
from service.settings import Settings
from service.web.app import create_app
from tests.service import tiny
from tests.service.asgi import assert_problem
from tests.service.observe.test_metrics import samples

RED, BLUE, GREY = tiny.photo((220, 30, 30)), tiny.photo((10, 20, 200)), tiny.photo((10, 10, 10))
PNG = {"content-type": "image/png"}
LIMIT_S = 30


def classify(client: TestClient, image: bytes, request_id: str) -> dict[str, Any]:
    answer = client.post("/classify", content=image, headers=PNG | {"x-request-id": request_id})
    found: dict[str, Any] = answer.raise_for_status().json()
    return found


def tell(client: TestClient, request_id: str, label: str, **more: Any) -> Any:
    return client.post("/feedback", json={"request_id": request_id, "label": label} | more)


def counted(client: TestClient) -> dict[tuple[str, ...], float]:
    """(class, group, outcome, decision) → images, without the zeros."""
    return {
        tuple(dict(labels)[name] for name in ("class", "group", "outcome", "decision")): value
        for (name, labels), value in samples(client).items()
        if name == "tailguard_feedback_total" and value
    }


def test_feedback_at_once_after_the_answer(client: TestClient) -> None:
    assert classify(client, RED, "a")["label"] == "red"
    answer = tell(client, "a", "red")
    assert answer.status_code == 200
    assert answer.json() == {
        "request_id": "a", "index": 0, "model": {"name": "tiny", "version": "1"}, "predicted": "red", "group": "many",
        "decision": "accept", "label": "red", "outcome": "correct",
    }  # fmt: skip
    assert tell(client, "a", "red").json() == answer.json()
    assert counted(client) == {("red", "many", "correct", "accept"): 1}


def test_outliers_mistakes_and_corrections_are_counted(client: TestClient) -> None:
    for request_id, image in (("a", RED), ("b", BLUE), ("c", GREY)):
        classify(client, image, request_id)
    tell(client, "a", "blue")
    tell(client, "b", "red")
    tell(client, "b", "blue")
    assert tell(client, "c", "outlier").json()["outcome"] == "outlier"
    assert counted(client) == {
        ("blue", "few", "wrong", "accept"): 1,
        ("red", "many", "wrong", "accept"): 1,  # corrected by the next: counters never fall, corrections count apart
        ("blue", "few", "correct", "accept"): 1,
        ("outlier", "none", "outlier", "reject"): 1,
    }


def test_the_same_feedback_at_once_counts_once(client: TestClient) -> None:
    classify(client, RED, "a")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: tell(client, "a", "green"), range(40)))
    assert {a.status_code for a in answers} == {200}
    assert counted(client) == {("green", "medium", "wrong", "accept"): 1}


def test_images_of_a_batch_and_of_the_inference_protocol_have_an_index(client: TestClient) -> None:
    files = [("files", (name, data, "image/png")) for name, data in (("r", RED), ("broken", b"x"), ("b", BLUE))]
    client.post("/classify/batch", files=files, headers={"x-request-id": "batch"}).raise_for_status()
    pixels = [[[[220, 30, 30]] * 8] * 8, [[[10, 20, 200]] * 8] * 8]
    tensor = {"name": "pixels", "shape": [2, 8, 8, 3], "datatype": "UINT8", "data": pixels}
    name = next(t["name"] for t in client.get("/v2/models/tiny").json()["inputs"] if t["datatype"] == "UINT8")
    body = {"inputs": [tensor | {"name": name}]}
    client.post("/v2/models/tiny/infer", json=body, headers={"x-request-id": "oip"}).raise_for_status()
    for request_id, index, label in (("batch", 0, "red"), ("batch", 2, "blue"), ("oip", 0, "red"), ("oip", 1, "blue")):
        answer = tell(client, request_id, label, index=index)
        assert (answer.status_code, answer.json()["outcome"]) == (200, "correct"), answer.text
    assert tell(client, "batch", "red", index=1).status_code == 404  # it was never classified
    assert tell(client, "oip", "red", index=2).status_code == 404


def test_of_several_images_none_is_labelled_without_an_index(client: TestClient) -> None:
    """The first of them took the label, whichever was meant; an id used again means the latest request."""
    files = [("files", (name, data, "image/png")) for name, data in (("r", RED), ("b", BLUE))]
    body = client.post("/classify/batch", files=files, headers={"x-request-id": "a"}).raise_for_status().json()
    assert [item["index"] for item in body["results"]] == [0, 1]
    for request_id in ("a", body["request_id"]):
        answer = tell(client, request_id, "blue")
        assert (answer.status_code, counted(client)) == (422, {})
        assert f"request {request_id} had several images: send index too" in answer.json()["detail"]
    classify(client, RED, "a")
    assert tell(client, "a", "red").json()["outcome"] == "correct"


def test_refusals(client: TestClient, document: dict[str, Any]) -> None:
    classify(client, RED, "a")
    assert_problem(tell(client, "b", "red"), 404, "no image 0 of request b", document)
    assert_problem(tell(client, "a", "cat"), 422, "send one of red, green, blue, or outlier", document)
    # The first two were taken for 1 and labelled the second image
    for changes in (
        {"index": True},
        {"index": "1"},
        {"index": -1},
        {"index": 2**31},
        {"label": ""},
        {"request_id": "a\nb"},
        {"more": 1},
    ):
        wish = {"request_id": "a", "label": "red"} | changes
        assert_problem(client.post("/feedback", json=wish), 422, next(iter(changes)), document)
    for body, status, words in (
        (b"{", 400, "is not JSON"), (b"[1]", 400, "not a JSON object"), (b" " * 20_000, 413, "the limit is 16384")
    ):  # fmt: skip
        assert_problem(client.post("/feedback", content=body), status, words, document)
    assert counted(client) == {}


def test_a_key_is_required_and_its_name_is_kept(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    closed = Settings(**settings.model_dump() | {"api_keys": "ci=u53r", "ledger": str(path)})
    with TestClient(create_app(closed)) as client:
        assert tell(client, "a", "red").status_code == 401
        client.headers["x-api-key"] = "u53r"
        classify(client, RED, "a")
        assert tell(client, "a", "red").status_code == 200
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT d.api_key, f.api_key, d.image FROM decisions d, feedback f").fetchall()
    connection.close()
    assert rows == [("ci", "ci", None)]
    assert b"u53r" not in path.read_bytes()


def test_without_a_ledger(settings: Settings) -> None:
    with TestClient(create_app(Settings(**settings.model_dump() | {"ledger": "off"}))) as client:
        classify(client, RED, "a")
        answer = tell(client, "a", "red")
        assert answer.status_code == 404
        assert "TAILGUARD_LEDGER is off" in answer.json()["detail"]


def test_a_locked_ledger_fails_no_classification(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "RETRY_S", 0.05)
    monkeypatch.setattr(ledger_database, "LOCK_S", 0.05)
    path = tmp_path / "ledger.sqlite3"
    with TestClient(create_app(Settings(**settings.model_dump() | {"ledger": str(path)}))) as client:

        def rows(outcome: str) -> float:
            return samples(client)[("tailguard_ledger_rows_total", (("outcome", outcome),))]

        classify(client, RED, "a")
        assert tell(client, "a", "red").status_code == 200
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        for i in range(20):
            assert classify(client, BLUE, f"b{i}")["label"] == "blue"
        refused = tell(client, "b0", "blue")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert samples(client)[("tailguard_ledger_failures_total", ())] > 0
        assert client.get("/health/ready").status_code == 200
        other.close()
        deadline = time.monotonic() + LIMIT_S
        while rows("written") < 21:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert tell(client, "b0", "blue").json()["outcome"] == "correct"


def test_feedback_belongs_to_whoever_asked_or_to_a_reviewer(settings: Settings, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(
        '[keys.one]\nkey = "0ne"\n[keys.two]\nkey = "tw0"\n[keys.eye]\nkey = "ey3"\nroles = ["review", "feedback"]\n'
        '[keys.dumb]\nkey = "dumb"\nroles = ["classify"]\n'
    )
    with TestClient(create_app(Settings(**settings.model_dump() | {"keys_file": keys}))) as client:
        document = client.get("/openapi.json").json()
        sent = PNG | {"x-request-id": "mine"}
        ids = [client.post("/classify", content=RED, headers=sent | {"x-api-key": key}).json()["request_id"]
               for key in ("0ne", "tw0")]  # fmt: skip

        def label(key: str, request_id: str) -> Any:
            wish = {"request_id": request_id, "label": "red"}
            return client.post("/feedback", json=wish, headers={"x-api-key": key})

        assert label("0ne", ids[0]).status_code == label("tw0", ids[1]).status_code == 200
        assert label("ey3", ids[0]).status_code == 200
        assert_problem(label("tw0", ids[0]), 403, "review", document)
        assert_problem(label("dumb", ids[0]), 403, "the key dumb lacks the role feedback", document)
        assert label("0ne", "mine").status_code == 200  # though another key has used the id since
        assert label("dumb", ids[0]).status_code == 403


def test_feedback_by_the_id_of_the_inference_protocol(client: TestClient) -> None:
    pixels = [[[220, 30, 30]] * 8] * 8
    tensor = {"name": "images", "shape": [1, 8, 8, 3], "datatype": "UINT8", "data": [pixels]}
    client.post("/v2/models/tiny/infer", json={"id": "my 1é", "inputs": [tensor]}).raise_for_status()
    assert tell(client, "my 1é", "red").json()["outcome"] == "correct"


def test_feedback_keeps_its_deadline(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with TestClient(create_app(settings)) as client:
        classify(client, RED, "a")

        async def never(*_: Any, **__: Any) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(client.app.state.runtime.ledger, "record_feedback", never)  # type: ignore[attr-defined]
        late = client.post(
            "/feedback", json={"request_id": "a", "label": "red"}, headers={"x-request-timeout-ms": "50"}
        )
        assert_problem(late, 504, "deadline", client.get("/openapi.json").json())


def test_classes_that_were_renamed_under_the_same_version(tmp_path: Path) -> None:
    """The label of an earlier row was kept and answered 504, and the new name was no class of the rows that had it."""
    given = {"decode_threads": 1, "inference_threads": 1, "ledger": str(tmp_path / "ledger.sqlite3")}
    classes = tiny.manifest()["classes"]
    before = tiny.write(tmp_path / "before")
    classes[0]["name"] = "crimson"
    after = tiny.write(tmp_path / "after", classes=classes, golden=[])
    with TestClient(create_app(Settings(bundle=before, **given))) as client:
        assert classify(client, RED, "a")["label"] == "red"
        assert tell(client, "a", "red").status_code == 200
    with TestClient(create_app(Settings(bundle=after, **given))) as client:
        assert classify(client, RED, "b")["label"] == "crimson"
        for request_id, label in (("a", "blue"), ("a", "red"), ("b", "crimson")):
            answer = tell(client, request_id, label)
            assert (answer.status_code, answer.json()["label"]) == (200, label)
        assert counted(client)["crimson", "many", "correct", "accept"] == 1
