"""Everything that may refuse a request before its work begins, and all that it holds until it is answered.

    async with admit(request, read_image, query, images=one) as admitted:
        row = await admitted.submit(admitted.body.data)

In this order: a model is in force; the query is one that it takes; the queue has room, which is checked before the
body is read; the body arrives whole, in time, and within the memory for bodies; a single image gets its room in the
queue, and several get theirs one by one in `submit`. While the work runs it is cancelled when the client leaves.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Generic, TypeVar

from fastapi import Request

from service.errors import ClientGone, DeadlineExceeded, InvalidParameter, SlowRequest
from service.inference.model import DecisionParameters, Model
from service.inference.rows import Image, Row
from service.web.connection import SCOPE_KEY, Protocol
from service.web.context import RequestContext, context_of
from service.web.limits import BudgetShare
from service.web.schemas import ClassifyQuery

TIMEOUT_HEADER = "x-request-timeout-ms"

Body = TypeVar("Body")
Reader = Callable[[Request, BudgetShare, Model], Awaitable[Body]]


@dataclass(frozen=True, slots=True)
class Admitted(Generic[Body]):
    """A request whose work may begin. `deadline` is in the event loop's time, seconds."""

    context: RequestContext
    model: Model
    parameters: DecisionParameters
    body: Body
    deadline: float
    holds_slots: bool = True  # else each image waits for its own

    async def submit(self, image: Image) -> Row:
        """The row of one image. Raises as Pipeline.submit."""
        wanted = self.parameters.wanted
        if self.holds_slots:
            return await self.model.pipeline.submit(image, self.deadline, wanted)
        return await self.model.pipeline.submit_when_free(image, self.deadline, wanted)


@asynccontextmanager
async def admit(
    request: Request,
    read: Reader[Body],
    query: ClassifyQuery | None = None,
    *,
    images: Callable[[Body], int] | None = None,
) -> AsyncIterator[Admitted[Body]]:
    """Admit a request whose body `read` reads, and hold room for `images(body)` images; None: it classifies none.

    Raises NotReady, InvalidParameter, Overloaded, RateLimited, SlowRequest, DeadlineExceeded,
    ClientGone, and what `read` raises.
    """
    context = context_of(request)
    runtime = context.runtime
    model = runtime.in_force()
    parameters = model.decision_parameters(**({} if query is None else query.__dict__))
    if images is not None:
        context.uncounted_images = 1
        model.pipeline.check_room()
    deadline, timeout_s = deadline_of(request, runtime.settings.request_timeout_s)
    with model.pipeline.visit(), context.budget.share() as share:
        connection: Protocol | None = request.scope.get(SCOPE_KEY)
        try:
            # Most bodies are there when their request is: no timer is needed for what does not wait.
            late = None if connection is not None and connection.body_arrived else deadline
            async with asyncio.timeout_at(late):
                body = await read(request, share, model)
        except TimeoutError:
            arrived = context.body_ended or (connection is not None and connection.body_arrived)
            if arrived and images is not None:  # a small body of JSON takes no time behind its last byte
                raise DeadlineExceeded(
                    f"no answer after {timeout_s:g} s: allow more time, or try again when there is less load"
                ) from None
            raise SlowRequest(
                f"the body had not arrived after {timeout_s:g} s: send it faster, make it smaller, or allow more time"
            ) from None
        context.received = perf_counter()
        admitted = Admitted(context, model, parameters, body, deadline)
        async with cancelled_when_client_leaves(request):
            if images is None:
                yield admitted
                return
            runtime.metrics.receive_seconds.observe(context.received - context.started)
            count = images(body)
            if count > model.pipeline.queue_images:
                raise InvalidParameter(
                    f"{count} images came, at most {model.pipeline.queue_images} fit: send fewer at once"
                )
            context.uncounted_images = count
            if count > 1 and context.key is not None:
                context.key.take(count - 1, counted=1)  # by AccessMiddleware
            if count > 1:  # they enter one by one, as room comes
                yield replace(admitted, holds_slots=False)
                return
            with model.pipeline.reserve(count):
                yield admitted


def deadline_of(request: Request, longest_s: float) -> tuple[float, float]:
    """The deadline in the event loop's time, counted from the request's beginning, and the seconds it gives.

    X-Request-Timeout-Ms or `longest_s`, whichever is sooner. Raises InvalidParameter unless the header is a whole
    number of milliseconds from 1.
    """
    timeout_s = longest_s
    given = request.headers.get(TIMEOUT_HEADER)
    if given is not None:
        if not given.isdecimal() or not given.isascii() or len(given) > 12 or int(given) < 1:
            raise InvalidParameter(f"X-Request-Timeout-Ms={given[:100]} is not valid: send whole milliseconds from 1")
        timeout_s = min(longest_s, int(given) / 1e3)
    already_s = perf_counter() - context_of(request).started
    return asyncio.get_running_loop().time() - already_s + timeout_s, timeout_s


class cancelled_when_client_leaves:  # used like a function: no generator, which would cost a request more
    """Cancel what runs inside when the client disconnects, and raise ClientGone. Only after the body has been read.

    Under our own server the connection tells (web/connection.py), which costs nothing; under any other, reading the
    request's next message does.
    """

    __slots__ = ("_connection", "_left", "_request", "_task", "_watcher")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._left = False
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._connection: Protocol | None = self._request.scope.get(SCOPE_KEY)
        if self._connection is None:
            self._watcher = asyncio.create_task(self._watch())
        elif self._connection.lost:
            raise ClientGone("the client closed the connection before its answer")
        else:
            self._connection.on_lost = self._cancel

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._connection is not None:
            self._connection.on_lost = None
        elif self._watcher is not None:
            self._watcher.cancel()
        if not self._left:
            return
        others = self._task.uncancel()
        if isinstance(error, asyncio.CancelledError) and others == 0:  # somebody else's cancellation would count
            raise ClientGone("the client closed the connection before its answer") from None

    def _cancel(self) -> None:
        self._left = True
        self._task.cancel()

    async def _watch(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._cancel()
