"""The routes that FastAPI documents and the plain ones before them: both ways must be one."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.settings import Settings
from service.web.app import create_app
from service.web.schemas import Answer, BatchAnswer
from tests.service import tiny
from tests.service.asgi import form

PNG = {"content-type": "image/png"}
RED = tiny.photo((220, 30, 30))
QUERIES = [
    "", "?top_k=1", "?top_k=1&top_k=2", "?top_k=", "?top_k=0", "?top_k=1.5", "?top_k=99999999999999999999",
    "?top_k=+2", "?top_k=%32", "?operating_point=ood95", "?operating_point=", "?operating_point=no",
    "?thresholds=Global", "?thresholds=", "?top_k=2&thresholds=global&operating_point=ood95", "?top_k", "?&&",
    "?operating_point=%ff", "?top_k=2;thresholds=x",
]  # fmt: skip


@pytest.fixture
def routed(settings: Settings) -> Iterator[TestClient]:
    """The application without the plain routes: every request goes through FastAPI."""
    app = create_app(settings)
    del app.router.routes[:2]
    with TestClient(app) as client:
        yield client


def essence(response: Any) -> tuple[int, str, Any]:
    body = response.json()
    for name in ("request_id", "stage_times"):
        body.pop(name, None)
    return response.status_code, response.headers["content-type"], body


def test_direct_and_routed_answer_alike(client: TestClient, routed: TestClient) -> None:
    for query in QUERIES:
        direct, documented = (c.post(f"/classify{query}", content=RED, headers=PNG) for c in (client, routed))
        assert essence(direct) == essence(documented), query
        if direct.status_code == 200:
            for answered in (direct, documented):
                Answer.model_validate(answered.json(), extra="forbid")


def test_batch_too(client: TestClient, routed: TestClient) -> None:
    for each in (client, routed):
        answered = each.post("/classify/batch?top_k=1", files=form(RED, "files") * 2 + form(b"x", "files"))
        assert answered.status_code == 200
        found = BatchAnswer.model_validate(answered.json(), extra="forbid")
        assert [r.answer is None for r in found.results] == [False, False, True]
        assert [r.problem is None for r in found.results] == [True, True, False]


def test_both_are_counted_under_one_route(client: TestClient, routed: TestClient) -> None:
    for each in (client, routed):
        each.post("/classify", content=RED, headers=PNG)
        each.get("/classify")
        text = each.get("/metrics").text
        for method, status in (("POST", 200), ("GET", 405)):
            assert f'tailguard_requests_total{{method="{method}",route="/classify",status="{status}"}} 1.0' in text
