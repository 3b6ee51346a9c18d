"""POST /v1/image-classification, asked by the real huggingface_hub and by hand."""

import base64
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.settings import Settings
from service.web.app import create_app
from service.web.hugging_face import PipelineEntry
from tests.live import serving
from tests.service import tiny

PATH = "/v1/image-classification"
RED, BLACK = tiny.photo((220, 30, 30)), tiny.photo((0, 0, 0))
PNG = {"content-type": "image/png"}
KEY = "k3y"


def sent(image: bytes = RED, **more: Any) -> dict[str, Any]:
    return {"json": {"inputs": base64.b64encode(image).decode()} | more}


# ---------------------------------------------------------------------------------------------------------------------
# By hand


def test_an_accepted_image_is_a_list_of_classes(client: TestClient) -> None:
    plain = client.post("/classify", content=RED, headers=PNG).json()
    response = client.post(PATH, content=RED, headers=PNG)
    found = response.json()
    assert response.headers["content-type"] == "application/json"
    assert [(one["label"], one["score"]) for one in found] == [
        (one["label"], one["probability"]) for one in plain["top_k"]
    ]
    assert found[0]["label"] == "red"
    for one in found:
        PipelineEntry.model_validate(one, extra="forbid")
        assert (one["decision"], one["p_value"]) == ("accept", plain["p_value"])
        assert one["request_id"] == response.headers["x-request-id"]


def test_a_refused_image_names_no_class(client: TestClient) -> None:
    assert client.post("/classify", content=BLACK, headers=PNG).json()["decision"] == "reject"
    (only,) = client.post(PATH, **sent(BLACK, parameters={"top_k": 2})).json()
    PipelineEntry.model_validate(only, extra="forbid")
    assert (only["label"], only["score"], only["decision"]) == ("reject", 1.0, "reject")
    assert len(only["top_k"]) == 2
    assert only["label"] not in tiny.CLASSES


def test_a_class_called_reject_is_no_refusal(tmp_path: Path) -> None:
    bundle = tiny.write(tmp_path / "tiny" / "1")
    manifest = bundle / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"red"', '"reject"'))
    with TestClient(create_app(Settings(bundle=bundle, inference_threads=1))) as client:
        first = client.post(PATH, content=RED, headers=PNG).json()[0]
        (refused,) = client.post(PATH, content=BLACK, headers=PNG).json()
    assert (first["label"], first["decision"]) == ("reject", "accept")
    assert (refused["label"], refused["decision"]) == ("_reject", "reject")


def test_every_way_to_send_is_read_alike(client: TestClient) -> None:
    plain = base64.b64encode(RED).decode()
    ways: list[dict[str, Any]] = [
        {"content": RED, "headers": PNG},
        {"content": RED},  # no content type at all, as requests and huggingface_hub send bytes
        {"content": RED, "headers": {"content-type": "application/octet-stream"}},
        sent(),
        sent(parameters={"function_to_apply": "softmax"}, options={"wait_for_model": True}),
        {"json": {"inputs": f"data:image/png;base64,{plain}", "parameters": None}},
        {"json": {"inputs": base64.encodebytes(RED).decode()}},  # in lines
    ]
    for way in ways:
        found = client.post(PATH, **way).json()
        assert next(one["label"] for one in found) == "red", way
        assert len(found) == 3, way
    assert len(client.post(PATH, **sent(parameters={"top_k": 1})).json()) == 1
    assert len(client.post(PATH, **sent(parameters={"top_k": 99})).json()) == 3  # all there are, as the pipeline has it


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "not JSON"),
        ({"content": b'{"inputs": "", "inputs": ""}', "headers": {"content-type": "application/json"}}, 422, "twice"),
        ({"json": {"inputs": "no base64!"}}, 400, "inputs is not base64"),
        ({"json": {"inputs": "Zm9v"}}, 415, ""),
        ({"json": {}}, 422, "inputs"),
        ({"json": {"inputs": ["a", "b"]}}, 422, "inputs"),
        ({"json": {"inputs": "https://example.org/cat.jpg"}}, 422, "none is fetched here"),
        ({"json": [1] * 2000}, 400, "send {"),
        (sent(parameters={"top_k": 0}), 422, "top_k=0"),
        (sent(parameters={"function_to_apply": "sigmoid"}), 422, "function_to_apply=sigmoid"),
        (sent(parameters={"topk": 2}), 422, "did you mean top_k"),
        ({"content": RED, "params": {"top_k": "2"}}, 422, "top_k is not known here, only operating_point, thresholds"),
        ({"content": RED, "params": {"operating_point": "id99"}}, 422, "id95, ood95"),
        ({"content": b""}, 422, "empty"),
        ({"content": b"not an image"}, 415, ""),
        ({"files": {"file": RED}}, 415, "multipart/form-data is not supported"),
        ({"content": bytes(200_000)}, 413, "limit is 100000"),
    ],
)
def test_what_is_wrong_is_said_where_the_client_looks(
    client: TestClient, request_: dict[str, Any], status: int, words: str
) -> None:
    response = client.post(PATH, **request_)
    found = response.json()
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json"), found
    assert found["error"] == found["detail"]
    assert words in found["error"]


def test_the_address_chooses_the_operating_point(client: TestClient) -> None:
    for point in ("id95", "ood95"):
        plain = client.post(f"/classify?operating_point={point}", content=RED, headers=PNG).json()
        found = client.post(f"{PATH}?operating_point={point}&thresholds=global", **sent()).json()
        assert found[0]["decision"] == plain["decision"]


def test_it_is_counted_recorded_and_taught_like_any_other(client: TestClient) -> None:
    app: Any = client.app
    found = client.post(PATH, **sent()).json()
    told = client.post("/feedback", json={"request_id": found[0]["request_id"], "label": "red"})
    assert told.json()["outcome"] == "correct"
    text = client.get("/metrics").text
    assert f'tailguard_requests_total{{method="POST",route="{PATH}",status="200"}} 1.0' in text
    assert 'tailguard_images_total{outcome="answered"} 1.0' in text
    assert app.state.runtime.ledger is not None


def test_the_shadow_and_the_store_get_the_file_not_its_base64(tmp_path: Path, tiny_bundle: Path) -> None:
    settings = Settings(
        bundle=tiny_bundle, inference_threads=1, keep="all", ledger=str(tmp_path / "l.db"),
        shadow_bundle=str(tiny_bundle), shadow_share=1.0,
    )  # fmt: skip
    app: FastAPI = create_app(settings)
    offered: list[bytes] = []
    with TestClient(app) as client:
        shadow = app.state.runtime.shadow
        offer = shadow.offer
        shadow.offer = lambda file, *rest: (offered.append(file), offer(file, *rest))
        client.post(PATH, **sent())
    assert offered == [RED]
    assert RED in [path.read_bytes() for path in Path(f"{tmp_path}/l.db.images").rglob("*") if path.is_file()]


# ---------------------------------------------------------------------------------------------------------------------
# The real client


@pytest.fixture(scope="module")
def hub() -> Any:
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    return pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    bundle = tiny.write(tmp_path_factory.mktemp("models") / "tiny" / "1")
    keys = tmp_path_factory.mktemp("keys") / "keys.toml"
    keys.write_text(
        f'[keys.ci]\nkey = "{KEY}"\nroles = ["classify"]\n[keys.only]\nkey = "metrics"\nroles = ["metrics"]\n'
        '[keys.slow]\nkey = "slow"\nroles = ["classify"]\nrequests_per_s = 0.01\nburst_requests = 1\n'
    )
    with serving(bundle, keys_file=keys, inference_threads=1, max_body_bytes=100_000) as found:
        yield found


def test_the_client_of_hugging_face_works_unchanged(hub: Any, url: str, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(RED)
    for client in (
        hub.InferenceClient(model=f"{url}{PATH}", token=KEY),
        hub.InferenceClient(base_url=f"{url}{PATH}", api_key=KEY),
    ):
        for image in (RED, str(tmp_path / "red.png"), tmp_path / "red.png"):
            found = client.image_classification(image)
            assert next(one.label for one in found) == "red"
            assert found[0].score == pytest.approx(0.999, abs=0.01)
            assert (found[0].decision, found[0]["decision"]) == ("accept", "accept")  # fields beyond its own are kept
        assert len(client.image_classification(RED, top_k=1, function_to_apply="softmax")) == 1
        (refused,) = client.image_classification(BLACK, top_k=3)
        assert (refused.label, refused.score, refused.decision) == ("reject", 1.0, "reject")


def test_the_client_says_why_it_was_refused(hub: Any, url: str) -> None:
    client = hub.InferenceClient(f"{url}{PATH}", token=KEY)
    cases = {
        "no image of a supported": (415, lambda: client.image_classification(b"no image")),
        "limit is 100000": (413, lambda: client.image_classification(bytes(200_000))),
        "function_to_apply=none": (422, lambda: client.image_classification(RED, function_to_apply="none")),
        "missing or wrong": (401, lambda: _asked(hub, url, "wrong")),
        "lacks the role classify": (403, lambda: _asked(hub, url, "metrics")),
        "over its 0.01 images": (429, lambda: [_asked(hub, url, "slow") for _ in range(2)]),
    }
    for words, (status, ask) in cases.items():
        with pytest.raises(hub.errors.HfHubHTTPError, match=words) as refused:
            ask()
        response = refused.value.response
        assert response.status_code == status, words
        assert ("retry-after" in response.headers) == (status == 429)
        assert status != 429 or int(response.headers["retry-after"]) > 1


def _asked(hub: Any, url: str, key: str) -> Any:
    return hub.InferenceClient(f"{url}{PATH}", token=key).image_classification(RED)
