"""service/web/body.py and the faults of a body on its way: sizes, forms, slow and departed clients."""

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from fastapi import Request
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.errors import BodyTooLarge, MalformedRequest, Overloaded, TailGuardError
from service.settings import Settings
from service.web.body import Memory, dropped_when_client_leaves, receive_many, receive_one
from service.web.forms import Upload, _only_part, parse_form
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
    return Request({**scope, "state": {}}, receive)


async def many(asked: Request, max_bytes: int) -> list[Upload]:
    with Memory(1 << 20).share() as share:
        return await receive_many(asked, max_bytes, share)


@given(st.lists(st.integers(0, len(FORM)), max_size=12))
@hypothesis_settings(deadline=None, max_examples=60)
def test_form_does_not_depend_on_how_it_is_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(FORM)]
    chunks = [FORM[a:b] for a, b in pairwise(edges)]
    found = asyncio.run(many(request(chunks), 10_000))
    assert found == [Upload("a b.png", b"\r\n--one\r\n\r\n--x--not the end\r"), Upload("é.png", b"")]


@given(st.integers(0, len(FORM) - 3))
@hypothesis_settings(deadline=None, max_examples=60)
def test_form_cut_short_is_malformed(end: int) -> None:
    with pytest.raises(MalformedRequest):
        asyncio.run(many(request([FORM[:end]]), 10_000))


@given(st.binary(max_size=300))
@hypothesis_settings(deadline=None, max_examples=100)
def test_any_bytes_as_form_are_refused(body: bytes) -> None:
    with pytest.raises(TailGuardError):
        asyncio.run(many(request([body]), 10_000))


BOUNDARIES = ["b", "------------------------d74496d66958873e", "----WebKitFormBoundary7MA4YWxkTrZu0gW"]
HEADS = [
    'Content-Disposition: form-data; name="file"; filename="a.jpg"\r\nContent-Type: image/jpeg',
    'content-disposition: form-data; name="file"; filename="IMG 1 (2).JPG"',
    'Content-Disposition: form-data; name="file"; filename=""\r\nContent-Type: application/octet-stream',
    'Content-Disposition: form-data; name="file"\r\nContent-Type: text/plain; charset=utf-8',
    'Content-Disposition: form-data; name="image"; filename="a.jpg"',
    'Content-Disposition: form-data; name="file"; filename="caf\u00e9.jpg"',
    'Content-Disposition: form-data; name="file"; filename="a\\"b.jpg"',
    "Content-Disposition: form-data; name=\"file\"; filename*=UTF-8''x.jpg",
    'Content-Type: image/png\r\nContent-Disposition: form-data; name="file"; filename="a.png"',
    'Content-Disposition: form-data; name="file"; filename="a.png"\r\nContent-Transfer-Encoding: binary',
    "X: y",
]


@given(
    st.sampled_from(BOUNDARIES),
    st.sampled_from(HEADS),
    st.lists(
        st.sampled_from([b"\r\n", b"--", b"b", b"-", b"\r", b"\n", b"x\x00", b"\r\n--b", b"\r\n--b--\r\n"]), max_size=8
    ),
    st.sampled_from(["", "\r\n", "preamble", "\r\n--b--\r\n"]),
)
@hypothesis_settings(deadline=None, max_examples=300)
def test_cut_out_file_is_the_parsed_file(boundary: str, head: str, pieces: list[bytes], more: str) -> None:
    """The short way for the form of one file gives what the parser gives, or leaves the form to it."""
    content = b"".join(pieces)
    end = b"\r\n--" + boundary.encode() + b"--\r\n" + more.encode()
    body = b"--" + boundary.encode() + b"\r\n" + head.encode() + b"\r\n\r\n" + content + end
    cut = _only_part(body, boundary.encode(), ("file",))
    if cut is not None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("service.web.forms._only_part", lambda *_: None)
            assert parse_form(body, f"multipart/form-data; boundary={boundary}", ("file",)) == [cut]


@pytest.mark.parametrize("head", HEADS[:4])
def test_the_usual_forms_are_cut_out(head: str) -> None:
    body = b"--b\r\n" + head.encode() + b"\r\n\r\n\xff\xd8\r\n\r\n--b--\r\n"
    found = _only_part(body, b"b", ("file",))
    assert found is not None
    assert found.data == b"\xff\xd8\r\n"


def test_memory_is_bounded_over_all_requests_and_given_back() -> None:
    async def body() -> None:
        memory = Memory(100)
        with memory.share() as first:
            first.take(60)
            with pytest.raises(Overloaded, match="90 bytes are being received, the limit of all together is 100"):  # noqa: SIM117
                with memory.share() as second:
                    await receive_one(request([bytes(30), bytes(30)], "image/png"), 1000, second)
            assert memory.held_bytes == 60
        assert memory.held_bytes == 0

    asyncio.run(body())


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary="])
def test_form_without_boundary(content_type: str) -> None:
    with pytest.raises(MalformedRequest, match="names no boundary"):
        asyncio.run(many(request([FORM], content_type), 10_000))


def test_announced_size_is_refused_before_reading() -> None:
    with pytest.raises(BodyTooLarge, match="the body has 10001 bytes, the limit is 10000"):
        asyncio.run(many(request([], content_length="10001"), 10_000))  # reading would end as malformed


def test_exactly_the_limit_passes() -> None:
    assert len(asyncio.run(many(request([FORM]), len(FORM)))) == 2
    with pytest.raises(BodyTooLarge):
        asyncio.run(many(request([FORM]), len(FORM) - 1))


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
            assert service.model.pipeline.held == 2
            leave.set()
            assert (await gone)[0] == 499
            assert service.model.pipeline.held == 1
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
