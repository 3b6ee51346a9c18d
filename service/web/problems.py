"""Every refusal in one shape, RFC 9457 problem details: our errors, FastAPI's validation, Starlette's 404 and 405."""

import asyncio
from contextlib import suppress

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from service.errors import (
    HTTP_KINDS,
    INTERNAL,
    PROBLEM_MEDIA_TYPE,
    BodyTooLarge,
    ClientGone,
    InvalidParameter,
    Kind,
    Overloaded,
    RateLimited,
    TailGuardError,
    headers_of,
    kind_of,
    problem,
)
from service.observe.metrics import Metrics
from service.web.limits import Pacer
from service.web.oip.schemas import JSON_MEDIA_TYPE, refusal, speaks

LINGER_S = 2.0  # how long a refused body is still read, so that the client gets to see why instead of a reset
LINGER_BYTES = 64 * 2**20
REFUSALS_PER_S = 500.0  # a tenth of a core; beyond it clients that ask again at once wait for their refusal
LONGEST_HOLD_S = 1.0

log = structlog.get_logger()


class Refusals:
    """Turns errors into answers, and counts them by reason."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._pacer = Pacer(REFUSALS_PER_S, LONGEST_HOLD_S)

    def install(self, app: FastAPI) -> None:
        """Let every error that reaches FastAPI end here."""
        app.add_exception_handler(TailGuardError, self.of)
        app.add_exception_handler(RequestValidationError, self.of)
        app.add_exception_handler(HTTPException, self.of)

    async def of(self, request: Request, error: Exception) -> Response:
        """The response for an error that this service or its framework raised for a request."""
        if isinstance(error, HTTPException):
            kind = HTTP_KINDS.get(error.status_code, Kind(error.status_code, "http-error", str(error.detail)))
            detail = f"{request.method} {request.url.path} is not served here: GET /openapi.json lists what is"
            return _answer(request, kind, detail, dict(error.headers or {}))
        if isinstance(error, RequestValidationError | ValidationError):
            error = InvalidParameter("; ".join(_sentence(dict(e)) for e in error.errors()))
        assert isinstance(error, TailGuardError)
        self.count(error)
        if isinstance(error, ClientGone):
            return Response(status_code=kind_of(error).status)
        if isinstance(error, Overloaded | RateLimited) and (hold_s := self._pacer.delay()) > 0:
            await asyncio.sleep(hold_s)
        if kind_of(error).status == 500:
            log.error("failed", request_id=request.state.request_id, error=str(error))
        response = _Lingering if isinstance(error, BodyTooLarge) else _Problem
        return _answer(request, kind_of(error), str(error), headers_of(error), response)

    def count(self, error: TailGuardError) -> None:
        self._metrics.refused.labels(kind_of(error).slug).inc()


def unexpected(request: Request) -> Response:
    """The answer when the fault is ours; the log has the rest."""
    detail = f"the service failed at this request; its log says why under {request.state.request_id}"
    return _answer(request, INTERNAL, detail, {})


class _Problem(JSONResponse):
    media_type = PROBLEM_MEDIA_TYPE


class _Lingering(_Problem):
    """Answers at once, then reads on for a moment: closing on unread bytes would reset the answer away."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        left = 0 if scope["state"].get("body_ended") else LINGER_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body"):
                        break
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _answer(
    request: Request, kind: Kind, detail: str, headers: dict[str, str], response: type[_Problem] = _Problem
) -> Response:
    if speaks(request.url.path):
        status, said = refusal(kind, detail)
        return response(said, status_code=status, headers=headers, media_type=JSON_MEDIA_TYPE)
    body = problem(kind, detail, instance=request.url.path, request_id=request.state.request_id)
    return response(body, status_code=kind.status, headers=headers)


def _sentence(error: dict[str, object]) -> str:
    where = error["loc"]
    name = where[-1] if isinstance(where, tuple) else where
    return f"{name}={str(error.get('input'))[:100]} is not valid: {error['msg']}"
