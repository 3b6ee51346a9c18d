"""Both clients against answers made up to the second: what is sent again, when, and what is raised."""

import asyncio
import io
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client import AsyncClient, Batching, Client, ProblemError, Retries, Unreachable
from service.errors import PROBLEM_MEDIA_TYPE, PROBLEMS, BodyTooLarge, InvalidImage, Overloaded, TailGuardError, problem
from service.web.schemas import Answer

ANSWER = Answer.model_config["json_schema_extra"]["examples"][0]  # type: ignore[index, call-overload]
Handler = Callable[[httpx.Request], httpx.Response]


def refusal(kind: type[TailGuardError], **headers: str) -> httpx.Response:
    body = problem(PROBLEMS[kind], "why", instance="/classify", request_id="r")
    return httpx.Response(PROBLEMS[kind].status, json=body, headers={"content-type": PROBLEM_MEDIA_TYPE} | headers)


class Service:
    """Answers in the order given, an exception raised; the last one for ever. Notes requests and waits."""

    def __init__(self, *answers: httpx.Response | Exception | Handler) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.waits: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(found, Exception):
            raise found
        if isinstance(found, httpx.Response):
            return httpx.Response(found.status_code, headers=found.headers, content=found.content)
        return found(request)


class Blocking:
    """The blocking client in the shape of the other one's tests."""

    def __init__(self, service: Service, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        monkeypatch.setattr("time.sleep", service.waits.append)
        self.client = Client("http://service", transport=httpx.MockTransport(service), **options)

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        with self.client:
            found = getattr(self.client, name)(*args, **options)
            return list(found) if name == "classify_batch" else found


class Waiting:
    """The asyncio client."""

    def __init__(self, service: Service, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        async def sleep(seconds: float) -> None:
            service.waits.append(seconds)

        monkeypatch.setattr("service.client.clients.asyncio.sleep", sleep)
        self.client = AsyncClient("http://service", transport=httpx.MockTransport(service), **options)

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        async def run() -> Any:
            async with self.client as client:
                if name == "classify_batch":
                    return [item async for item in client.classify_batch(*args, **options)]
                return await getattr(client, name)(*args, **options)

        return asyncio.run(run())


@pytest.fixture(params=[Blocking, Waiting])
def made(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    return lambda service, **options: request.param(service, monkeypatch, **options)


def test_an_image_by_path_by_content_and_by_open_file(made: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "leek.png").write_bytes(b"pixels")
    for image in (tmp_path / "leek.png", str(tmp_path / "leek.png"), b"pixels", io.BytesIO(b"pixels")):
        service = Service(httpx.Response(200, json=ANSWER))
        answer = made(service, key="secret\n").call("classify", image, top_k=2)
        assert (answer.label, answer.decision) == ("cat", "accept")
        assert b"pixels" in service.requests[0].content
        assert service.requests[0].headers["x-api-key"] == "secret"
        assert service.requests[0].url.query == b"top_k=2"


def test_a_file_that_is_not_there_is_an_error_of_the_system(made: Callable[..., Any], tmp_path: Path) -> None:
    service = Service(httpx.Response(200, json=ANSWER))
    with pytest.raises(FileNotFoundError, match="none"):
        made(service).call("classify", tmp_path / "none.png")
    assert service.requests == []


def test_what_is_shed_is_sent_again_after_the_seconds_asked_for(made: Callable[..., Any]) -> None:
    service = Service(
        refusal(Overloaded, **{"retry-after": "3"}), refusal(Overloaded, **{"retry-after": "1"}),
        httpx.Response(200, json=ANSWER),
    )  # fmt: skip
    assert made(service).call("classify", b"image").label == "cat"
    assert service.waits == [3, 1]
    assert all(b"image" in request.content for request in service.requests)


@pytest.mark.parametrize("status", [502, 504])
def test_what_a_proxy_lost_with_a_replica_is_sent_again(made: Callable[..., Any], status: int) -> None:
    service = Service(httpx.Response(status, html="<h1>Bad Gateway</h1>"), httpx.Response(200, json=ANSWER))
    assert made(service).call("classify", b"image").label == "cat"
    assert [b"image" in request.content for request in service.requests] == [True, True]
    assert len(service.waits) == 1


def test_a_wait_longer_than_allowed_is_not_waited_for(made: Callable[..., Any]) -> None:
    service = Service(refusal(Overloaded, **{"retry-after": "31"}))
    with pytest.raises(ProblemError, match="429 The queue is full: why") as raised:
        made(service).call("classify", b"image")
    assert (raised.value.retry_after_s, service.waits) == (31, [])


def test_a_moment_in_retry_after_is_waited_for(made: Callable[..., Any]) -> None:
    """Five attempts within eight seconds were all that a proxy got which names the moment."""
    soon, late = (format_datetime(datetime.now(UTC) + timedelta(seconds=s), usegmt=True) for s in (20, 600))
    gone = "Mon, 01 Jan 2024 00:00:00 GMT"
    service = Service(
        refusal(Overloaded, **{"retry-after": soon}), refusal(Overloaded, **{"retry-after": gone}),
        refusal(Overloaded, **{"retry-after": "soon"}), httpx.Response(200, json=ANSWER),
    )  # fmt: skip
    assert made(service).call("classify", b"image").label == "cat"
    asked, *own = service.waits
    assert 15 < asked <= 20
    assert 0.25 <= own[0] <= 0.5 <= own[1] <= 1
    service = Service(refusal(Overloaded, **{"retry-after": late}))
    with pytest.raises(ProblemError) as raised:
        made(service).call("classify", b"image")
    assert 590 < (raised.value.retry_after_s or 0) <= 600
    assert service.waits == []


def test_attempts_end(made: Callable[..., Any]) -> None:
    service = Service(refusal(Overloaded, **{"retry-after": "1"}))
    with pytest.raises(ProblemError):
        made(service, retries=Retries(attempts=2)).call("classify", b"image")
    assert len(service.requests) == 3
    assert service.waits == [1, 1]


def test_a_refusal_of_the_image_is_not_repeated(made: Callable[..., Any]) -> None:
    service = Service(refusal(InvalidImage))
    with pytest.raises(ProblemError) as raised:
        made(service).call("classify", b"image")
    assert raised.value.problem.type == "urn:tailguard:problem:invalid-image"
    assert len(service.requests) == 1


def test_a_broken_connection_is_tried_again_and_then_named(made: Callable[..., Any]) -> None:
    service = Service(httpx.ConnectError("refused"), httpx.ReadError("reset"), httpx.Response(200, json=ANSWER))
    assert made(service).call("classify", b"image").label == "cat"
    first, second = service.waits
    assert 0.125 <= first <= 0.25
    assert 0.25 <= second <= 0.5
    service = Service(httpx.ConnectError("refused"))
    with pytest.raises(Unreachable, match="POST /classify: refused"):
        made(service, retries=Retries(attempts=1)).call("classify", b"image")
    assert len(service.requests) == 2


def test_what_another_server_says_is_an_error_in_words(made: Callable[..., Any]) -> None:
    with pytest.raises(ProblemError, match="502 Bad Gateway: <html>"):
        made(Service(httpx.Response(502, text="<html>"))).call("model")
    with pytest.raises(ProblemError, match="is the address right"):
        made(Service(httpx.Response(200, text="welcome"))).call("model")


def named(request: httpx.Request) -> list[str]:
    return [part.split(b'filename="')[1].split(b'"')[0].decode() for part in request.content.split(b"--")[1:-1]
            if b"filename=" in part]  # fmt: skip


def batch(request: httpx.Request) -> httpx.Response:
    results = [{"file": name, "answer": ANSWER | {"label": name}} for name in named(request)]
    return httpx.Response(200, json={"request_id": "b", "results": results})


def test_a_batch_is_cut_by_number_and_by_bytes_and_keeps_its_order(made: Callable[..., Any]) -> None:
    service = Service(batch)
    images = [b"x" * size for size in (40, 40, 40, 100, 10, 10, 10, 10)]
    items = made(service).call("classify_batch", images, batching=Batching(images=3, bytes=100))
    assert [item.answer.label for item in items] == [str(i) for i in range(8)]
    assert [named(request) for request in service.requests] == [["0", "1"], ["2"], ["3"], ["4", "5", "6"], ["7"]]
    assert made(Service(batch)).call("classify_batch", []) == []


def test_a_file_may_have_any_name(made: Callable[..., Any], tmp_path: Path) -> None:
    """One that was no UTF-8 ended the whole batch, and one with a quote came back as another."""
    names = {b'12" pizza.jpg': '12" pizza.jpg', b"new\nline.jpg": "new\nline.jpg", b"caf\xe9.jpg": "caf\\xe9.jpg"}
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(b"x")
    images = [tmp_path / os.fsdecode(name) for name in names]
    items = made(Service(batch)).call("classify_batch", images)
    assert [item.file for item in items] == list(names.values())
    assert made(Service(httpx.Response(200, json=ANSWER))).call("classify", images[2]).label == "cat"
    with images[2].open("rb") as opened:
        assert [item.file for item in made(Service(batch)).call("classify_batch", [opened])] == ["caf\\xe9.jpg"]


def test_images_are_read_when_their_turn_comes(made: Callable[..., Any]) -> None:
    service, taken = Service(batch), []

    def images() -> Any:
        for i in range(6):
            taken.append((i, len(service.requests)))
            yield b"x"

    made(service).call("classify_batch", images(), batching=Batching(images=2))
    assert taken == [(0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 2)]


def test_a_batch_too_large_is_halved_down_to_the_image_at_fault(made: Callable[..., Any]) -> None:
    def small(request: httpx.Request) -> httpx.Response:
        names = named(request)
        return refusal(BodyTooLarge) if "2" in names or len(names) > 2 else batch(request)

    items = made(Service(small)).call("classify_batch", [b"x"] * 5)
    assert [item.file for item in items] == ["0", "1", "2", "3", "4"]
    assert [item.problem.status if item.problem else None for item in items] == [None, None, 413, None, None]


def test_images_of_a_batch_that_were_shed_are_sent_again_alone(made: Callable[..., Any]) -> None:
    def partly(request: httpx.Request) -> httpx.Response:
        body = batch(request).json()
        for i in (1, 3):
            shed = problem(PROBLEMS[Overloaded], "full", instance="/classify/batch", request_id="b")
            body["results"][i] = {"file": body["results"][i]["file"], "problem": shed}
        return httpx.Response(200, json=body)

    service = Service(partly, batch)
    items = made(service).call("classify_batch", [b"x"] * 5)
    assert [item.answer.label for item in items] == ["0", "1", "2", "3", "4"]
    assert [named(request) for request in service.requests] == [["0", "1", "2", "3", "4"], ["1", "3"]]


def test_ready_never_raises(made: Callable[..., Any]) -> None:
    assert made(Service(httpx.Response(200, json={"status": "ready"}))).call("ready") is True
    assert made(Service(httpx.Response(503))).call("ready") is False
    service = Service(httpx.ConnectError("refused"))
    assert made(service).call("ready") is False
    assert len(service.requests) == 1
