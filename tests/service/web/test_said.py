"""Sets of classes and nodes of a taxonomy in every answer: HTTP, batch, inference protocol, bulk scoring, metrics."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from service.client import Client
from service.ledger import work
from service.score.errors import ScoreError
from service.settings import Settings
from service.web.app import create_app
from service.web.schemas import Answer
from tests.service import refusing, tiny
from tests.service.asgi import assert_problem, form
from tests.service.ledger.test_ledger import read
from tests.service.score.test_score import rows_of, score
from tests.service.web.oip.test_oip import BYTES, INFER, TEXTS, ask, columns

PNG = {"content-type": "image/png"}
RED = tiny.photo((220, 30, 30))
DIM = tiny.photo((40, 38, 2))  # energy above every threshold: refused; red .45, green .42, blue .13


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("said") / "1", **tiny.said())


@pytest.fixture(scope="module")
def said(bundle: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(bundle=bundle, inference_threads=1))) as started:
        yield started


def asked(client: TestClient, image: bytes, **query: Any) -> dict[str, Any]:
    found: dict[str, Any] = client.post("/classify", params=query, content=image, headers=PNG).json()
    Answer.model_validate(found, extra="forbid")
    return found


def test_a_set_by_hand(said: TestClient) -> None:
    # at .8 `many` takes 1 - p up to .8 and `medium` up to .8; `few` has no calibration image
    found = asked(said, DIM, set=0.8)["set"]
    assert (found["level"], found["too_few"]) == (0.8, ["few"])
    assert [c["label"] for c in found["classes"]] == ["red", "green", "blue"]
    assert [c["class_index"] for c in found["classes"]] == [0, 1, 2]
    golden, _ = tiny.reference(tiny.np.full((1, 8, 8, 3), (40, 38, 2), "uint8"))
    assert [c["probability"] for c in found["classes"]] == pytest.approx(golden[0].tolist(), abs=1e-5)
    sure = asked(said, RED, set=0.8)["set"]
    assert [c["label"] for c in sure["classes"]] == ["red", "blue"]  # green is out, blue cannot be left out
    strict = asked(said, RED, set=0.92)["set"]
    assert strict["too_few"] == ["medium", "few"]  # nine images hold .9
    assert [c["label"] for c in strict["classes"]] == ["red", "green", "blue"]


def test_nothing_is_said_that_nobody_asked_for(said: TestClient, client: TestClient) -> None:
    assert "set" not in asked(said, RED)
    plain = client.post("/classify", content=DIM, headers=PNG).json()
    assert not {"set", "taxonomy"} & set(plain)


@pytest.mark.parametrize("level", ["0", "1", "-0.5", "90", "nan", "many", ""])
def test_a_level_that_is_none_is_refused(said: TestClient, document: dict[str, Any], level: str) -> None:
    response = said.post("/classify", params={"set": level}, content=RED, headers=PNG)
    assert_problem(response, 422, f"set={level} is not valid", document)


def test_a_bundle_without_sets_says_so(client: TestClient, document: dict[str, Any]) -> None:
    response = client.post("/classify", params={"set": 0.9}, content=RED, headers=PNG)
    assert_problem(response, 422, "tiny 1 has no sets of classes: export it again, or leave set out", document)


def test_a_refused_image_is_told_a_node(said: TestClient) -> None:
    found = asked(said, DIM)
    assert found["decision"] == "reject"
    node = found["taxonomy"]
    assert {k: v for k, v in node.items() if k != "probability"} == {
        "node": "warm", "path": ["warm"], "depth": 1, "promise": 0.95,
    }  # fmt: skip
    golden, _ = tiny.reference(tiny.np.full((1, 8, 8, 3), (40, 38, 2), "uint8"))
    assert node["probability"] == pytest.approx(golden[0][:2].sum(), abs=1e-5)
    assert asked(said, RED)["taxonomy"] is None  # accepted
    grey = asked(said, tiny.photo((2, 2, 20)))  # blue is below the root, warm has too little
    assert grey["decision"] == "reject"
    assert grey["taxonomy"] == {"node": None, "path": [], "depth": 0, "probability": None, "promise": None}


def test_batches_carry_both(said: TestClient) -> None:
    results = said.post("/classify/batch", params={"set": 0.8}, files=[*form(RED, "files"), *form(DIM, "files")]).json()
    answers = [item["answer"] for item in results["results"]]
    assert [len(a["set"]["classes"]) for a in answers] == [2, 3]
    assert [a["taxonomy"] and a["taxonomy"]["node"] for a in answers] == [None, "warm"]


def test_what_is_measured_is_shown(said: TestClient, client: TestClient) -> None:
    found = said.get("/model/classes").json()
    assert found["sets"] == [tiny.said()["sets"]["measured"][0]]
    assert found["taxonomy"]["promise"] == 0.95
    assert found["taxonomy"]["levels"][0]["measured_told"] == 20
    assert found["taxonomy"]["measured"]["outliers_told"] == 0.5
    assert [c["path"] for c in found["classes"]] == [["warm"], ["warm"], []]
    summary = said.get("/model").json()
    assert (summary["sets"], summary["taxonomy"]) == (True, True)
    bare = client.get("/model/classes").json()
    assert (bare["sets"], bare["taxonomy"], bare["classes"][0]["path"]) == (None, None, None)
    assert client.get("/model").json()["sets"] is False


def test_refused_images_are_counted_by_depth(bundle: Path) -> None:
    with TestClient(create_app(Settings(bundle=bundle, inference_threads=1))) as client:
        series = [f'tailguard_refused_told_total{{depth="{d}",model="tiny",version="1"}}' for d in (0, 1)]
        assert all(f"{name} 0.0" in client.get("/metrics").text for name in series)
        for image in (RED, DIM, DIM, tiny.photo((2, 2, 20))):
            client.post("/classify", content=image, headers=PNG)
        client.post("/classify", params={"operating_point": "ood95"}, content=DIM, headers=PNG)  # counted apart
        text = client.get("/metrics").text
    assert f"{series[0]} 1.0" in text
    assert f"{series[1]} 2.0" in text


def test_ledger_and_review_hold_what_was_told(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "TICK_S", 0.05)
    ledger = str(tmp_path / "ledger")
    settings = Settings(bundle=bundle, inference_threads=1, ledger=ledger, keep="rejected")
    nothing = tiny.photo((2, 2, 20))
    with TestClient(create_app(settings)) as client:
        for image in (RED, DIM, nothing):
            client.post("/classify", content=image, headers=PNG).raise_for_status()
        deadline = time.monotonic() + 30
        while len(groups := client.get("/review/groups").json()["groups"]) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        one, other = (client.get(f"/review/groups/{group['id']}").json() for group in groups)
    assert read(ledger, "SELECT decision, node FROM decisions ORDER BY row") == [
        ("accept", None), ("reject", "warm"), ("reject", "")
    ]  # fmt: skip
    assert {(g["node"], g["shown"][0]["node"]) for g in (one, other)} == {("warm", "warm"), (None, "")}


def test_no_node_is_noted_where_none_is_asked_for(tmp_path: Path) -> None:
    """Of an unfit picture, and by a bundle without a tree."""
    unfit = refusing.write(tmp_path / "unfit" / "1", {"brightness": 0.1}, taxonomy=tiny.said()["taxonomy"])
    plain = tiny.write(tmp_path / "plain" / "1")
    black, grey = tiny.photo(refusing.BLACK), tiny.photo(refusing.GREY)
    for folder, image, told in ((unfit, black, None), (unfit, grey, "warm"), (plain, DIM, None)):
        ledger = str(tmp_path / f"{folder.parent.name}-{told}.sqlite3")
        with TestClient(create_app(Settings(bundle=folder, inference_threads=1, ledger=ledger))) as client:
            assert client.post("/classify", content=image, headers=PNG).json()["decision"] == "reject"
        assert read(ledger, "SELECT node FROM decisions") == [(told,)]


def test_the_inference_protocol_gives_a_mask_and_a_path(said: TestClient) -> None:
    body = BYTES | {"shape": [2], "data": [TEXTS[0], tiny_text(DIM)]}
    plain = ask(said, body)
    assert columns(plain)["taxonomy"] == ["", "warm"]
    assert "set" not in columns(plain)
    found = columns(ask(said, body, parameters={"set": 0.8}))
    assert found["set"] == [True, False, True, True, True, True]
    shapes = {o["name"]: (o["datatype"], o["shape"]) for o in said.get("/v2/models/tiny").json()["outputs"]}
    assert shapes["set"] == ("BOOL", [-1, 3])
    for level in (True, "high", 1.5):
        refused = said.post(INFER, json={"inputs": [BYTES], "parameters": {"set": level}})
        assert refused.status_code == 400
        assert "set" in refused.json()["error"]
    unasked = said.post(INFER, json={"inputs": [BYTES], "outputs": [{"name": "set"}]})
    assert unasked.status_code == 400


def tiny_text(image: bytes) -> str:
    import base64

    return base64.b64encode(image).decode()


def test_bulk_scoring_writes_both(bundle: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    for name, image in (("dim.png", DIM), ("red.png", RED)):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(image)
    out = tmp_path / "out.jsonl"
    assert score(tmp_path / "in", "--out", out, "--bundle", bundle, "--set", 0.8) == 0
    dim, red = rows_of(out)
    assert (json.loads(dim["set"]), dim["set_size"]) == (["red", "green", "blue"], 3)
    assert (json.loads(red["set"]), red["set_size"]) == (["red", "blue"], 2)
    assert (dim["taxonomy"], red["taxonomy"]) == ("warm", None)
    assert dim["taxonomy_probability"] > 0.6
    score(tmp_path / "in", "--out", tmp_path / "plain.jsonl", "--bundle", bundle)
    assert not {"set", "set_size"} & set(rows_of(tmp_path / "plain.jsonl")[0])
    with pytest.raises(ScoreError, match=r"--set 0\.9: .* has no sets"):
        score(tmp_path / "in", "--out", tmp_path / "none.jsonl", "--bundle", tiny_bundle, "--set", 0.9)
    with pytest.raises(SystemExit):
        score(tmp_path / "in", "--out", tmp_path / "none.jsonl", "--bundle", bundle, "--set", 1)


def test_the_client_asks_for_a_set() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=Answer.model_config["json_schema_extra"]["examples"][0])  # type: ignore[index, call-overload]

    with Client("http://service", transport=httpx.MockTransport(answer)) as client:
        client.classify(RED, set=0.9)
        client.classify(RED)
    assert [dict(request.url.params) for request in seen] == [{"set": "0.9"}, {}]
