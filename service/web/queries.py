"""The query of the classifying routes, read alike by FastAPI, which documents them, and by the direct routes.

FastAPI's way through routing, dependencies and response validation costs a small image more than all the rest, so the
same functions are also put first as plain Starlette routes; what both answer is compared by the tests.
"""

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request
from pydantic import ValidationError
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from service.errors import InvalidParameter
from service.web.problems import sentences
from service.web.schemas import ClassifyQuery

Endpoint = Callable[[Request, Any], Awaitable[Response]]
NOTHING_ASKED = ClassifyQuery()


class DirectEndpoint:
    """`endpoint(request, query)` as an ASGI application."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._endpoint(Request(scope, receive), read_query(scope["query_string"]))
        await response(scope, receive, send)


def direct_route(path: str, endpoint: Endpoint) -> Route:
    """A route for POST that reads its query itself."""
    return Route(path, DirectEndpoint(endpoint), methods=["POST"])


def read_query(text: bytes) -> ClassifyQuery:
    """The query of a request. Raises InvalidParameter."""
    if not text:
        return NOTHING_ASKED
    try:
        return ClassifyQuery.model_validate(dict(parse_qsl(text.decode("latin-1"), keep_blank_values=True)))
    except ValidationError as error:
        raise InvalidParameter(sentences(error.errors(), ClassifyQuery.model_fields)) from None
