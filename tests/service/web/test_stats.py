"""GET /stats and the figures behind it, against numbers worked out by hand."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.contract import bundle
from service.contract.intervals import wilson
from service.ledger import work
from service.ledger.figures import Share, figures, share
from service.ledger.rows import TallyKey
from service.settings import Settings
from service.web.app import create_app
from tests.service import tiny
from tests.service.observe.test_metrics import samples
from tests.service.web.test_feedback import BLUE, GREY, PNG, RED, classify, tell


def test_wilson_by_hand() -> None:
    zz = 3.841458820694124  # the 95% quantile of chi-squared with one degree of freedom, from a table
    assert wilson(0, 10) == (0.0, pytest.approx(zz / (10 + zz)))  # what the formula becomes at 0
    assert wilson(10, 10) == (pytest.approx(10 / (10 + zz)), 1.0)
    assert wilson(8, 10) == (pytest.approx(0.4902, abs=5e-5), pytest.approx(0.9433, abs=5e-5))
    assert wilson(1, 29) == (pytest.approx(0.0061, abs=5e-5), pytest.approx(0.1718, abs=5e-5))  # Newcombe 1998
    assert wilson(15, 148) == (pytest.approx(0.0624, abs=5e-5), pytest.approx(0.1605, abs=5e-5))  # Newcombe 1998


def test_a_share_of_nothing_and_no_share() -> None:
    assert share(0, 0) == Share(count=0, of=0, share=None, low=None, high=None)
    for count, of in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="is no share"):
            share(count, of)


def test_figures_by_hand(tiny_bundle: Path) -> None:
    manifest = bundle.read(tiny_bundle)

    def key(label: str, decision: str, truth: str = "", point: str = "id95") -> TallyKey:
        return TallyKey(point, "group", True, label, decision, truth)  # type: ignore[arg-type]

    images = Counter(
        {
            key("red", "accept"): 90, key("red", "reject"): 10, key("green", "reject"): 4,
            key("red", "reject", point="ood95"): 1000,  # decided otherwise: no part of the rejection in force
            key("red", "accept", "red"): 7, key("red", "reject", "red"): 1, key("green", "reject", "red"): 2,
            key("red", "accept", "blue"): 3, key("blue", "accept", "blue", "ood95"): 1,
            key("red", "reject", "outlier"): 5, key("red", "accept", "outlier"): 1,
            key("gone", "accept"): 9, key("red", "accept", "gone"): 9,
        }
    )  # fmt: skip
    found = figures(images, manifest, "id95", "group")
    red, green, blue = found.classes

    def pair(of: Share) -> tuple[int, int]:
        return of.count, of.of

    assert (pair(red.rejected), pair(green.rejected), pair(blue.rejected)) == ((10, 100), (4, 4), (0, 0))
    assert (pair(red.accuracy), pair(green.accuracy), pair(blue.accuracy)) == ((8, 10), (0, 0), (1, 4))
    assert (pair(red.confirmed_rejected), pair(blue.confirmed_rejected)) == ((3, 10), (0, 3))
    assert found.groups == {"many": red, "medium": green, "few": blue}
    assert (pair(found.all.rejected), pair(found.all.accuracy)) == ((14, 104), (9, 14))
    assert pair(found.all.confirmed_rejected) == (3, 13)
    assert pair(found.outliers_rejected) == (5, 6)
    assert found.all.rejected.share == 14 / 104
    assert figures(images, manifest, "id95", "global").all.rejected.of == 0


def fill(client: TestClient) -> None:
    """3 red (one corrected to green), 1 blue, 2 grey (predicted red, rejected), of which one is an outlier."""
    for request_id, image in (("a", RED), ("b", RED), ("c", RED), ("d", BLUE), ("e", GREY), ("f", GREY)):
        classify(client, image, request_id)
    for request_id, label in zip("abbdef", ("red", "red", "green", "blue", "red", "outlier"), strict=True):
        assert tell(client, request_id, label).status_code == 200


def without_intervals(value: Any) -> Any:
    """Shares as [count, of]."""
    if isinstance(value, dict):
        if "of" in value:
            return [value["count"], value["of"]]
        return {k: without_intervals(v) for k, v in value.items()}
    return [without_intervals(v) for v in value] if isinstance(value, list) else value


def test_stats_and_classes_say_the_same(client: TestClient) -> None:
    empty = client.get("/stats").json()
    assert empty["all"]["live"]["rejected"] == {"count": 0, "of": 0, "share": None, "low": None, "high": None}
    fill(client)
    stats, classes = client.get("/stats").json(), client.get("/model/classes").json()
    shown = without_intervals(stats)
    assert shown["all"] == {
        "promised": {"rejected": 0.05, "accuracy": pytest.approx(0.8), "confirmed_rejected": 0.05},
        "live": {"rejected": [2, 6], "accuracy": [3, 4], "confirmed_rejected": [1, 4]},
        "reasons": None,
    }
    assert shown["classes"][0] == {
        "name": "red", "class_index": 0, "group": "many",
        "promised": {"rejected": None, "accuracy": 0.9, "confirmed_rejected": 0.05},
        "live": {"rejected": [2, 5], "accuracy": [2, 2], "confirmed_rejected": [1, 2]}, "stream_share": None,
    }  # fmt: skip
    assert shown["audit"] is None  # nothing is sampled
    assert shown["groups"]["medium"] == {
        "promised": {"rejected": 0.05, "accuracy": 0.8, "confirmed_rejected": 0.05},
        "live": {"rejected": [0, 0], "accuracy": [0, 1], "confirmed_rejected": [0, 1]},
        "reasons": None,
    }
    assert shown["outliers_rejected"] == [1, 1]
    assert stats["promised_outliers_rejected"] == 0.7
    low, high = wilson(2, 6)
    assert stats["all"]["live"]["rejected"] == {"count": 2, "of": 6, "share": 2 / 6, "low": low, "high": high}
    assert [c["live"] for c in classes["classes"]] == [c["live"] for c in stats["classes"]]
    assert {g: c["live"] for g, c in classes["groups"].items()} == {g: c["live"] for g, c in stats["groups"].items()}
    assert classes["since"] == stats["since"]
    assert stats["since"] is not None


def test_rejection_is_that_of_the_operating_point_in_force(client: TestClient) -> None:
    fill(client)
    other = client.post("/classify?operating_point=ood95", content=GREY, headers=PNG | {"x-request-id": "g"}).json()
    assert other["decision"] == "reject"
    assert tell(client, "g", "red").status_code == 200
    live = without_intervals(client.get("/stats").json())["all"]["live"]
    assert live == {"rejected": [2, 6], "accuracy": [4, 5], "confirmed_rejected": [1, 4]}


def test_stats_survive_a_restart_and_are_of_one_model(settings: Settings, tmp_path: Path) -> None:
    kept = Settings(**settings.model_dump() | {"ledger": str(tmp_path / "ledger.sqlite3")})
    with TestClient(create_app(kept)) as client:
        fill(client)
        before = client.get("/stats").json()
    with TestClient(create_app(kept)) as client:
        tell(client, "nothing", "red")  # answered once the ledger has been read
        assert client.get("/stats").json() == before
        assert tell(client, "a", "red").json()["outcome"] == "correct"  # told again after the restart: counted once
        assert client.get("/stats").json() == before
    second = tiny.write(tmp_path / "second", version="2")
    with TestClient(create_app(Settings(**kept.model_dump() | {"bundle": second}))) as client:
        assert tell(client, "a", "blue").json()["model"]["version"] == "1"
        assert client.get("/stats").json()["all"]["live"]["accuracy"]["of"] == 0


def test_the_audit_sample_in_stats_and_metrics(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "TICK_S", 0.05)
    with TestClient(create_app(settings.model_copy(update={"keep_sample": 1.0}))) as client:
        fill(client)  # labelled: two red, one green (taken for red) and one blue, and of two refused ones one outlier
        deadline = time.monotonic() + 30
        while (audit := client.get("/stats").json()["audit"]) is None or audit["labelled"] < 5:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert (audit["sampled"], audit["labelled"], audit["unsure"]) == (6, 5, 0)
        # all refused images have a label, and three of four accepted ones, which stand for 4/3 each
        assert audit["outlier_share"]["share"] == pytest.approx(1 / 6)
        assert audit["accuracy"]["share"] == pytest.approx((2 * 4 / 3 + 1) / 5)
        assert audit["known_rejected"]["share"] == pytest.approx(1 / 5)
        assert audit["outliers_rejected"]["share"] == 1
        told = {
            dict(labels)["share"]: value
            for (name, labels), value in samples(client).items()
            if name == "tailguard_audit_share" and (dict(labels)["group"], dict(labels)["bound"]) == ("all", "share")
        }
        assert told == pytest.approx(
            {"outlier_share": 1 / 6, "accuracy": 11 / 15, "known_rejected": 0.2, "outliers_rejected": 1}
        )
