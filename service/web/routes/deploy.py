"""From a shadow to the model in force, and back: what is known of it decides, unless an admin insists by name."""

import asyncio
from collections.abc import Sequence
from contextlib import closing

import structlog
from fastapi import APIRouter, Request

from service.bundles import addresses
from service.bundles.addresses import named
from service.contract import bundle
from service.contract.bundle import BundleError
from service.contract.lines import one_line
from service.deploy import evidence
from service.deploy.deployments import Action, Deployment, Served, of_setting, stack
from service.deploy.evidence import Evidence, Limits
from service.errors import EngineError, InvalidParameter, NotReady, Refused, SettingsError
from service.inference.shadow import Shadow
from service.ledger.rows import key_of
from service.ledger.writer import UNREADABLE
from service.runtime import Runtime
from service.settings.places import Source, bundle_source
from service.web.admission import admit
from service.web.body import json_reader
from service.web.context import runtime_of
from service.web.deploy_schemas import (
    BackAsked,
    EvidenceShown,
    InForce,
    Promoted,
    PromotionAsked,
    ShadowChange,
    ShadowInForce,
)
from service.web.openapi import BODY_ROUTE, SMALL_JSON, json_body, problems
from service.web.routes.admin import BAD_BUNDLE, in_force, name_of_key

NO_SHADOW = "there is no shadow: name one with PUT /admin/shadow first, or promote a path with force"
NOTHING_BEFORE = "no bundle was in force before this one"
NO_SHARE = "share=2 is not valid: Input should be less than or equal to 1"
NO_LEAST = "least_compared=-1 is not valid: Input should be greater than or equal to 0"
NO_TO = "to=1 is not valid: Input should be a valid string"

router = APIRouter(prefix="/admin", tags=["admin"])

log = structlog.get_logger()


@router.put(
    "/shadow",
    responses=problems(
        "/admin/shadow",
        (*BODY_ROUTE, Refused),
        {
            Refused: BAD_BUNDLE.replace("the bundle in service stays", "the shadow stays as it was"),
            **SMALL_JSON,
            InvalidParameter: NO_SHARE,
        },
    ),
    openapi_extra=json_body(ShadowChange),
)
async def put_shadow(request: Request) -> ShadowInForce:
    """Let another bundle classify a share of the images for comparison, on this replica, until it ends."""
    runtime = runtime_of(request)
    async with admit(request, json_reader(ShadowChange)) as admitted:
        change = admitted.body
    shadow = None
    if change.path is not None:
        try:
            shadow = await asyncio.to_thread(runtime.load_shadow, bundle_source(change.path), change.share)
        except (BundleError, EngineError, SettingsError) as error:
            raise Refused(f"the shadow stays as it was: {error}") from error
    runtime.set_shadow(shadow)
    return _shadow(shadow)


@router.post(
    "/promote",
    responses=problems(
        "/admin/promote",
        (*BODY_ROUTE, Refused),
        {Refused: NO_SHADOW, **SMALL_JSON, InvalidParameter: NO_LEAST},
    ),
    openapi_extra=json_body(PromotionAsked),
)
async def promote(request: Request) -> Promoted:
    """Put the shadow in force when its disagreement and the reviewed images allow it, here and on every replica."""
    runtime = runtime_of(request)
    async with admit(request, json_reader(PromotionAsked)) as admitted:
        asked = admitted.body
    shadow = runtime.shadow
    source = None if asked.path is None else bundle_source(asked.path)
    if shadow is not None and source is not None and named(shadow.model.source) != named(source):
        shadow = None  # of another bundle: it says nothing of this one
    known = None
    if shadow is not None:
        known = await _evidence(runtime, shadow, asked)
        source = shadow.model.source
    if not asked.force and (known is None or known.objections):
        why = NO_SHADOW if known is None else f"not promoted: {'; '.join(known.objections)}"
        raise Refused(why)
    if source is None:
        raise Refused(NO_SHADOW)
    return Promoted(
        in_force=await _swap(runtime, request, source, "promote"),
        evidence=None if known is None else EvidenceShown(**known._asdict()),
    )


@router.post(
    "/back",
    responses=problems(
        "/admin/back",
        (*BODY_ROUTE, Refused),
        {Refused: NOTHING_BEFORE, **SMALL_JSON, InvalidParameter: NO_TO},
    ),
    openapi_extra=json_body(BackAsked),
)
async def back(request: Request) -> InForce:
    """Put the bundle in force that was before, or an earlier one by name, here and on every replica."""
    runtime = runtime_of(request)
    async with admit(request, json_reader(BackAsked)) as admitted:
        to = admitted.body.to
    try:
        history = await asyncio.to_thread(runtime.deployments.history)
    except Exception as error:  # each driver has its own
        log.error("what was deployed cannot be read", error=one_line(error))
        raise NotReady(UNREADABLE) from error
    before = stack(history, runtime.settings.bundle)[:-1]
    if to is not None:
        deployed = [(Served(one.path, one.model), f"{one.name}/{one.version}") for one in history]
        if to not in [name for _, name in deployed]:
            deployed[:0] = await asyncio.to_thread(_of_settings, runtime, history)
        found = [served for served, name in deployed if name == to]
        if not found:
            known = ", ".join(dict.fromkeys(name for _, name in deployed)) or "none"
            raise Refused(f"to={to[:100]} was never deployed here; these were: {known}")
        return await _swap(runtime, request, found[-1], "back")
    if not before:
        raise Refused(NOTHING_BEFORE)
    return await _swap(runtime, request, before[-1], "back")


def _of_settings(runtime: Runtime, history: Sequence[Deployment]) -> list[tuple[Served, str]]:
    """The bundle with which the service started, which is no deployment, and its "name/version"."""
    settings = runtime.settings
    served = of_setting(history, settings.bundle)
    try:
        key = served.model or key_of(bundle.read(addresses.fetched(settings.bundle, settings.bundle_cache)))
    except BundleError:
        return []
    return [(served, f"{key.name}/{key.version}")]


async def _evidence(runtime: Runtime, shadow: Shadow, asked: PromotionAsked) -> Evidence:
    answered = []
    if runtime.ledger is not None:
        with closing(await asyncio.to_thread(runtime.ledger.reader)) as reader:
            answered = await evidence.reviewed(shadow, runtime.in_force(), reader)
    limits = Limits(asked.least_compared, asked.most_disagreement, asked.most_newly_accepted, asked.least_reviewed)
    return evidence.weigh(shadow, answered, limits)


async def _swap(runtime: Runtime, request: Request, what: Source | Served, action: Action) -> InForce:
    try:  # not within admit: a client that leaves shall not stop a swap half-way
        loaded, seconds = await runtime.swap(what, None, None, action=action, key=name_of_key(request))
    except (BundleError, EngineError, SettingsError) as error:
        runtime.metrics.swaps.labels("refused").inc()
        raise Refused(f"the bundle in service stays: {error}") from error
    runtime.metrics.swaps.labels("done").inc()
    return in_force(loaded, round(seconds, 3))


def _shadow(shadow: Shadow | None) -> ShadowInForce:
    if shadow is None:
        return ShadowInForce(path=None)
    manifest = shadow.model.manifest
    return ShadowInForce(
        path=str(shadow.model.source),
        name=manifest.name,
        version=manifest.version,
        sha256=manifest.sha256,
        share=shadow.share,
    )
