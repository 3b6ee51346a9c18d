"""service/web/body.py and admission.py: sizes, encodings, slow and departed clients, and what is held meanwhile."""

import asyncio
import gzip
import zlib
from typing import Any

import pytest
from fastapi import Request

from service.errors import BodyTooLarge, MalformedRequest, Overloaded, UnsupportedMedia
from service.inference.model import Model
from service.runtime import Runtime
from service.settings import Settings
from service.web.admission import cancelled_when_client_leaves
from service.web.body import receive_body, unpacked
from service.web.context import CONTEXT_KEY, RequestContext
from service.web.forms import Upload
from service.web.limits import BodyBudget, BudgetShare
from service.web.routes import classify
from tests.service import asgi, tiny

PNG = {"content-type": "image/png"}


def request(chunks: list[bytes], budget: BodyBudget | None = None, **headers: str) -> Request:
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": c, "more_body": True} for c in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    context = RequestContext(Runtime(Settings()), budget or BodyBudget(1 << 20), "id", 0.0)
    named = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    return Request({"type": "http", "headers": named, CONTEXT_KEY: context}, receive)


async def received(asked: Request, max_bytes: int) -> bytes:
    with asked.scope[CONTEXT_KEY].budget.share() as share:
        return await receive_body(asked, share, max_bytes)


def test_announced_size_is_refused_before_reading() -> None:
    with pytest.raises(BodyTooLarge, match="the body has 10001 bytes, the limit is 10000"):
        asyncio.run(received(request([], content_length="10001"), 10_000))


def test_a_body_that_never_fits_into_the_budget_is_too_large() -> None:
    """It was asked to come back, 429, for ever."""
    with pytest.raises(BodyTooLarge, match="the limit is 5000"):
        asyncio.run(received(request([], BodyBudget(5000), content_length="5001"), 10_000))
    with pytest.raises(BodyTooLarge, match="more than 5000 bytes"):
        asyncio.run(received(request([bytes(3000), bytes(3000)], BodyBudget(5000)), 10_000))


def test_exactly_the_limit_passes() -> None:
    assert asyncio.run(received(request([b"12", b"345"]), 5)) == b"12345"
    with pytest.raises(BodyTooLarge, match="more than 4 bytes"):
        asyncio.run(received(request([b"12", b"345"]), 4))


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress), (" GZip ", gzip.compress),
     ("identity", bytes), ("", bytes)],
)  # fmt: skip
def test_encodings_and_their_limit(encoding: str, pack: Any) -> None:
    for size, limit in ((1000, 1000), (0, 1000)):
        packed = pack(bytes(size))
        assert asyncio.run(received(request([packed], content_encoding=encoding), limit)) == bytes(size)
    with pytest.raises(BodyTooLarge):
        asyncio.run(received(request([pack(bytes(1001))], content_encoding=encoding), 1000))


def test_encodings_that_are_none() -> None:
    for encoding in ("br", "gzip, gzip", "zstd"):
        with pytest.raises(UnsupportedMedia, match=f"content encoding {encoding} is not supported"):
            asyncio.run(received(request([b""], content_encoding=encoding), 10))
    for body, words in (
        (b"{}", "no gzip"),
        (gzip.compress(b"{}")[:-3], "cut short"),
        (gzip.compress(b"") * 2, "after"),
    ):
        with pytest.raises(MalformedRequest, match=words):
            unpacked(body, "gzip", 100)


def test_memory_is_bounded_over_all_requests_and_given_back() -> None:
    async def body() -> None:
        budget = BodyBudget(100)
        with budget.share() as first:
            first.take(60)
            with pytest.raises(Overloaded, match="of 90 bytes are in memory, the limit of all together is 100"):
                await received(request([bytes(30), bytes(30)], budget), 1000)
            with pytest.raises(Overloaded):  # what is unpacked counts too
                await received(request([gzip.compress(bytes(50))], budget, content_encoding="gzip"), 1000)
            assert budget.held_bytes == 60
        assert budget.held_bytes == 0

    asyncio.run(body())


def test_every_route_with_a_body_unpacks_it(settings: Settings) -> None:
    async def body() -> None:
        async with asgi.running(settings) as (_, client):
            packed = PNG | {"content-encoding": "gzip"}
            assert (await client.post("/classify", content=gzip.compress(tiny.photo()), headers=packed)).is_success
            bomb = await client.post("/classify", content=gzip.compress(bytes(10**6)), headers=packed)
            assert (bomb.status_code, bomb.json()["detail"]) == (
                413, "the body unpacks to more than 100000 bytes, the limit: send a smaller one",
            )  # fmt: skip
            told = gzip.compress(b'{"request_id": "a", "label": "red"}')
            assert (await client.post("/feedback", content=told, headers=packed)).status_code == 404

    asyncio.run(body())


def test_endless_chunked_body_is_answered_at_the_limit(settings: Settings) -> None:
    async def body() -> None:
        async with asgi.running(settings) as (app, _):
            taken = 0

            async def receive() -> dict[str, Any]:
                nonlocal taken
                taken += 1
                return {"type": "http.request", "body": bytes(10_000), "more_body": taken < 1000}

            status, headers, problem = await asgi.post(app, "/classify", PNG, receive)
            assert status == 413
            assert headers["connection"] == "close"
            assert problem["detail"].startswith("the body has more than 100000 bytes")
            assert taken == 1000  # read to its end and thrown away, so that the client sees the answer

    asyncio.run(body())


def test_a_deadline_that_ends_behind_the_body_is_504(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that had sent everything was told that its body had not arrived, and to make it smaller."""

    async def read(request: Request, share: BudgetShare, model: Model) -> Upload:
        await receive_body(request, share)
        await asyncio.Event().wait()  # a large form is cut in a thread
        raise AssertionError

    monkeypatch.setattr(classify, "read_image", read)

    async def body() -> None:
        async with asgi.running(settings) as (_, client):
            headers = PNG | {"x-request-timeout-ms": "50"}
            answer = await client.post("/classify", content=tiny.photo((220, 30, 30)), headers=headers)
            assert (answer.status_code, answer.json()["type"]) == (504, "urn:tailguard:problem:deadline-exceeded")
            assert "no answer after 0.05 s" in answer.json()["detail"]

    asyncio.run(body())


@pytest.mark.parametrize("path", ["/classify", "/feedback"])
def test_slow_body_is_408(settings: Settings, path: str) -> None:
    async def body() -> None:
        async with asgi.running(settings.model_copy(update={"request_timeout_s": 0.05})) as (app, _):

            async def receive() -> dict[str, Any]:
                await asyncio.Event().wait()
                raise AssertionError

            status, headers, problem = await asgi.post(app, path, PNG, receive)
            assert (status, headers["connection"]) == (408, "close")
            assert "after 0.05 s" in problem["detail"]

    asyncio.run(body())


def test_client_that_leaves_while_sending(settings: Settings) -> None:
    async def body() -> None:
        async with asgi.running(settings) as (app, client):
            messages = [{"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"}]

            async def receive() -> dict[str, Any]:
                return messages.pop(0)

            assert (await asgi.post(app, "/classify", PNG, receive))[0] == 499
            assert app.state.budget.held_bytes == 0
            assert (await client.get("/health/ready")).status_code == 200

    asyncio.run(body())


def test_client_that_leaves_while_waiting_never_reaches_the_engine(settings: Settings) -> None:
    async def body() -> None:
        async with asgi.running(settings) as (app, client):
            runtime = app.state.runtime
            gate = asgi.Gate(runtime)
            first = asyncio.create_task(client.post("/classify", content=tiny.photo(), headers=PNG))
            await gate.busy()
            queued, leave = asyncio.Event(), asyncio.Event()
            messages = [{"type": "http.request", "body": tiny.photo(), "more_body": False}]

            async def receive() -> dict[str, Any]:
                if messages:
                    return messages.pop(0)
                queued.set()
                await leave.wait()
                return {"type": "http.disconnect"}

            gone = asyncio.create_task(asgi.post(app, "/classify", PNG, receive))
            await queued.wait()
            assert runtime.model.pipeline.held == 2
            leave.set()
            assert (await gone)[0] == 499
            assert runtime.model.pipeline.held == 1
            gate.opened.set()
            assert (await first).json()["label"] == "red"
            assert (await client.post("/classify", content=tiny.photo(), headers=PNG)).status_code == 200
            assert gate.images == 2

    asyncio.run(body())


def test_outer_cancellation_is_not_mistaken_for_a_departure() -> None:
    async def body() -> None:
        async def receive() -> dict[str, Any]:
            await asyncio.Event().wait()
            raise AssertionError

        async def work() -> None:
            async with cancelled_when_client_leaves(Request({"type": "http", "headers": []}, receive)):
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(body())
