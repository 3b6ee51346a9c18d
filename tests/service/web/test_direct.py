"""The routes that FastAPI documents and the middleware calls directly: both ways must be one."""

import threading
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.settings import Settings
from service.web.app import create_app
from service.web.middleware import Observe
from service.web.schemas import Answer, BatchAnswer
from tests.service import tiny
from tests.service.asgi import form

PNG = {"content-type": "image/png"}
RED = tiny.photo((220, 30, 30))
QUERIES = [
    "", "?top_k=1", "?top_k=3", "?top_k=1&top_k=2", "?top_k=", "?top_k=0", "?top_k=-1", "?top_k=1.5", "?top_k=x",
    "?top_k=99999999999999999999", "?top_k=+2", "?top_k=%32", "?operating_point=ood95", "?operating_point=",
    "?operating_point=no", "?thresholds=global", "?thresholds=group", "?thresholds=Global", "?thresholds=", "?other=1",
    "?top_k=2&thresholds=global&operating_point=ood95", "?top_k", "?&&", "?operating_point=%ff",
    "?top_k=2;thresholds=x",
]  # fmt: skip


@pytest.fixture
def routed(settings: Settings) -> FastAPI:
    """The application whose every request goes through FastAPI."""
    app = create_app(settings)
    for layer in app.user_middleware:
        if layer.cls is Observe:  # type: ignore[comparison-overlap]
            layer.kwargs["direct"] = {}
    return app


def essence(response: Any) -> tuple[int, Any]:
    body = response.json()
    body.pop("request_id")
    body.pop("stage_times", None)
    return response.status_code, body


@pytest.mark.parametrize("query", QUERIES)
def test_direct_and_routed_answer_alike(client: TestClient, routed: FastAPI, query: str) -> None:
    with TestClient(routed) as other:
        sent = [c.post(f"/classify{query}", content=RED, headers=PNG) for c in (client, other)]
        assert essence(sent[0]) == essence(sent[1])
        assert sent[0].headers["content-type"] == sent[1].headers["content-type"]
        if sent[0].status_code == 200:
            for answered in sent:
                Answer.model_validate(answered.json(), extra="forbid")


def test_batch_too(client: TestClient, routed: FastAPI) -> None:
    with TestClient(routed) as other:
        sent = [
            c.post("/classify/batch?top_k=1", files=form(RED, "files") * 2 + form(b"x", "files"))
            for c in (client, other)
        ]
        for answered in sent:
            assert answered.status_code == 200
            found = BatchAnswer.model_validate(answered.json(), extra="forbid")
            assert [r.answer is None for r in found.results] == [False, False, True]
            assert [r.problem is None for r in found.results] == [True, True, False]


def test_route_label_is_the_same(client: TestClient) -> None:
    client.post("/classify", content=RED, headers=PNG)
    assert 'tailguard_requests_total{method="POST",route="/classify",status="200"} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize(
    ("given", "status"),
    [("1000", 200), ("99999999", 200), ("0", 422), ("-5", 422), ("1.5", 422), ("soon", 422), ("²", 422)],
)
def test_timeout_header(client: TestClient, given: str, status: int) -> None:
    response = client.post("/classify", content=RED, headers=PNG | {"x-request-timeout-ms": given.encode("latin-1")})
    assert response.status_code == status
    if status == 422:
        assert "X-Request-Timeout-Ms=" in response.json()["detail"]


def test_timeout_header_shortens_the_deadline(client: TestClient) -> None:
    current = client.app.state.service.model  # type: ignore[attr-defined]
    opened, run = threading.Event(), current.engine.run

    def held(batch: Any) -> Any:
        opened.wait(10)
        return run(batch)

    current.engine.run = held
    response = client.post("/classify", content=RED, headers=PNG | {"x-request-timeout-ms": "50"})
    opened.set()
    assert response.status_code == 504
    assert client.post("/classify", content=RED, headers=PNG).status_code == 200


def test_security_headers_and_no_cors(client: TestClient) -> None:
    for response in (client.get("/"), client.post("/classify", content=RED, headers=PNG), client.get("/nope")):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
    foreign = client.get("/model", headers={"origin": "https://example.org"})
    assert "access-control-allow-origin" not in foreign.headers


def test_cors_for_the_origins_named(settings: Settings) -> None:
    allowed = settings.model_copy(update={"cors_origins": "https://a.example, https://b.example"})
    with TestClient(create_app(allowed)) as client:
        for origin, shown in [("https://b.example", "https://b.example"), ("https://c.example", None)]:
            response = client.post("/classify", content=RED, headers=PNG | {"origin": origin})
            assert response.status_code == 200
            assert response.headers.get("access-control-allow-origin") == shown
        asked = {"origin": "https://a.example", "access-control-request-method": "POST",
                 "access-control-request-headers": "x-api-key"}  # fmt: skip
        assert client.options("/classify", headers=asked).status_code == 200
