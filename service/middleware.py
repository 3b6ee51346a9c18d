"""Around every request: an id in and out, the API key, one shape for every refusal, metrics and a log line."""

import asyncio
import hmac
import re
import uuid
from contextlib import suppress
from time import perf_counter

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import (
    HTTP_KINDS,
    INTERNAL,
    PROBLEM_MEDIA_TYPE,
    STATUS,
    BodyTooLarge,
    ClientGone,
    InvalidParameter,
    Kind,
    TailGuardError,
    Unauthorized,
    headers_of,
    kind_of,
    problem,
)
from service.metrics import METHODS, Metrics
from service.settings import Settings

OPEN_PATHS = frozenset({"/", "/openapi.json", "/health/live", "/health/ready"})
VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
LINGER_S = 2.0  # how long a refused body is still read, so that the client gets to see why instead of a reset
LINGER_BYTES = 64 * 2**20

log = structlog.get_logger()


class Observe:
    """Pure ASGI and outermost: nothing gets past it without an id, a count and an answer."""

    def __init__(self, app: ASGIApp, metrics: Metrics, settings: Settings) -> None:
        self._app = app
        self._metrics = metrics
        self._key = settings.api_key.get_secret_value().encode() if settings.api_key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = perf_counter(), 499
        request = Request(scope, receive)
        request_id = request.headers.get("x-request-id", "")
        if not VALID_REQUEST_ID.fullmatch(request_id):  # it goes into logs and headers: nothing else may
            request_id = uuid.uuid4().hex
        scope.setdefault("state", {}).update(request_id=request_id, started=started)
        begun = False

        async def receive_noting() -> Message:
            message = await receive()
            if message["type"] != "http.request" or not message.get("more_body"):
                scope["state"]["body_ended"] = True
            return message

        async def send_with_id(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            if self._key is not None and scope["path"] not in OPEN_PATHS and not self._key_fits(request):
                refusal = Unauthorized("the API key is missing or wrong: send it as X-API-Key or Authorization: Bearer")
                await refuse(request, refusal)(scope, receive_noting, send_with_id)
            else:
                await self._app(scope, receive_noting, send_with_id)
        except Exception:
            log.exception("unexpected error", request_id=request_id, path=scope["path"])
            if not begun:
                detail = f"the service failed at this request; its log says why under {request_id}"
                await _answer(request, INTERNAL, detail, {})(scope, receive_noting, send_with_id)
        finally:
            self._record(scope, status, request_id, perf_counter() - started)

    def _key_fits(self, request: Request) -> bool:
        assert self._key is not None
        given = request.headers.get("x-api-key", "")
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if not given and scheme.lower() == "bearer":
            given = token.strip()
        return hmac.compare_digest(given.encode(), self._key)

    def _record(self, scope: Scope, status: int, request_id: str, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")  # the template, never the path: labels stay few
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._metrics.requests.labels(route, method, str(status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        if status >= 400 and not route.startswith("/health"):
            level = log.error if status == 500 else log.info
            level(
                "refused", status=status, method=method, route=route, request_id=request_id, ms=round(seconds * 1e3, 2)
            )


def install_error_handlers(app: FastAPI, metrics: Metrics) -> None:
    """Make every refusal a problem document: ours, FastAPI's validation, and Starlette's 404 and 405."""

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, TailGuardError)
        metrics.refused.labels(kind_of(error).slug).inc()
        if kind_of(error).status == 500:
            log.error("failed", request_id=request.state.request_id, error=str(error))
        return refuse(request, error)

    async def validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        metrics.refused.labels(STATUS[InvalidParameter].slug).inc()
        return refuse(request, InvalidParameter("; ".join(_sentence(e) for e in error.errors())))

    async def framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kind = HTTP_KINDS.get(error.status_code, Kind(error.status_code, "http-error", str(error.detail)))
        detail = f"{request.method} {request.url.path} is not served here: GET /openapi.json lists what is"
        return _answer(request, kind, detail, dict(error.headers or {}))

    app.add_exception_handler(TailGuardError, ours)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, framework)


def refuse(request: Request, error: TailGuardError) -> Response:
    """The problem response of an error."""
    if isinstance(error, ClientGone):
        return Response(status_code=kind_of(error).status)
    kind = _Lingering if isinstance(error, BodyTooLarge) else _Problem
    return _answer(request, kind_of(error), str(error), headers_of(error), kind)


class _Problem(JSONResponse):
    media_type = PROBLEM_MEDIA_TYPE


class _Lingering(_Problem):
    """Answers at once, then reads on for a moment: closing on unread bytes would reset the answer away."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        left = LINGER_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while left > 0 and not scope["state"].get("body_ended"):
                    left -= len((await receive()).get("body", b""))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _answer(
    request: Request, kind: Kind, detail: str, headers: dict[str, str], response: type[_Problem] = _Problem
) -> Response:
    body = problem(kind, detail, instance=request.url.path, request_id=request.state.request_id)
    return response(body, status_code=kind.status, headers=headers)


def _sentence(error: dict[str, object]) -> str:
    where = error["loc"]
    name = where[-1] if isinstance(where, tuple) else where
    return f"{name}={str(error.get('input'))[:100]} is not valid: {error['msg']}"
