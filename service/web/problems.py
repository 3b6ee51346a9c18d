"""Every refusal in one shape, RFC 9457 problem details: our errors, FastAPI's validation, Starlette's 404 and 405.

Under /v2 the shape and the statuses are those of the Open Inference Protocol.
"""

import asyncio
import difflib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from service.errors import (
    INTERNAL,
    PIPELINE_PATHS,
    PROBLEM_MEDIA_TYPE,
    BodyTooLarge,
    ClientGone,
    InvalidParameter,
    MalformedRequest,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    ProblemKind,
    RateLimited,
    TailGuardError,
    headers_of,
    kind_of,
    problem,
)
from service.observe.metrics import Metrics
from service.web.context import context_of
from service.web.limits import Pacer
from service.web.oip.schemas import JSON_MEDIA_TYPE, is_protocol_path, protocol_problem
from service.web.reviewed import GroupsQuery
from service.web.schemas import ClassifyQuery, PipelineQuery

LINGER_S = 2.0  # how long a refused body is still read, so that the client gets to see why instead of a reset
LINGER_BYTES = 64 * 2**20
REFUSALS_PER_S = 500.0  # a tenth of a core; beyond it clients that ask again at once wait for their refusal
LONGEST_HOLD_S = 1.0

log = structlog.get_logger()


class Problems:
    """Turns errors into answers, and counts them by reason."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._pacer = Pacer(REFUSALS_PER_S, LONGEST_HOLD_S)

    def install(self, app: FastAPI) -> None:
        """Let every error that reaches FastAPI be answered here."""
        for error in (TailGuardError, RequestValidationError, HTTPException):
            app.add_exception_handler(error, self.answer)

    async def answer(self, request: Request, error: Exception) -> Response:
        """The response for an error that this service or its framework raised for a request."""
        more_headers: dict[str, str] = {}
        if isinstance(error, HTTPException):
            more_headers = dict(error.headers or {})
            error = _translated(request, error)
        elif isinstance(error, RequestValidationError):
            error = InvalidParameter(sentences(error.errors(), _query_of(request.url.path).model_fields))
        assert isinstance(error, TailGuardError)
        self.count(error)
        if isinstance(error, ClientGone):
            return Response(status_code=kind_of(error).status)
        if isinstance(error, Overloaded | RateLimited) and (hold_s := self._pacer.delay()) > 0:
            await asyncio.sleep(hold_s)
        if kind_of(error).status == 500:
            log.error("failed", request_id=context_of(request).request_id, error=str(error))
        response = _Lingering if isinstance(error, BodyTooLarge) else _Problem
        return _answer(request, kind_of(error), str(error), headers_of(error) | more_headers, response)

    def count(self, error: TailGuardError) -> None:
        """Count a refused request, or a refused image of a batch."""
        self._metrics.refused.labels(kind_of(error).slug).inc()


def unexpected(request: Request) -> Response:
    """The answer to a request at which this service failed for a reason that it does not know; the log has the rest."""
    detail = f"the service failed at this request; its log says why under {context_of(request).request_id}"
    return _answer(request, INTERNAL, detail, {})


def sentences(errors: Sequence[Any], known: Iterable[str]) -> str:
    """What pydantic found wrong, in one line: each field with its value. `known`: the fields that there are."""
    return "; ".join(_sentence(error, list(known)) for error in errors)


def _sentence(error: dict[str, Any], known: list[str]) -> str:
    where = _place(error["loc"])[:100]
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(where, known, n=1, cutoff=0.5)
        return f"{where} is not known here" + (f": did you mean {near[0]}?" if near else f", only {', '.join(known)}")
    return f"{where}={str(error.get('input'))[:100]} is not valid: {error['msg']}"


def _place(loc: Sequence[Any]) -> str:
    """The field; of a list also which of its values, counted from 0: rows[3]."""
    if not loc:
        return "the body"
    return f"{loc[-2]}[{loc[-1]}]" if isinstance(loc[-1], int) and len(loc) > 1 else str(loc[-1])


def _query_of(path: str) -> type[BaseModel]:
    """What a route with a query takes."""
    if path.startswith(PIPELINE_PATHS):
        return PipelineQuery
    return GroupsQuery if path.startswith("/review/") else ClassifyQuery


def _translated(request: Request, error: HTTPException) -> TailGuardError:
    """What the framework refuses, as an error of ours."""
    where = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        return NotFound(f"{where} is not served here: GET /openapi.json lists what is")
    if error.status_code == 405:
        return MethodNotAllowed(f"{where} is not served here: GET /openapi.json lists what is")
    return MalformedRequest(f"{where} cannot be read: {error.detail}")


class _Problem(JSONResponse):
    media_type = PROBLEM_MEDIA_TYPE


class _Lingering(_Problem):
    """Answers at once, then reads on for a moment: closing on unread bytes would reset the answer away."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        left = 0 if context_of(Request(scope)).body_ended else LINGER_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body"):
                        break
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _answer(
    request: Request, kind: ProblemKind, detail: str, headers: dict[str, str], response: type[_Problem] = _Problem
) -> Response:
    if is_protocol_path(request.url.path):
        status, said = protocol_problem(kind, detail)
        return response(said, status_code=status, headers=headers, media_type=JSON_MEDIA_TYPE)
    body = problem(kind, detail, instance=request.url.path, request_id=context_of(request).request_id)
    return response(body, status_code=kind.status, headers=headers)
