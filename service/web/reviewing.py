"""Between the routes under /review and service/review: who asks, what the model in force knows, parts of answers."""

import asyncio
from collections.abc import Mapping

from fastapi import Request

from service.contract import exemplars
from service.errors import InvalidParameter, NotFound
from service.inference.model import Model
from service.ledger.rows import Truth, key_of
from service.review import names, tables
from service.review.desk import Desk, Group, Known
from service.review.front import Front, Reviewer
from service.review.tables import Claim, Item
from service.settings import PREFIX
from service.web import reviewed as bodies
from service.web.context import context_of, runtime_of

MOST_KEYS = 8  # of a group, beside its name
OFF = f"this service keeps no ledger, so there is nothing to review: {PREFIX}LEDGER is off"
NOTHING_KEPT = f"no image is kept: start the service with {PREFIX}KEEP=rejected, and {PREFIX}KEEP_SAMPLE=0.01 beside it"
NO_SAMPLE = f"no image is drawn for the audit: start the service with {PREFIX}KEEP_SAMPLE=0.01"
FAILED = "images could not be grouped, the service's log says why: each stands alone"
UNGROUPED = "the bundle that decided gives no embedding, so images are not grouped: each stands alone"
EMPTY = 'kind=class needs a label, such as "kind": "class", "label": "cat"'


def front_of(request: Request) -> Front:
    """The review of this process. Raises NotReady before there is a model, NotFound without a ledger."""
    runtime = runtime_of(request)
    runtime.in_force()
    if runtime.ledger is None:
        raise NotFound(OFF)
    state = request.app.state
    if state.review is None:
        state.review = Front(runtime.ledger)
    front: Front = state.review
    return front


def reviewer_of(request: Request, desk: str = "") -> Reviewer:
    """Who asks."""
    key = context_of(request).key
    return Reviewer(None if key is None else key.name, desk)


async def known_of(request: Request, model: Model) -> Known:
    """The model in force and its exemplars, which are read once."""
    state, key = request.app.state, key_of(model.manifest)
    known: Known | None = state.review_known
    if known is None or known.model != key:
        held = await asyncio.to_thread(exemplars.read, model.folder, model.manifest)
        known = state.review_known = Known(key, [c.name for c in model.manifest.classes], held)
    return known


async def truth_of(front: Front, given: bodies.LabelsBody, model: Model) -> Truth:
    """What the body says. Raises InvalidParameter for a class without a name, or with one that can be none."""
    if given.kind in ("outlier", "unsure"):
        return Truth(given.kind, "")
    if not given.label:
        raise InvalidParameter(EMPTY)
    classes = [info.name for info in model.manifest.classes]
    if given.label not in classes:
        made = (await front.ask(lambda desk: desk.counts())).new_classes
        decided = await front.ask(lambda desk: tables.classes_of(desk.database, given.rows))
        common, some = set.intersection(*decided) if decided else set(), set().union(*decided)
        if given.kind == "class" and given.label not in common and given.label not in made:
            raise InvalidParameter(f"label={given.label[:100]!a} is no class of this model: send it as the kind new")
        if (
            given.label not in some
        ):  # the model may have been swapped since: a class of the one that decided is none new
            return Truth("new", names.checked(given.label, [*classes, *made, *some]))
    return Truth("new", given.label)  # for a row whose model has the class the ledger takes it as that class


def note(desk: Desk, *, keeps: bool) -> str | None:
    items = desk.pile.items.values()
    if not items:
        return None if keeps else NOTHING_KEPT
    if desk.sorter.missing is not None:
        return desk.sorter.missing
    if desk.sorter.failed:
        return FAILED
    return UNGROUPED if all(item.embedding is None for item in items) else None


def claim_shown(claim: Claim) -> bodies.ClaimShown:
    by, _, desk = claim.reviewer.rpartition("#")
    return bodies.ClaimShown(by=by or None, desk=desk, until=claim.until)


def summary(group: Group, claimed: Mapping[str, Claim]) -> bodies.GroupSummary:
    said = group.said
    return bodies.GroupSummary(
        id=group.id,
        images=len(group.items),
        nearest=group.nearest,
        distance=group.nearest_distance,
        spread=group.spread,
        said=None if said is None else bodies.Said(kind=said[0].kind, label=said[0].label, images=said[1]),
        claim=claim_shown(claimed[group.id]) if group.id in claimed else None,
        reasons=dict(group.reasons),
        node=group.node,
        may_be_new=group.may_be_new,
        keys=list(dict.fromkeys(item.image_key for item in group.items))[:MOST_KEYS],
    )


def shown(item: Item, distance: float) -> bodies.ImageShown:
    return bodies.ImageShown(
        row=item.row, key=item.image_key, predicted=item.predicted, decision=item.decision, reason=item.reason,
        node=item.node, score=item.score, p_value=item.p_value, time=item.time,
        request_id=item.request_id, index=item.position, distance=distance,
    )  # fmt: skip
