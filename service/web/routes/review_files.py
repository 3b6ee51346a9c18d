"""The review as files: what people said, as a tar file; and labels that were given with another tool."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from service.errors import InvalidParameter, MalformedRequest, NotFound
from service.inference.model import Model
from service.ledger.reading import Reader
from service.review import export, imports
from service.web.admission import admit
from service.web.body import receive_body
from service.web.context import runtime_of
from service.web.limits import BudgetShare
from service.web.openapi import BODY_HEADERS, BODY_ROUTE, MODEL_ROUTE, problems
from service.web.reviewed import ImportAnswer
from service.web.reviewing import OFF, front_of, reviewer_of

MOST_SHOWN = 20
TAR = "application/x-tar"
NOT_KNOWN = f"the file is none that is known here: send {imports.FORMATS}"
NO_JSON = "the file is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)): send "
NO_JSON += imports.FORMATS

router = APIRouter(prefix="/review", tags=["review"])


@router.get(
    "/export",
    response_class=StreamingResponse,
    responses={
        200: {"description": "A tar file", "content": {TAR: {"schema": {"type": "string", "format": "binary"}}}},
        **problems("/review/export", (*MODEL_ROUTE, NotFound), {NotFound: OFF}),
    },
)
async def export_tar(request: Request) -> StreamingResponse:
    """Every labelled image in train/<class> and outliers, and labels.csv, which `tailguard fit` reads as they are."""
    front_of(request)
    ledger = runtime_of(request).ledger
    assert ledger is not None
    reader = await asyncio.to_thread(ledger.reader)
    headers = {"content-disposition": 'attachment; filename="tailguard-review.tar"', "cache-control": "no-store"}
    return StreamingResponse(_pieces(reader), media_type=TAR, headers=headers)


@router.post(
    "/import",
    responses=problems(
        "/review/import",
        (*BODY_ROUTE, NotFound),
        {NotFound: OFF, InvalidParameter: NOT_KNOWN, MalformedRequest: NO_JSON},
    ),
    openapi_extra={
        "parameters": BODY_HEADERS,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {}}},
            "description": imports.FORMATS,
        },
    },
)
async def import_labels(request: Request) -> ImportAnswer:
    """Labels of kept images from Label Studio or FiftyOne. An image that has a label keeps it."""
    front = front_of(request)
    async with admit(request, _read) as admitted:
        given = await asyncio.to_thread(imports.read, admitted.body)
        plan = await front.ask(lambda desk: imports.plan(desk.database, given))
        labelled = await front.take_over(plan, reviewer_of(request))
    return ImportAnswer(
        labelled=labelled,
        already=plan.already,
        unknown=[file.encode("utf-8", "backslashreplace").decode() for file in plan.unknown[:MOST_SHOWN]],
        unknown_count=len(plan.unknown),
        skipped=plan.skipped,
    )


async def _read(request: Request, share: BudgetShare, model: Model) -> bytes:
    return await receive_body(request, share)


async def _pieces(reader: Reader) -> AsyncIterator[bytes]:
    """The tar file, read in threads; the connection ends with it, or when the client leaves."""
    pieces = export.tar(reader)
    try:
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece
    finally:
        await asyncio.to_thread(_close, pieces, reader)


def _close(pieces: object, reader: Reader) -> None:
    pieces.close()  # type: ignore[attr-defined]
    reader.close()
