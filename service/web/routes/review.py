"""The review: groups of refused images and the audit sample, labels, undo, claims, progress. See service/review.

Reviewers have the role review, or are anybody where the service has no keys.
"""

import asyncio
from typing import Annotated

import structlog
from fastapi import APIRouter, Query, Request, Response

from service.contract.lines import one_line
from service.errors import InvalidParameter, NotFound, NotReady, Refused
from service.review import tables
from service.review.desk import Desk
from service.review.front import CLAIM_S
from service.review.kinds import kind_of
from service.web import reviewed as bodies
from service.web.admission import admit
from service.web.body import json_reader
from service.web.context import runtime_of
from service.web.openapi import (
    BODY_ROUTE,
    MODEL_ROUTE,
    SMALL_JSON,
    Failure,
    json_body,
    path_parameters,
    problems,
)
from service.web.reviewing import (
    EMPTY,
    NO_SAMPLE,
    OFF,
    claim_shown,
    front_of,
    known_of,
    note,
    reviewer_of,
    shown,
    summary,
    truth_of,
)

MOST_GROUPS, AUDIT_IMAGES = 100, 12
CLAIMED = "ann is looking at g2f1c: take another, or come back in 180 s"
AWAY = "the image store cannot be read now, the service's log says why: try again"
PRIVATE = {"cache-control": "private, max-age=3600", "content-security-policy": "default-src 'none'; sandbox"}
READS = (*MODEL_ROUTE, NotFound)
WRITES = (*BODY_ROUTE, NotFound)
SAID: dict[Failure, str] = {NotFound: OFF, **SMALL_JSON}
NO_SUCH: dict[Failure, str] = {InvalidParameter: "verbose is not known here, only reason"}

router = APIRouter(prefix="/review", tags=["review"])

log = structlog.get_logger()


@router.get("/groups", responses=problems("/review/groups", READS, SAID | NO_SUCH))
async def groups(request: Request, query: Annotated[bodies.GroupsQuery, Query()]) -> bodies.GroupsAnswer:
    """Rejected images without a label, grouped by likeness, the largest and most alike first.

    Groups that are mostly unsure or unfit come after those that may be a new class; with `reason` only images that were
    rejected for it are shown.

    The audit sample is not among them: it is looked at in random order, see GET /review/audit.
    """
    front, model = front_of(request), runtime_of(request).in_force()
    known = await known_of(request, model)

    def answer(desk: Desk) -> bodies.GroupsAnswer:
        found = desk.groups(known, query.reason)
        claimed = desk.claims()
        return bodies.GroupsAnswer(
            groups=[summary(group, claimed) for group in found[:MOST_GROUPS]],
            more=max(0, len(found) - MOST_GROUPS),
            grouping=desk.sorter.busy,
            note=note(desk, keeps=runtime_of(request).settings.keeps),
        )

    return await front.ask(answer)


@router.get(
    "/groups/{id}",
    responses=problems("/review/groups/3f0d9c52b1a64c0e9d5f6a7b8c9d0e1f", READS, SAID | NO_SUCH),
    openapi_extra={"parameters": path_parameters("id")},
)
async def group(request: Request, query: Annotated[bodies.GroupsQuery, Query()]) -> bodies.GroupAnswer:
    """One group with its images, the most typical first. POST /review/labels takes the rows of those that were seen."""
    front, model = front_of(request), runtime_of(request).in_force()
    known, name = await known_of(request, model), request.path_params["id"]

    def answer(desk: Desk) -> bodies.GroupAnswer:
        found = desk.group(name, known, query.reason)
        if found is None:
            raise NotFound(f"no image waits in a group {name[:100]!r}: GET /review/groups lists those that there are")
        head = summary(found, desk.claims())
        images = [shown(item, d) for item, d in zip(found.items, found.distance, strict=True)][: bodies.MOST_ROWS]
        return bodies.GroupAnswer(**head.model_dump(), shown=images)

    return await front.ask(answer)


@router.get("/audit", responses=problems("/review/audit", READS, SAID))
async def audit(request: Request) -> bodies.AuditAnswer:
    """The next images of the audit sample, which was drawn at random from all traffic, accepted images too.

    They come in random order, so that whatever part of them is labelled, its figures are unbiased. Nobody's claims are
    among them; claim those that you show.
    """

    drawn = runtime_of(request).settings.keep_sample > 0

    def answer(desk: Desk) -> bodies.AuditAnswer:
        waiting = desk.audit()
        claimed = desk.claims()
        free = [item for item in waiting if f"row-{item.row}" not in claimed]
        first = [shown(item, 0.0) for item in free[:AUDIT_IMAGES]]
        note = NO_SAMPLE if not (waiting or drawn) else None
        return bodies.AuditAnswer(shown=first, waiting=len(waiting), note=note)

    return await front_of(request).ask(answer)


@router.get("/progress", responses=problems("/review/progress", READS, SAID))
async def progress(request: Request) -> bodies.ProgressAnswer:
    """How many images wait and how many were labelled, and every class there is, known and new."""
    model = runtime_of(request).in_force()
    counts = await front_of(request).ask(lambda desk: desk.counts())
    return bodies.ProgressAnswer(
        **counts._asdict(), classes=[c.name for c in model.manifest.classes], reviewer=reviewer_of(request).key
    )


@router.get(
    "/images/{key}",
    response_class=Response,
    responses={
        200: {"description": "The file as it was sent", "content": {"image/*": {}}},
        **problems("/review/images/lion", READS, SAID),
    },
    openapi_extra={"parameters": path_parameters("key")},
)
async def image(request: Request) -> Response:
    """A kept image."""
    return await _file(request, small=False)


@router.get(
    "/thumbnails/{key}",
    response_class=Response,
    responses={
        200: {"description": "A small JPEG", "content": {"image/jpeg": {}}},
        **problems("/review/thumbnails/lion", READS, SAID),
    },
    openapi_extra={"parameters": path_parameters("key")},
)
async def thumbnail(request: Request) -> Response:
    """A kept image, at most 160 pixels a side."""
    return await _file(request, small=True)


@router.post(
    "/labels",
    responses=problems("/review/labels", (*WRITES, Refused), {**SAID, Refused: CLAIMED, InvalidParameter: EMPTY}),
    openapi_extra=json_body(bodies.LabelsBody),
)
async def labels(request: Request) -> bodies.LabelsAnswer:
    """Say what images show: those that you saw, by their rows. The answer comes once it is kept.

    What has a label by then keeps it and is listed; what is no longer in the ledger is listed too.
    """
    front = front_of(request)
    async with admit(request, json_reader(bodies.LabelsBody)) as admitted:
        given = admitted.body
        truth = await truth_of(front, given, admitted.model)
        done = await front.label(
            given.rows, truth, group=given.group, reviewer=reviewer_of(request, given.desk), again=given.again
        )
    already = [bodies.Already(row=a.decision_row, kind=a.kind, label=a.label, by=a.key) for a in done.already]
    return bodies.LabelsAnswer(action=done.action, rows=done.rows, gone=done.gone, already=already)


@router.post("/undo", responses=problems("/review/undo", WRITES, SAID), openapi_extra=json_body(bodies.UndoBody))
async def undo(request: Request) -> bodies.UndoAnswer:
    """Take back what you said, by the `action` of its answer, or the last that stands."""
    front = front_of(request)
    async with admit(request, json_reader(bodies.UndoBody)) as admitted:
        rows, changed = await front.undo(admitted.body.action, reviewer_of(request))
    return bodies.UndoAnswer(rows=rows, changed=changed)


@router.post("/claims", responses=problems("/review/claims", WRITES, SAID), openapi_extra=json_body(bodies.ClaimsBody))
async def claim(request: Request) -> bodies.ClaimsAnswer:
    """Take groups and images, so that no other page labels them meanwhile; again before the time is over."""
    front = front_of(request)
    async with admit(request, json_reader(bodies.ClaimsBody)) as admitted:
        given = admitted.body
        me = reviewer_of(request, given.desk)
        held = await front.claim(given.items, me)
    mine = [item for item in given.items if held[item].reviewer == me.claims_as]
    refused = {item: claim_shown(held[item]) for item in given.items if item not in mine}
    return bodies.ClaimsAnswer(granted=mine, refused=refused, seconds=CLAIM_S)


@router.post(
    "/release",
    status_code=204,
    response_class=Response,
    responses=problems("/review/release", WRITES, SAID),
    openapi_extra=json_body(bodies.ClaimsBody),
)
async def release(request: Request) -> Response:
    """Free what you have claimed, when you leave it."""
    front = front_of(request)
    async with admit(request, json_reader(bodies.ClaimsBody)) as admitted:
        await front.release(admitted.body.items, reviewer_of(request, admitted.body.desk))
    return Response(status_code=204)


async def _file(request: Request, *, small: bool) -> Response:
    key, front = request.path_params["key"], front_of(request)
    ledger = runtime_of(request).ledger
    assert ledger is not None
    store = ledger.store
    data = None
    if len(key) == 64 and key.isalnum() and await front.ask(lambda desk: tables.has_image(desk.database, key)):
        try:
            data = None if store is None else await asyncio.to_thread(store.thumbnail if small else store.get, key)
        except Exception as error:  # of a disk, a network, a driver
            log.error("the image store cannot be read", error=one_line(error))
            raise NotReady(AWAY) from error
    if data is None:
        raise NotFound(f"no image {key[:64]!a} is kept: it may have been deleted")
    return Response(data, media_type="image/jpeg" if small else kind_of(data)[1], headers=PRIVATE)
