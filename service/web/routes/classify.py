"""The spine: a request's way from its bytes to its decision. POST /classify, and /classify/batch for several images.

    bytes → image → batch → graph → decision → answer → metrics, ledger

Each step is one line of `classify`; the module that does it stands behind it.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

import structlog
from fastapi import APIRouter, Query, Request, Response
from pydantic_core import to_json

from service.errors import InvalidParameter, Overloaded, TailGuardError, kind_of, problem
from service.web.admission import Admitted, admit
from service.web.answers import answer_with_more
from service.web.body import read_image, read_images
from service.web.forms import Upload
from service.web.openapi import BATCH_ROUTE, IMAGE_ROUTE, MANY_FILES, ONE_FILE, Failure, problems
from service.web.queries import direct_route
from service.web.record import decide_image
from service.web.schemas import Answer, BatchAnswer, ClassifyQuery

JSON = "application/json"
SAID: dict[Failure, str] = {InvalidParameter: "operating_point=id99 is none of this model's: id95, ood95"}

T = TypeVar("T")
# (request, admitted, position, image, failures: what is not the client's fault is appended) → what is said of the image
Item = Callable[[Request, Admitted[list[Upload]], int, Upload, list[TailGuardError]], Coroutine[Any, Any, T]]

router = APIRouter(tags=["classify"])
log = structlog.get_logger()


# ---------------------------------------------------------------------------------------------------------------------
# One image


@router.post(
    "/classify", response_model=Answer, responses=problems("/classify", IMAGE_ROUTE, SAID), openapi_extra=ONE_FILE
)
async def classify(request: Request, query: Annotated[ClassifyQuery, Query()]) -> Response:
    """Classify one image and decide whether the model knows what it sees."""
    async with admit(request, read_image, query, images=lambda upload: 1) as admitted:  # its bytes, or a refusal
        row = await admitted.submit(admitted.body.data)  # image → batch → graph
        decided = decide_image(admitted, 0, admitted.body.data, row)  # decision → metrics, shadow, ledger, trace
        found = await answer_with_more(admitted, decided)
    return Response(to_json(found), media_type=JSON)


# ---------------------------------------------------------------------------------------------------------------------
# Several images


@router.post(
    "/classify/batch",
    response_model=BatchAnswer,
    responses=problems("/classify/batch", BATCH_ROUTE, SAID),
    openapi_extra=MANY_FILES,
)
async def classify_batch(request: Request, query: Annotated[ClassifyQuery, Query()]) -> Response:
    """Classify several images: an answer or a problem for each, in the order sent.

    When every image was shed or failed by the service (429, 5xx), the whole request is answered so.
    """
    async with admit(request, read_images, query, images=len) as admitted:
        found = {"request_id": admitted.context.request_id, "results": await each(request, admitted, _item)}
    return Response(to_json(found), media_type=JSON)


async def each(request: Request, admitted: Admitted[list[Upload]], item: Item[T]) -> list[T]:
    """What `item` makes of each image, in the order sent, all of them at work at once.

    Raises the first failure when every image was shed or failed by the service.
    """
    failures: list[TailGuardError] = []
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(item(request, admitted, i, upload, failures)) for i, upload in enumerate(admitted.body)
        ]
    if len(failures) == len(tasks):
        raise failures[0]
    return [task.result() for task in tasks]


async def _item(
    request: Request, admitted: Admitted[list[Upload]], position: int, upload: Upload, failures: list[TailGuardError]
) -> dict[str, Any]:
    """The answer for one image of a batch, or its problem; what is not the client's fault is appended to `failures`."""
    item: dict[str, Any] = {
        "file": upload.filename or str(position),
        "index": position,
        "answer": None,
        "problem": None,
    }
    try:
        row = await admitted.submit(upload.data)
        item["answer"] = await answer_with_more(admitted, decide_image(admitted, position, upload.data, row))
    except TailGuardError as error:
        item["problem"] = problem_of(request, admitted, position, error, failures)
    return item


def problem_of(
    request: Request, admitted: Admitted[Any], position: int, error: TailGuardError, failures: list[TailGuardError]
) -> dict[str, Any]:
    """The problem of one image of several, counted; what is not the client's fault is appended to `failures`."""
    context, kind = admitted.context, kind_of(error)
    context.runtime.metrics.refused.labels(kind.slug).inc()
    failed = kind.status >= 500
    context.count_image("failed" if failed else "refused")
    if failed or isinstance(error, Overloaded):
        failures.append(error)
    if failed:
        log.error("failed", request_id=context.request_id, image=position, status=kind.status, error=str(error))
    return problem(kind, str(error), instance=request.url.path, request_id=context.request_id)


# ---------------------------------------------------------------------------------------------------------------------
# The same two, put before FastAPI's (service/web/queries.py)

direct_routes = [direct_route("/classify", classify), direct_route("/classify/batch", classify_batch)]
