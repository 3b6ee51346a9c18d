"""Drives the application as a server does, message by message, for what an HTTP client cannot do."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray

from service.inference.engine import Outputs
from service.inference.wanted import NOTHING, Wanted
from service.runtime import Runtime
from service.settings import Settings
from service.web.app import create_app
from service.web.schemas import Problem

WAIT_S = 10


class Gate:
    """Stands before the engine of a running application and holds every batch until it is opened."""

    def __init__(self, runtime: Runtime) -> None:
        assert runtime.model is not None
        self.opened, self.entered = threading.Event(), threading.Semaphore(0)
        self.images = 0
        self._run = runtime.model.engine.run
        runtime.model.engine.run = self._held  # type: ignore[method-assign]

    def _held(self, batch: NDArray[np.uint8], wanted: Wanted = NOTHING) -> Outputs:
        self.images += len(batch)
        self.entered.release()
        assert self.opened.wait(WAIT_S)
        return self._run(batch, wanted)

    async def busy(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=WAIT_S)


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    """The started application and a client of it."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://tailguard") as client:
            yield app, client


async def post(
    app: FastAPI,
    path: str,
    headers: dict[str, str],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    method: str = "POST",
) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of the answer to a request whose body comes from `receive`."""
    headers = {"host": "tailguard"} | headers
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "server": ("tailguard", 80),
        "client": ("127.0.0.1", 1), "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
    }  # fmt: skip
    await app(scope, receive, send)  # type: ignore[arg-type]
    body = b"".join(m.get("body", b"") for m in sent[1:])
    shown = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    return sent[0]["status"], shown, json.loads(body) if body else None


def assert_problem(response: Any, status: int, words: str, document: dict[str, Any]) -> None:
    """A problem document of that status which says `words`, and which OpenAPI announces for that route."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = Problem.model_validate(response.json(), extra="forbid")
    assert body.status == status
    assert words in body.detail
    assert body.instance == response.url.path
    assert body.request_id == response.headers["x-request-id"]
    route = document["paths"].get(response.url.path, {}).get(response.request.method.lower())
    if route is not None:
        assert str(status) in route["responses"]
        assert list(route["responses"][str(status)]["content"]) == ["application/problem+json"]


def form(data: bytes, field: str = "file", name: str = "a.png") -> list[tuple[str, tuple[str, bytes, str]]]:
    return [(field, (name, data, "image/png"))]
