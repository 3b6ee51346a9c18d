"""Why an image is refused, through the whole application: answers, protocol, ledger, figures, metrics, review, bulk."""

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.__main__ import main
from service.ledger import work
from service.settings import Settings
from service.web.app import create_app
from service.web.schemas import Answer
from tests.service import refusing, tiny
from tests.service.observe.test_metrics import samples

PNG = {"content-type": "image/png"}
PICTURES = {
    "accepted": tiny.photo(refusing.RED), "unsure": tiny.photo(refusing.GREY), "unknown": tiny.photo((40, 40, 40)),
    "dark": tiny.photo(refusing.BLACK), "small": tiny.photo(refusing.RED, (3, 9)),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Black is dark, and a picture of less than 4 px is small."""
    return refusing.write(tmp_path_factory.mktemp("models") / "tiny" / "1", {"brightness": 0.1})


@pytest.fixture
def client(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setattr(work, "TICK_S", 0.05)
    settings = Settings(bundle=folder, ledger=str(tmp_path / "ledger"), keep="rejected")
    with TestClient(create_app(settings)) as client:
        yield client


def classify(client: TestClient) -> dict[str, dict[str, Any]]:
    return {
        name: client.post("/classify", content=content, headers=PNG).raise_for_status().json()
        for name, content in PICTURES.items()
    }


def test_an_answer_says_why(client: TestClient) -> None:
    found = {name: Answer.model_validate(answer) for name, answer in classify(client).items()}
    assert {name: (a.decision, a.reason, a.unfit) for name, a in found.items()} == {
        "accepted": ("accept", None, None), "unsure": ("reject", "unsure", None),
        "unknown": ("reject", "unknown", None), "dark": ("reject", "unfit", "dark"),
        "small": ("reject", "unfit", "small"),
    }  # fmt: skip
    assert found["small"].p_value == 0.01
    told = client.get("/model").json()["reasons"]
    assert (told["unknown_score"], told["limits"]["brightness"]) == ("energy", 0.1)
    content = base64.b64encode(PICTURES["unsure"]).decode()
    body = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [content]}],
            "outputs": [{"name": "reason"}]}  # fmt: skip
    answer = client.post("/v2/models/tiny/infer", json=body).raise_for_status().json()
    assert answer["outputs"] == [{"name": "reason", "datatype": "BYTES", "shape": [1], "data": ["unsure"]}]


def test_counted_by_reason_in_metrics_and_figures(client: TestClient) -> None:
    classify(client)
    classify(client)
    counted = {
        dict(labels)["reason"]: value
        for (name, labels), value in samples(client).items()
        if name == "tailguard_rejections_total" and dict(labels)["group"] == "many" and value
    }
    assert counted == {"unknown": 2, "unsure": 2, "unfit": 4}
    expected = {
        (dict(labels)["group"], dict(labels)["reason"]): value
        for (name, labels), value in samples(client).items()
        if name == "tailguard_expected_rejections"
    }
    assert expected["few", "unknown"] == 0.035
    deadline = time.monotonic() + 30
    while (shown := client.get("/stats").json())["all"]["live"]["rejected"]["of"] < 10:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    reasons = shown["all"]["reasons"]
    assert {name: (r["live"]["count"], r["live"]["of"]) for name, r in reasons.items()} == {
        "unknown": (2, 10), "unsure": (2, 10), "unfit": (4, 10)
    }  # fmt: skip
    assert (reasons["unknown"]["promised"], shown["groups"]["few"]["reasons"]["unfit"]["promised"]) == (0.035, 0.0)


def test_nothing_is_expected_by_reason_at_a_point_where_it_was_not_measured(folder: Path) -> None:
    """At a stricter point, of costs say, the dashboard still drew what the default one promises."""

    def expected(**settings: Any) -> set[str]:
        with TestClient(create_app(Settings(bundle=folder, **settings))) as client:
            assert client.get("/stats").json()["all"]["reasons"]["unsure"]["promised"] == (None if settings else 0.01)
            return {dict(labels)["reason"] for (name, labels), _ in samples(client).items()
                    if name == "tailguard_expected_rejections"}  # fmt: skip

    assert expected() == {"unknown", "unsure", "unfit"}
    assert expected(operating_point="ood95") == expected(threshold_scope="global") == set()


def test_the_review_shows_what_may_be_new_first_and_filters(client: TestClient) -> None:
    classify(client)
    deadline = time.monotonic() + 30
    while len(groups := client.get("/review/groups").json()["groups"]) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [group["reasons"] for group in groups][:1] == [{"unknown": 1}]
    assert [group["may_be_new"] for group in groups] == [True, False, False, False]
    unsure = client.get("/review/groups?reason=unsure").json()["groups"]
    assert [group["reasons"] for group in unsure] == [{"unsure": 1}]
    (shown,) = client.get(f"/review/groups/{unsure[0]['id']}").json()["shown"]
    assert shown["reason"] == "unsure"
    assert client.get("/review/progress").json()["waiting_by_reason"] == {"unknown": 1, "unsure": 1, "unfit": 2}
    assert client.get("/review/groups?reason=why").status_code == 422


def test_bulk_scoring_writes_the_columns(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for name, content in PICTURES.items():
        (tmp_path / "pictures" / f"{name}.png").write_bytes(content)
    out = tmp_path / "out.jsonl"
    assert main(["score", str(tmp_path / "pictures"), "--bundle", str(folder), "--out", str(out)]) == 0
    rows = {Path(row["path"]).stem: row for row in map(json.loads, out.read_text().splitlines())}
    assert {name: (row["reason"], row["unfit"]) for name, row in rows.items()} == {
        "accepted": (None, None), "unsure": ("unsure", None), "unknown": ("unknown", None), "dark": ("unfit", "dark"),
        "small": ("unfit", "small"),
    }  # fmt: skip
