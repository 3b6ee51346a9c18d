"""service/web/app.py through HTTP: answers, load, health, keys, and starts that fail."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from service.contract import bundle
from service.errors import EngineError, SettingsError
from service.inference.engine import Engine
from service.settings import Settings
from service.web.app import create_app
from service.web.schemas import Answer
from tests.service import asgi, tiny
from tests.service.asgi import assert_problem, form

PNG = {"content-type": "image/png"}
RED, GREY = tiny.photo((220, 30, 30)), tiny.photo((10, 10, 10))
TWO = form(RED, "files") * 2


# Answers -------------------------------------------------------------------------------------------------------------


def test_answer_in_full(client: TestClient, tiny_bundle: Path) -> None:
    response = client.post("/classify", files=form(tiny.photo((220, 30, 30), (20, 10))))
    answer = Answer.model_validate(response.json(), extra="forbid")
    golden = tiny.golden("", (220, 30, 30))
    assert (answer.label, answer.class_index, answer.group, answer.decision) == ("red", 0, "many", "accept")
    assert answer.probability == pytest.approx(golden["probabilities"][0], abs=1e-5)
    assert answer.scores == pytest.approx(golden["scores"], abs=1e-5)
    assert [(t.label, t.class_index) for t in answer.top_k] == [("red", 0), ("green", 1), ("blue", 2)]
    assert answer.deciding_score.value == answer.scores["energy"]
    assert answer.deciding_score.model_dump(exclude={"value"}) == {
        "name": "energy", "threshold": -5.5, "scope": "group", "operating_point": "id95",
    }  # fmt: skip
    assert answer.p_value == pytest.approx((1 + sum(s >= golden["scores"]["energy"] for s in tiny.ID_SCORES)) / 100)
    assert (answer.image.width_px, answer.image.height_px) == (20, 10)
    assert (answer.model.name, answer.model.version) == ("tiny", "1")
    assert answer.request_id == response.headers["x-request-id"]
    times = answer.stage_times
    assert times.total_ms >= times.decode_ms + times.inference_ms > 0


def test_raw_body_and_form_agree(client: TestClient) -> None:
    raw = client.post("/classify", content=RED, headers=PNG).json()
    multipart = client.post("/classify", files=form(RED)).json()
    for answer in (raw, multipart):
        del answer["request_id"], answer["stage_times"]
    assert raw == multipart


def test_outlier_is_rejected(client: TestClient) -> None:
    answer = client.post("/classify", content=GREY, headers=PNG).json()
    assert (answer["decision"], answer["p_value"]) == ("reject", 0.01)
    assert answer["deciding_score"]["value"] > answer["deciding_score"]["threshold"]


def test_query_chooses(client: TestClient) -> None:
    blue = tiny.photo((10, 20, 140))  # energy about -5.5: above -8, and class blue is of the few group
    query = {"top_k": "1", "operating_point": "ood95", "thresholds": "global"}
    answer = client.post("/classify", params=query, content=blue, headers=PNG).json()
    assert [t["label"] for t in answer["top_k"]] == ["blue"]
    assert answer["decision"] == "reject"
    deciding = answer["deciding_score"]
    assert (deciding["threshold"], deciding["scope"], deciding["operating_point"]) == (-8.0, "global", "ood95")
    by_group = client.post("/classify", content=blue, headers=PNG).json()
    assert (by_group["decision"], by_group["deciding_score"]["threshold"]) == ("accept", -5.0)


def test_settings_choose(settings: Settings) -> None:
    changed = settings.model_copy(update={"operating_point": "ood95", "threshold_scope": "global"})
    with TestClient(create_app(changed)) as client:
        deciding = client.post("/classify", content=RED, headers=PNG).json()["deciding_score"]
        assert (deciding["threshold"], deciding["operating_point"]) == (-8.0, "ood95")
        assert client.get("/model").json()["operating_point"] == "ood95"


def test_batch_answers_each_in_order(client: TestClient) -> None:
    blue = tiny.photo((10, 20, 200))
    files = form(RED, "files", "r.png") + form(b"text", "files", "t.txt") + form(blue, "file", "b.png") + form(b"")
    response = client.post("/classify/batch", files=files)
    assert response.status_code == 200
    results = response.json()["results"]
    assert [r["file"] for r in results] == ["r.png", "t.txt", "b.png", "a.png"]
    assert [r["answer"] and r["answer"]["label"] for r in results] == ["red", None, "blue", None]
    assert [r["problem"] and r["problem"]["status"] for r in results] == [None, 415, None, 422]


def test_score_that_is_not_a_number_is_rejected(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Engine.run

    def broken(self: Engine, batch: Any, *wanted: Any) -> Any:
        outputs = original(self, batch, *wanted)
        outputs.scores["energy"][:] = float("nan")
        return outputs

    current = client.app.state.runtime.model  # type: ignore[attr-defined]
    current.engine.run = lambda batch, *wanted: broken(current.engine, batch, *wanted)
    answer = client.post("/classify", content=RED, headers=PNG).json()
    assert (answer["decision"], answer["scores"]["energy"]) == ("reject", None)


# Load ----------------------------------------------------------------------------------------------------------------


def test_overload_is_429_with_retry_after_and_harms_nobody(settings: Settings) -> None:
    async def body() -> None:
        async with asgi.running(settings.model_copy(update={"queue_images": 2})) as (app, client):
            document = (await client.get("/openapi.json")).json()
            gate = asgi.Gate(app.state.runtime)
            held = [asyncio.create_task(client.post("/classify", content=RED, headers=PNG)) for _ in range(2)]
            await gate.busy()
            while app.state.runtime.model.pipeline.held < 2:
                await asyncio.sleep(0)
            for path, sent in (("/classify", {"content": RED, "headers": PNG}), ("/classify/batch", {"files": TWO})):
                full = await client.post(path, **sent)  # type: ignore[arg-type]
                assert_problem(full, 429, "2 images are queued and 1 more", document)
                assert int(full.headers["retry-after"]) >= 1
            assert (await client.get("/health/live")).json() == {"status": "live"}
            gate.opened.set()
            assert [(await task).status_code for task in held] == [200, 200]
            assert (await client.post("/classify/batch", files=TWO)).status_code == 200

    asyncio.run(body())


def test_a_batch_as_large_as_the_queue_is_answered_beside_single_images(settings: Settings) -> None:
    """64 images find two of the 64 places taken: they enter as room comes, and single images are admitted meanwhile."""

    async def body() -> None:
        async with asgi.running(settings.model_copy(update={"queue_images": 64})) as (app, client):
            gate = asgi.Gate(app.state.runtime)
            held = [asyncio.create_task(client.post("/classify", content=RED, headers=PNG)) for _ in range(2)]
            await gate.busy()
            batch = asyncio.create_task(client.post("/classify/batch", files=form(RED, "files") * 64))
            while app.state.runtime.model.pipeline.held < 2 + 32:
                await asyncio.sleep(0)
            held.append(asyncio.create_task(client.post("/classify", content=RED, headers=PNG)))
            gate.opened.set()
            assert [(await task).status_code for task in held] == [200] * 3
            results = (await batch).json()["results"]
            assert [r["answer"]["label"] for r in results] == ["red"] * 64

    asyncio.run(body())


def test_images_are_counted_by_outcome_and_a_batch_that_fails_whole_is_5xx(settings: Settings) -> None:
    async def body() -> None:
        async with asgi.running(settings) as (app, client):
            document = (await client.get("/openapi.json")).json()
            engine = app.state.runtime.model.engine
            one_bad = [*form(RED, "files"), ("files", ("x.png", b"hello", "image/png"))]
            assert (await client.post("/classify/batch", files=one_bad)).status_code == 200
            await client.post("/classify", content=b"hello", headers=PNG)
            run, engine.run = engine.run, failing
            broken = await client.post("/classify/batch", files=TWO)
            assert_problem(broken, 500, "the graph failed", document)
            single = await client.post("/classify", content=RED, headers=PNG)
            assert_problem(single, 500, "the graph failed", document)
            mixed = await client.post("/classify/batch", files=one_bad)  # one refused, one failed
            assert [r["problem"]["status"] for r in mixed.json()["results"]] == [500, 415]
            engine.run = run
            text = (await client.get("/metrics")).text
            for outcome, count in (("answered", 1), ("refused", 3), ("failed", 4), ("abandoned", 0)):
                assert f'tailguard_images_total{{outcome="{outcome}"}} {count}.0' in text, outcome

    asyncio.run(body())


def failing(*given: Any) -> Any:
    raise EngineError("the graph failed")


def test_an_engine_that_fails_is_not_ready_and_in_the_end_not_live(settings: Settings) -> None:
    async def body() -> None:
        changed = {"unready_failed_runs": 3, "dead_s": 0.001}
        async with asgi.running(settings.model_copy(update=changed)) as (app, client):
            document = (await client.get("/openapi.json")).json()
            engine, pipeline = app.state.runtime.model.engine, app.state.runtime.model.pipeline
            run, engine.run = engine.run, failing
            for _ in range(3):
                assert (await client.get("/health/ready")).status_code == 200
                await client.post("/classify", content=RED, headers=PNG)
            assert_problem(await client.get("/health/ready"), 503, "the last 3 runs of the graph failed", document)
            while (live := await client.get("/health/live")).status_code == 200:
                await asyncio.sleep(0.001)
            assert_problem(live, 503, "the engine does not recover", document)
            assert "tailguard_engine_usable 0.0" in (text := (await client.get("/metrics")).text)
            assert "tailguard_ready 0.0" in text
            engine.run = run  # it recovers, and a probe finds out: nobody sends images to what is not ready
            while pipeline.fault() is not None:
                await asyncio.sleep(0.001)
            assert (await client.get("/health/ready")).status_code == 200
            assert (await client.get("/health/live")).status_code == 200

    asyncio.run(body())


def test_deadline_is_504(settings: Settings) -> None:
    async def body() -> None:
        async with asgi.running(settings.model_copy(update={"request_timeout_s": 0.1})) as (app, client):
            document = (await client.get("/openapi.json")).json()
            gate = asgi.Gate(app.state.runtime)
            response = await client.post("/classify", content=RED, headers=PNG)
            gate.opened.set()
            assert_problem(response, 504, "deadline", document)
            assert app.state.runtime.model.pipeline.held == 0

    asyncio.run(body())


# Health and keys -----------------------------------------------------------------------------------------------------


def test_health_while_starting_serving_and_draining(settings: Settings) -> None:
    async def body() -> None:
        app = create_app(settings)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
            document = (await client.get("/openapi.json")).json()
            assert_problem(await client.get("/health/ready"), 503, "starting", document)
            assert_problem(await client.post("/classify", content=RED, headers=PNG), 503, "starting", document)
            assert (await client.get("/health/live")).status_code == 200
            async with app.router.lifespan_context(app):
                assert (await client.get("/health/ready")).json() == {"status": "ready"}
                app.state.runtime.draining = True
                refused = await client.get("/health/ready")
                assert_problem(refused, 503, "draining", document)
                assert refused.headers["retry-after"] == "1"
                assert (await client.post("/classify", content=RED, headers=PNG)).status_code == 200

    asyncio.run(body())


def test_api_key(settings: Settings) -> None:
    keyed = Settings(**settings.model_dump(exclude={"api_key"}), api_key="s3cret")  # type: ignore[arg-type]
    with TestClient(create_app(keyed)) as client:
        document = client.get("/openapi.json").json()
        for headers in (
            {},
            {"x-api-key": "wrong"},
            {"authorization": "Bearer wrong"},
            {"authorization": "Basic s3cret"},
        ):
            refused = client.post("/classify", content=RED, headers=PNG | headers)
            assert_problem(refused, 401, "X-API-Key", document)
            assert refused.headers["www-authenticate"] == "Bearer"
            assert client.get("/metrics", headers=headers).status_code == 401
        for headers in ({"x-api-key": "s3cret"}, {"authorization": "Bearer s3cret"}):
            assert client.post("/classify", content=RED, headers=PNG | headers).status_code == 200
        for path in ("/", "/openapi.json", "/health/live", "/health/ready"):
            assert client.get(path).status_code == 200


# A start that fails --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"bundle": Path("/nowhere")}, bundle.BundleError, "/nowhere is not a bundle"),
        ({"operating_point": "id99"}, SettingsError, "TAILGUARD_OPERATING_POINT=id99 is none of"),
        pytest.param(
            {"provider": "cuda"},
            EngineError,
            "cuda was asked for",
            marks=pytest.mark.skipif(tiny.HAS_CUDA, reason="this onnxruntime has CUDA"),
        ),
    ],
)
def test_start_fails(settings: Settings, change: dict[str, Any], error: type[Exception], words: str) -> None:
    app = create_app(settings.model_copy(update=change))
    with pytest.raises(error, match=words), TestClient(app):
        raise AssertionError("it started")
    assert words in str(app.state.runtime.failure)
