"""service/uploads.py and the faults of a body on its way: sizes, forms, slow and departed clients."""

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from fastapi import Request
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.errors import BodyTooLarge, MalformedRequest, TailGuardError
from service.settings import Settings
from service.uploads import Upload, dropped_when_client_leaves, receive_many
from tests.service import asgi, tiny

FORM = (
    b"--b\r\nContent-Disposition: form-data; name=\"note\"\r\n\r\nhello\r\n"
    b"--b\r\nContent-Disposition: form-data; name=\"files\"; filename=\"a b.png\"\r\nContent-Type: image/png\r\n\r\n"
    b"\r\n--one\r\n\r\n--x--not the end\r\r\n"
    b"--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"\xc3\xa9.png\"\r\n\r\n\r\n"
    b"--b--\r\n"
)  # fmt: skip
CONTENT_TYPE = "multipart/form-data; boundary=b"
PNG = {"content-type": "image/png"}


def request(chunks: list[bytes], content_type: str = CONTENT_TYPE, **headers: str) -> Request:
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": c, "more_body": True} for c in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    named = {"content-type": content_type, **{k.replace("_", "-"): v for k, v in headers.items()}}
    scope = {"type": "http", "headers": [(k.encode(), v.encode()) for k, v in named.items()]}
    return Request(scope, receive)


@given(st.lists(st.integers(0, len(FORM)), max_size=12))
@hypothesis_settings(deadline=None, max_examples=60)
def test_form_does_not_depend_on_how_it_is_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(FORM)]
    chunks = [FORM[a:b] for a, b in pairwise(edges)]
    found = asyncio.run(receive_many(request(chunks), 10_000))
    assert found == [Upload("a b.png", b"\r\n--one\r\n\r\n--x--not the end\r"), Upload("é.png", b"")]


@given(st.integers(0, len(FORM) - 3))
@hypothesis_settings(deadline=None, max_examples=60)
def test_form_cut_short_is_malformed(end: int) -> None:
    with pytest.raises(MalformedRequest):
        asyncio.run(receive_many(request([FORM[:end]]), 10_000))


@given(st.binary(max_size=300))
@hypothesis_settings(deadline=None, max_examples=100)
def test_any_bytes_as_form_are_refused(body: bytes) -> None:
    with pytest.raises(TailGuardError):
        asyncio.run(receive_many(request([body]), 10_000))


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary="])
def test_form_without_boundary(content_type: str) -> None:
    with pytest.raises(MalformedRequest, match="names no boundary"):
        asyncio.run(receive_many(request([FORM], content_type), 10_000))


def test_announced_size_is_refused_before_reading() -> None:
    with pytest.raises(BodyTooLarge, match="the body has 10001 bytes, the limit is 10000"):
        asyncio.run(receive_many(request([], content_length="10001"), 10_000))  # reading would end as malformed


def test_exactly_the_limit_passes() -> None:
    assert len(asyncio.run(receive_many(request([FORM]), len(FORM)))) == 2
    with pytest.raises(BodyTooLarge):
        asyncio.run(receive_many(request([FORM]), len(FORM) - 1))


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


def test_slow_body_is_408(settings: Settings) -> None:
    async def body() -> None:
        async with asgi.running(settings.model_copy(update={"request_timeout_s": 0.05})) as (app, _):

            async def receive() -> dict[str, Any]:
                await asyncio.Event().wait()
                raise AssertionError

            status, headers, problem = await asgi.post(app, "/classify", PNG, receive)
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
            assert (await client.get("/health/ready")).status_code == 200

    asyncio.run(body())


def test_client_that_leaves_while_waiting_never_reaches_the_engine(settings: Settings) -> None:
    async def body() -> None:
        async with asgi.running(settings) as (app, client):
            service = app.state.service
            gate = asgi.Gate(service)
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
            assert service.model.batcher.held == 2
            leave.set()
            assert (await gone)[0] == 499
            assert service.model.batcher.held == 1
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
            async with dropped_when_client_leaves(Request({"type": "http", "headers": []}, receive)):
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(body())
