"""The Open Inference Protocol in the service around it: counts, shadow, keys, a full queue, drain, OpenAPI."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.settings import Settings
from service.web.app import create_app
from service.web.oip.schemas import InferError
from tests.service.asgi import Gate, running
from tests.service.web.oip.test_oip import (
    BLUE,
    BYTES,
    INFER,
    RED,
    TEXTS,
    UINT8,
    ask,
    assert_refused,
    binary,
    columns,
    elements,
    tensor,
)


@pytest.fixture(scope="module")
def oip(tiny_bundle: Path) -> Iterator[TestClient]:
    chosen = Settings(bundle=tiny_bundle, inference_threads=1, max_body_bytes=4_000_000, queue_images=5)
    with TestClient(create_app(chosen)) as started:
        yield started


POINT = 'model="tiny",operating_point="id95",scope="group",version="1"'


def test_counts(settings: Settings) -> None:
    with TestClient(create_app(settings)) as client:
        ask(client, BYTES)
        ask(client, BYTES | {"data": [TEXTS[0], "AAAA"]})
        client.get("/v2/models/other")
        text = client.get("/metrics").text
    assert f'tailguard_decisions_total{{class="red",decision="accept",group="many",{POINT}}} 1.0' in text
    assert f'tailguard_decisions_total{{class="blue",decision="reject",group="few",{POINT}}} 0.0' in text
    assert 'tailguard_refused_total{reason="invalid-image"} 1.0' in text
    assert 'tailguard_refused_total{reason="not-found"} 1.0' in text
    route = "/v2/models/{name}/infer"
    assert f'tailguard_requests_total{{method="POST",route="{route}",status="200"}} 1.0' in text
    assert f'tailguard_requests_total{{method="POST",route="{route}",status="400"}} 1.0' in text


def test_shadow_and_trace_get_what_they_can_use(oip: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    offered: list[tuple[Any, ...]] = []
    traced: list[tuple[Any, ...]] = []
    service = oip.app.state.runtime  # type: ignore[attr-defined]
    shadow = SimpleNamespace(offer=lambda *what: offered.append((what[0], what[1], what[2].decision)))
    monkeypatch.setattr(service, "shadow", shadow)
    monkeypatch.setattr(service, "tracer", SimpleNamespace(record=lambda *what, failed: traced.append(what)))
    ask(oip, UINT8)  # another bundle may take another size
    ask(oip, BYTES, parameters={"operating_point": "ood95"})  # decided otherwise than by default
    assert offered == []
    ask(oip, BYTES)
    assert offered == [(RED, "red", "accept"), (BLUE, "blue", "accept")]
    assert [list(what[4]) for what in traced] == [["receive", "classify", "respond"]] * 3


def test_keys_guard_all_but_health(tiny_bundle: Path) -> None:
    with TestClient(create_app(Settings(bundle=tiny_bundle, api_key="k"))) as client:
        assert client.get("/v2/health/live").status_code == client.get("/v2/health/ready").status_code == 200
        for method, path in (("GET", "/v2"), ("GET", "/v2/models/tiny"), ("POST", INFER)):
            assert_refused(client.request(method, path), 401, "X-API-Key")
            assert client.request(method, path, headers={"x-api-key": "k"}).status_code != 401


def test_full_late_and_draining(tiny_bundle: Path) -> None:
    chosen = Settings(bundle=tiny_bundle, inference_threads=1, max_batch_images=1, queue_images=3)

    async def scenario() -> None:
        async with running(chosen) as (app, client):
            service = app.state.runtime
            gate = Gate(service)
            first = asyncio.create_task(client.post(INFER, json={"inputs": [BYTES]}))
            await gate.busy()
            with service.model.pipeline.reserve(2):
                full = await client.post(INFER, json={"inputs": [BYTES]})
            assert_refused(full, 429, "3 images are queued and 1 more would pass the limit of 3")
            assert int(full.headers["retry-after"]) >= 1
            late = await client.post(
                INFER,
                json={"inputs": [BYTES | {"shape": [1], "data": TEXTS[:1]}]},
                headers={"x-request-timeout-ms": "30"},
            )
            assert_refused(late, 504, "deadline")
            service.draining = True
            for path in ("/v2/health/ready", "/v2/models/tiny/ready"):
                assert_refused(await client.get(path), 503, "draining")
            assert (await client.get("/v2/health/live")).status_code == 200
            gate.opened.set()
            assert columns(await first)["label"] == ["red", "blue"]
            assert service.model.pipeline.held == app.state.budget.held_bytes == 0
            service.draining = False

    asyncio.run(scenario())


def test_one_bad_image_ends_the_others(tiny_bundle: Path) -> None:
    chosen = Settings(bundle=tiny_bundle, inference_threads=1, max_batch_images=1, queue_images=64)

    async def scenario() -> None:
        async with running(chosen) as (app, client):
            photos = [RED[:50], *[RED] * 39]
            content = elements(*photos)
            request = binary({"inputs": [tensor(BYTES, len(content), shape=[40])]}, content)
            gate = Gate(app.state.runtime)
            gate.opened.set()
            assert_refused(await client.post(INFER, **request), 400, "image[0]: the image is damaged")
            pipeline = app.state.runtime.model.pipeline
            assert pipeline.held == 0
            assert columns(await client.post(INFER, json={"inputs": [BYTES]}))["label"] == ["red", "blue"]
            assert gate.images < 40

    asyncio.run(scenario())


def test_openapi_is_true(oip: TestClient) -> None:
    paths = oip.get("/openapi.json").json()["paths"]
    calls = [version + call for version in ("", "/versions/{version}") for call in ("", "/ready", "/infer")]
    assert {path for path in paths if path.startswith("/v2")} == {
        "/v2", "/v2/health/live", "/v2/health/ready", *(f"/v2/models/{{name}}{call}" for call in calls),
    }  # fmt: skip
    for path, methods in paths.items():
        if not path.startswith("/v2"):
            continue
        for operation in methods.values():
            named = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
            assert named == {part[1:-1] for part in path.split("/") if part.startswith("{")}
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert list(response["content"]) == ["application/json"]
                    assert response["content"]["application/json"]["schema"]["$ref"].endswith("/InferError")
                    for example in response["content"]["application/json"]["examples"].values():
                        InferError.model_validate(example["value"], extra="forbid")
    body = paths["/v2/models/{name}/infer"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "application/octet-stream"}
    assert "$ref" not in json.dumps(body)
    item = body["application/json"]["schema"]["properties"]["inputs"]["items"]
    assert item["properties"]["name"]["enum"] == ["images", "image"]
