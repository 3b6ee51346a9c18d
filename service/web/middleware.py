"""Around every request: an id in and out, the API key, security headers, metrics, a log line, a trace.

Routes in `direct` are called without FastAPI's routing, dependencies and response validation, which would cost a small
image more than everything else. They are the same functions that FastAPI documents, with the same query model, so the
OpenAPI document stays true.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from random import getrandbits
from time import perf_counter
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import structlog
from fastapi import Request
from pydantic import ValidationError
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import TailGuardError
from service.observe.metrics import METHODS
from service.observe.tracing import http_attributes
from service.runtime import Service
from service.web.limits import TokenBucket
from service.web.problems import Refusals, unexpected
from service.web.schemas import Wishes

OPEN_PATHS = frozenset({"/", "/openapi.json", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"})
ADMIN_PREFIX = "/admin/"
UNTRACED = ("/health", "/v2/health", "/metrics")
VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
LOG_LINES_PER_S, LOG_LINES_AT_ONCE = 20, 100  # of refusals: a flood of them must not become a flood of lines

log = structlog.get_logger()


class Direct(NamedTuple):
    """A route called directly: its function, and the model of its query."""

    endpoint: Callable[[Request, Any], Awaitable[Response]]
    query: type[Wishes]


class Observe:
    """Pure ASGI and outermost: nothing gets past it without an id, a count and an answer."""

    def __init__(
        self, app: ASGIApp, service: Service, refusals: Refusals, direct: Mapping[tuple[str, str], Direct]
    ) -> None:
        self._app = app
        self._service = service
        self._refusals = refusals
        self._direct = direct
        self._lines = TokenBucket(LOG_LINES_PER_S, LOG_LINES_AT_ONCE)
        self._unlogged = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = perf_counter(), 499
        request_id = _request_id(scope)
        scope.setdefault("state", {}).update(request_id=request_id, started=started)
        begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                message["headers"] = [
                    *message["headers"], (b"x-request-id", request_id.encode()), *SECURITY_HEADERS
                ]  # fmt: skip
                if self._service.draining:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        request = Request(scope, receive)
        self._service.in_flight += 1
        try:
            await self._answer(request, receive, send_with_headers)
        except Exception:
            log.exception("unexpected error", request_id=request_id, path=scope["path"])
            if not begun:
                await unexpected(request)(scope, receive, send_with_headers)
        finally:
            self._service.in_flight -= 1
            self._record(scope, status, request_id, started)

    async def _answer(self, request: Request, receive: Receive, send: Send) -> None:
        scope = request.scope
        try:
            self._admit(scope)
            direct = self._direct.get((scope["method"], scope["path"]))
            if direct is None:
                await self._app(scope, receive, send)
                return
            scope["route_path"] = scope["path"]
            query = scope["query_string"]
            wishes = direct.query.model_validate(
                dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)) if query else {}
            )
            response = await direct.endpoint(request, wishes)
        except (TailGuardError, ValidationError) as error:
            response = await self._refusals.of(request, error)
        await response(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        """Raises Unauthorized, Forbidden or RateLimited."""
        path = scope["path"]
        if path.startswith(ADMIN_PREFIX):
            scope["state"]["key"] = self._service.keys.admit_admin(scope["headers"]).name
        elif path not in OPEN_PATHS:
            key = self._service.keys.admit(scope["headers"])
            if key is not None:
                scope["state"]["key"] = key.name

    def _record(self, scope: Scope, status: int, request_id: str, started: float) -> None:
        ended = perf_counter()
        state = scope["state"]
        # The template, never the path: labels stay few.
        route: str = scope.get("route_path", "") or getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in METHODS else "other"
        metrics = self._service.metrics
        metrics.requests.labels(route, method, str(status)).inc()
        metrics.request_seconds.labels(route).observe(ended - started)
        if "decided" in state:
            metrics.respond_seconds.observe(ended - state["decided"])
        if self._service.tracer is not None and not route.startswith(UNTRACED):
            self._trace(scope, route, status, started, ended)
        if status >= 400 and not route.startswith("/health"):
            if self._lines.take() > 0:
                self._unlogged += 1
                return
            level = log.error if status == 500 else log.info
            more = {"key": state["key"]} if "key" in state else {}
            if self._unlogged:
                more["lines_left_out"], self._unlogged = self._unlogged, 0
            level(
                "refused", status=status, method=method, route=route, request_id=request_id,
                ms=round((ended - started) * 1e3, 2), **more,
            )  # fmt: skip

    def _trace(self, scope: Scope, route: str, status: int, started: float, ended: float) -> None:
        assert self._service.tracer is not None
        state = scope["state"]
        attributes = http_attributes(scope["method"], scope["scheme"], scope["path"], route, status)
        attributes |= {"tailguard.request_id": state["request_id"], **state.get("attributes", {})}
        self._service.tracer.record(
            f"{scope['method']} {route}", scope["headers"], started, ended, state.get("stages", {}), attributes,
            failed=status >= 500,
        )  # fmt: skip


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            given: str = value.decode("latin-1")
            if VALID_REQUEST_ID.fullmatch(given):  # it goes into logs and headers: nothing else may
                return given
    return f"{getrandbits(128):032x}"  # unique is enough: nothing is granted to whoever guesses one
