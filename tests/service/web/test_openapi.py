"""Every example of a problem in the OpenAPI document is what the service answers, to the letter: each is provoked."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.errors import DeadlineExceeded, Refused
from service.review.front import Front
from service.settings import Settings
from service.web.app import create_app
from service.web.openapi import EXAMPLE_ID
from tests.service import asgi, tiny
from tests.service.asgi import form

RED = tiny.photo()
BYTES = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [""]}
ADMIN = {"x-api-key": "r00t"}
Provoked = tuple[int, str, Any]  # status, media type, body


def body_for(path: str, **changes: Any) -> dict[str, Any]:
    """A request to `path` that is in order but for `changes`, for httpx."""
    if path in ("/classify", "/v1/image-classification"):
        return {"content": RED, "headers": {"content-type": "image/png"}} | changes
    if path in ("/classify/batch", "/embed"):
        return {"files": form(RED, "files")} | changes
    if path.endswith("/infer"):
        return {"json": {"inputs": [BYTES | {"shape": [1, 8, 8, 4], "name": "images", "datatype": "UINT8"}]}} | changes
    if path == "/feedback":
        return {"json": {"request_id": EXAMPLE_ID, "label": "red"}} | changes
    if path == "/admin/bundle":
        return {"json": {"path": "/models/none"}} | changes
    if path == "/admin/operating-point":
        return {"json": {"operating_point": "id95"}} | changes
    if path == "/admin/shadow":
        return {"json": {"path": "/models/none"}} | changes
    if path in ("/admin/promote", "/admin/back", "/review/undo", "/review/import"):
        return {"json": {}} | changes
    if path == "/review/labels":
        return {"json": {"rows": [1], "kind": "outlier"}} | changes
    if path in ("/review/claims", "/review/release"):
        return {"json": {"items": ["row-1"], "desk": "a"}} | changes
    return changes


def media_type(path: str) -> str:
    return "multipart/form-data; boundary=b" if path.endswith(("batch", "embed")) else "image/png"


def malformed(path: str) -> dict[str, Any]:
    if path in ("/classify", "/classify/batch", "/embed"):
        return {"content": b"--b\r\n\r\nx", "headers": {"content-type": "multipart/form-data; boundary=b"}}
    headers = {"headers": {"content-type": "application/json"}} if path.startswith("/v1/") else {}
    return body_for(path) if path.endswith("/infer") else {"content": b"{", **headers}


def invalid_parameter(path: str) -> dict[str, Any]:
    if path in ("/classify", "/classify/batch", "/v1/image-classification"):
        return body_for(path, params={"operating_point": "id99"})
    if path.endswith("/infer"):
        return {"json": {"inputs": [BYTES], "parameters": {"operating_point": "id99"}}}
    if path.startswith("/v2"):
        return body_for(path, params={"verbose": "1"})
    if path == "/feedback":
        return {"json": {"request_id": "a", "label": "red", "index": -1}}
    wrong = {"/admin/bundle": {"path": ""}, "/admin/shadow": {"share": 2}, "/admin/promote": {"least_compared": -1},
             "/admin/back": {"to": 1}, "/review/import": {},
             "/review/labels": {"rows": [1], "kind": "class"}}  # fmt: skip
    return {"json": wrong[path]} if path in wrong else body_for(path, params={"verbose": "1"})


def invalid_image(path: str) -> dict[str, Any]:
    if path.endswith("/infer"):
        return {"json": {"inputs": [BYTES]}}
    empty = {"files": form(b"", "files")}
    if path == "/embed":  # whose answer in JSON is a problem beside the embeddings
        return empty | {"headers": {"accept": "application/x-npy"}}
    return empty if path.endswith("batch") else {"content": b"", "headers": {"content-type": "image/png"}}


REQUESTS: dict[str, Callable[[str], dict[str, Any]]] = {
    "unauthorized": lambda path: body_for(path, headers={"x-api-key": "wrong"}),
    "forbidden": lambda path: body_for(path, headers={"host": "example.org"}),
    "invalid-parameter": invalid_parameter,
    "invalid-image": invalid_image,
    "malformed-request": malformed,
    "unsupported-media": lambda path: {
        "content": b"x",
        "headers": {"content-encoding": "br", "content-type": media_type(path)},
    },
    "body-too-large": lambda path: {
        "content": b"x",
        "headers": {"content-length": "20971520", "content-type": media_type(path)},
    },
    "not-found": body_for,
    "refused": body_for,
    "internal-error": body_for,
    "not-ready": body_for,
    "overloaded": body_for,
    "rate-limited": body_for,
    "slow-request": body_for,
    "deadline-exceeded": lambda path: {"json": {"inputs": [BYTES]}} if path.endswith("/infer") else body_for(path),
}


def address(path: str, slug: str) -> str:
    """`path` with names in it that this bundle has, or has not."""
    if path.startswith("/v2"):
        return path.replace("{name}", "other" if slug == "not-found" else "tiny").replace("{version}", "1")
    return path.replace("{name}", "lion.png").replace("{id}", EXAMPLE_ID).replace("{key}", "lion")


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    with_exemplars = tiny.write_exemplars(tmp_path_factory.mktemp("models") / "tiny" / "1")
    keys = tmp_path_factory.mktemp("keys") / "keys.toml"
    keys.write_text('[keys.ci]\nkey = "k3y"\nadmin = true\nrequests_per_s = 0.01\nburst_requests = 1\n')
    settings = Settings.model_validate(
        {"bundle": with_exemplars, "inference_threads": 1, "admin_keys": "ops=r00t", "keys_file": keys,
         "allowed_hosts": "testserver"}
    )  # fmt: skip
    app = create_app(settings)
    with TestClient(app):
        keys.write_text("")
        yield app


@contextmanager
def circumstances(app: FastAPI, path: str, slug: str, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """What has to be wrong inside the service for a problem that no request can cause alone."""
    runtime = app.state.runtime
    with patch.context() as changed:
        if slug == "internal-error":
            changed.setattr("service.web.middleware.AccessMiddleware._check", lambda *_: 1 / 0)
            changed.setattr("service.web.middleware.log", SimpleNamespace(exception=_quiet, error=_quiet))
        if slug == "not-ready" and path == "/health/live":
            changed.setattr(type(runtime.model.pipeline), "dead", lambda _: True)
        elif slug == "not-ready":
            changed.setattr(runtime, "model", None)
        if slug == "overloaded":
            changed.setattr(runtime.model.pipeline._slots, "held", 64)
        if slug == "deadline-exceeded":
            changed.setattr(type(runtime.model.pipeline), "submit", _late)
            changed.setattr(type(runtime.ledger), "record_feedback", _never)
            changed.setattr(runtime, "settings", runtime.settings.model_copy(update={"request_timeout_s": 0.2}))
        if slug == "not-found" and path.startswith("/review"):
            changed.setattr(runtime, "ledger", None)
        if slug == "refused":
            changed.setattr(Front, "label", _claimed)
        if slug == "slow-request":
            changed.setattr(runtime, "settings", runtime.settings.model_copy(update={"request_timeout_s": 0.05}))
        yield


def _quiet(*_: Any, **__: Any) -> None:
    """In place of a log that would show every frame of the exception."""


async def _never(*_: Any, **__: Any) -> Any:
    await asyncio.Event().wait()


async def _claimed(*_: Any, **__: Any) -> Any:
    raise Refused("ann is looking at g2f1c: take another, or come back in 180 s")


async def _late(*_: Any) -> Any:
    raise DeadlineExceeded("no answer at the deadline: try again when there is less load")


def provoke(app: FastAPI, method: str, path: str, slug: str) -> Provoked:
    """The answer of the running application to the request that fails so."""
    sent = REQUESTS[slug](path)
    headers = {"x-api-key": "k3y"} if slug == "rate-limited" else ADMIN
    headers = headers | sent.pop("headers", {})
    url = address(path, slug)
    if slug in ("slow-request", "body-too-large"):  # which httpx would not send
        announced = {"host": "testserver", "content-type": media_type(path)} | headers

        async def never() -> dict[str, Any]:
            if slug == "body-too-large":
                return {"type": "http.request", "body": b"", "more_body": False}
            await asyncio.Event().wait()
            raise AssertionError

        status, shown, body = asyncio.run(asgi.post(app, url, announced, never, method=method))
        return status, shown["content-type"], body
    client = TestClient(app, raise_server_exceptions=False)
    if slug == "rate-limited":
        client.get("/model", headers=headers)  # the one request that its limit lets through
    response = client.request(method, url, headers=headers, **sent)
    return response.status_code, response.headers["content-type"], response.json()


def documented(app: FastAPI) -> list[tuple[str, str, int, str, str, Any]]:
    """(path, method, status, media type, slug, example) of every problem in the document."""
    found = []
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            for status, response in operation["responses"].items():
                for media, content in response["content"].items() if int(status) >= 400 else ():
                    for slug, example in content["examples"].items():
                        found.append((path, method.upper(), int(status), media, slug, example["value"]))
    return found


def test_every_example_is_what_the_service_answers(application: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = documented(application)
    assert len(examples) > 100
    monkeypatch.setattr("service.web.middleware.getrandbits", lambda bits: int(EXAMPLE_ID, 16))
    wrong = []
    for path, method, status, media, slug, example in examples:
        with circumstances(application, path, slug, monkeypatch):
            got = provoke(application, method, path, slug)
        if "instance" in example:  # /model/examples/lion.png stands for /model/examples/{name}
            assert example["instance"] == address(path, slug)
        expected = json.loads(json.dumps(example).replace("keys.toml", str(application.state.keys._settings.keys_file)))
        if got != (status, media, expected):
            wrong.append(f"{method} {path} {slug}: {got} is not {(status, media, expected)}")
    assert not wrong, "\n".join(wrong)
