"""Around every request: an id in and out, security headers, metrics, a log line, a trace; and who may ask at all.

RequestMiddleware is the outermost: nothing gets past it without an id, a count and an answer. AccessMiddleware is the
innermost, behind CORS, so that a page of an allowed origin can read a refusal too.
"""

import re
from collections.abc import Sequence
from random import getrandbits
from time import perf_counter
from urllib.parse import parse_qsl

import structlog
from fastapi import Request
from prometheus_client import Counter, Histogram
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import InvalidParameter, MalformedRequest, TailGuardError
from service.observe.metrics import HTTP_METHODS
from service.observe.tracing import http_attributes
from service.runtime import Runtime
from service.web.access import OPEN_PATHS, Keys, role_of
from service.web.context import CONTEXT_KEY, RequestContext
from service.web.limits import BodyBudget, TokenBucket
from service.web.origins import Origins
from service.web.problems import Problems, unexpected

PATHS_WITH_QUERY = ("/classify", "/classify/batch", "/v1/image-classification", "/review/groups")
SINGLE_HEADERS = (
    b"x-api-key", b"authorization", b"content-type", b"content-encoding", b"x-request-timeout-ms",
    b"inference-header-content-length",
)  # fmt: skip
UNTRACED = ("/health", "/v2/health", "/metrics")
UNMATCHED = "unmatched"
VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
LOG_LINES_PER_S, LOG_LINES_AT_ONCE = 20, 100  # of refusals: a flood of them must not become a flood of lines

log = structlog.get_logger()


class RequestMiddleware:
    """Pure ASGI: makes the RequestContext, and counts, logs and traces what came of the request."""

    def __init__(self, app: ASGIApp, runtime: Runtime, budget: BodyBudget, routes: Sequence[Route]) -> None:
        self._app = app
        self._routes = routes
        self._runtime = runtime
        self._budget = budget
        self._lines = TokenBucket(LOG_LINES_PER_S, LOG_LINES_AT_ONCE)
        self._unlogged = 0
        self._series: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}  # as few as there are labels

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        runtime, status = self._runtime, 0
        # Unique is enough for an id: nothing is granted to whoever guesses one.
        client_id = _client_id(scope["headers"])
        context = RequestContext(runtime, self._budget, f"{getrandbits(128):032x}", perf_counter(), client_id)
        scope[CONTEXT_KEY] = context

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"] = [
                    *message["headers"], (b"x-request-id", context.request_id.encode()), *SECURITY_HEADERS
                ]  # fmt: skip
                if client_id is not None:
                    headers.append((b"x-client-request-id", client_id.encode()))
                if runtime.draining:
                    headers.append((b"connection", b"close"))
            await send(message)

        runtime.in_flight += 1
        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:
            log.exception("unexpected error", request_id=context.request_id, path=scope["path"])
            if not status:
                await unexpected(Request(scope))(scope, receive, send_with_headers)
        finally:
            runtime.in_flight -= 1
            self._record(scope, context, status or 499)

    def _record(self, scope: Scope, context: RequestContext, status: int) -> None:
        ended = perf_counter()
        route = self._template(scope)
        method = scope["method"] if scope["method"] in HTTP_METHODS else "other"
        metrics = self._runtime.metrics
        if (series := self._series.get((route, method, status))) is None:  # a label is looked up once
            labelled = metrics.requests.labels(route, method, str(status)), metrics.request_seconds.labels(route)
            series = self._series[route, method, status] = labelled
        series[0].inc()
        series[1].observe(ended - context.started)
        context.count_rest(status)
        if context.decided is not None:
            metrics.respond_seconds.observe(ended - context.decided)
        if self._runtime.tracer is not None and not route.startswith(UNTRACED):
            self._trace(scope, context, route, status, ended)
        if status >= 400 and not route.startswith("/health"):
            self._log(context, route, method, status, ended)

    def _template(self, scope: Scope) -> str:
        """The template of the route, never the path, so that labels stay few."""
        if (route := scope.get("route")) is None:  # refused before it came to the routes
            path = scope["path"]
            route = next((route for route in self._routes if route.path_regex.match(path)), None)
        return UNMATCHED if route is None else str(route.path)

    def _log(self, context: RequestContext, route: str, method: str, status: int, ended: float) -> None:
        if self._lines.take() > 0:
            self._unlogged += 1
            return
        failed = status == 500
        more = {} if context.key is None else {"key": context.key.name}
        if context.client_id is not None:
            more["client_id"] = context.client_id
        if self._unlogged:
            more["lines_left_out"], self._unlogged = str(self._unlogged), 0
        (log.error if failed else log.info)(
            "failed" if failed else "refused", status=status, method=method, route=route,
            request_id=context.request_id, ms=round((ended - context.started) * 1e3, 2), **more,
        )  # fmt: skip

    def _trace(self, scope: Scope, context: RequestContext, route: str, status: int, ended: float) -> None:
        tracer = self._runtime.tracer
        assert tracer is not None
        attributes = http_attributes(scope["method"], scope["scheme"], scope["path"], route, status)
        attributes["tailguard.request_id"] = context.request_id
        if context.images:
            attributes |= {"tailguard.images": context.images, **(context.attributes or {})}
        tracer.record(
            f"{scope['method']} {route}", scope["headers"], context.started, ended, context.trace_stages(ended),
            attributes, failed=status >= 500,
        )  # fmt: skip


class AccessMiddleware:
    """Lets a request pass when its host, its API key and the page that sends it are allowed; refuses it otherwise."""

    def __init__(self, app: ASGIApp, keys: Keys, origins: Origins, problems: Problems) -> None:
        self._app = app
        self._keys = keys
        self._origins = origins
        self._problems = problems

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope)
            except TailGuardError as error:
                response = await self._problems.answer(Request(scope), error)
                await response(scope, receive, send)
                return
            if scope["method"] == "HEAD":  # what GET would say, without its body
                scope, send = {**scope, "method": "GET"}, _without_body(send)
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        self._origins.check_host(scope)
        path = scope["path"]
        if path in OPEN_PATHS:
            return
        _check_headers(scope["headers"])
        key = scope[CONTEXT_KEY].key = self._keys.admit(scope["headers"], role_of(path))
        if key is None:
            self._origins.check_page(scope)
        if scope["query_string"]:
            _check_query(path, scope["query_string"].decode("latin-1"))


def _check_headers(headers: list[tuple[bytes, bytes]]) -> None:
    """Raises MalformedRequest for a header that is given twice, of which the first would decide and none would know."""
    names = [name for name, _ in headers if name in SINGLE_HEADERS]
    if len(names) > len(set(names)):
        twice = next(name for name in names if names.count(name) > 1).decode()
        raise MalformedRequest(f"the request has {names.count(twice.encode())} {twice.title()} headers: send one")


def _check_query(path: str, query: str) -> None:
    """Raises InvalidParameter for a query where none is taken, and for a parameter given twice: which is meant?"""
    if path not in PATHS_WITH_QUERY and not path.startswith("/review/groups/"):
        name = query.partition("=")[0]
        raise InvalidParameter(f"{name[:100]} is not known here: this route takes no query")
    seen: set[str] = set()
    for name, _ in parse_qsl(query, keep_blank_values=True):
        if name in seen:
            raise InvalidParameter(f"{name[:100]} is given twice: give it once")
        seen.add(name)


def _without_body(send: Send) -> Send:
    async def send_head(message: Message) -> None:
        await send(message if message["type"] == "http.response.start" else {**message, "body": b""})

    return send_head


def _client_id(headers: list[tuple[bytes, bytes]]) -> str | None:
    """The id that the client gave, when it is one that may go into logs and headers."""
    for name, value in headers:
        if name == b"x-request-id":
            given = value.decode("latin-1")
            return given if VALID_REQUEST_ID.fullmatch(given) else None
    return None
