"""What an admin key may change while the service runs: the bundle, the operating point, the keys. No restart."""

from fastapi import APIRouter, Request

from service.contract.bundle import BundleError
from service.errors import EngineError, InvalidParameter, Refused, SettingsError
from service.inference.model import Model
from service.web.access import Keys
from service.web.admission import admit
from service.web.body import json_reader
from service.web.context import context_of, runtime_of
from service.web.deploy_schemas import BundleChange, InForce, KeysRead, OperatingPointChange
from service.web.openapi import BODY_ROUTE, KEYED_ROUTE, SMALL_JSON, json_body, problems

BAD_BUNDLE = "the bundle in service stays: /models/none is not a bundle: manifest.json cannot be read (No such file or "
BAD_BUNDLE += "directory)"
NO_PATH = "path= is not valid: String should have at least 1 character"
BAD_KEYS = "the keys in force stay: keys.toml holds no keys: write each as a table [keys.NAME]"

router = APIRouter(prefix="/admin", tags=["admin"])


@router.put(
    "/bundle",
    responses=problems(
        "/admin/bundle",
        (*BODY_ROUTE, Refused),
        {Refused: BAD_BUNDLE, **SMALL_JSON, InvalidParameter: NO_PATH},
    ),
    openapi_extra=json_body(BundleChange),
)
async def put_bundle(request: Request) -> InForce:
    """Load another bundle beside the running one, verify it, and let it take over; a bad one changes nothing.

    Requests in flight are answered by the bundle they began with. It stays in force after a restart, and every replica
    that shares the ledger's database and the setting TAILGUARD_BUNDLE follows within seconds.
    """
    runtime = runtime_of(request)
    async with admit(request, json_reader(BundleChange)) as admitted:
        change = admitted.body
    try:  # not within: a client that leaves shall not stop a swap half-way
        asked = (change.path, change.operating_point, change.threshold_scope)
        loaded, seconds = await runtime.swap(*asked, key=name_of_key(request))
    except (BundleError, EngineError, SettingsError) as error:
        runtime.metrics.swaps.labels("refused").inc()
        raise Refused(f"the bundle in service stays: {error}") from error
    runtime.metrics.swaps.labels("done").inc()
    return in_force(loaded, round(seconds, 3))


@router.put(
    "/operating-point",
    responses=problems("/admin/operating-point", BODY_ROUTE, SMALL_JSON),
    openapi_extra=json_body(OperatingPointChange),
)
async def put_operating_point(request: Request) -> InForce:
    """Decide by another operating point, or by other thresholds of it, from the next request on."""
    async with admit(request, json_reader(OperatingPointChange)) as admitted:
        change = admitted.body
    if change.operating_point is None and change.threshold_scope is None:
        raise InvalidParameter("the body names neither operating_point nor threshold_scope: send one of them or both")
    return in_force(runtime_of(request).set_operating_point(change.operating_point, change.threshold_scope), None)


@router.post(
    "/keys/reload",
    responses=problems("/admin/keys/reload", (*KEYED_ROUTE, Refused), {Refused: BAD_KEYS}),
)
async def reload_keys(request: Request) -> KeysRead:
    """Read the keys file again, as the signal HUP does; a bad file changes nothing."""
    keys: Keys = request.app.state.keys
    try:
        return KeysRead(keys=keys.reload())
    except SettingsError as error:
        raise Refused(f"the keys in force stay: {error}") from error


def name_of_key(request: Request) -> str | None:
    """Of whoever asks, for the record."""
    key = context_of(request).key
    return None if key is None else key.name


def in_force(model: Model, seconds: float | None) -> InForce:
    """What the answer says of the model that decides now."""
    manifest = model.manifest
    return InForce(
        name=manifest.name,
        version=manifest.version,
        sha256=manifest.sha256,
        provider=model.engine.provider,
        operating_point=model.operating_point,
        threshold_scope=model.scope,
        seconds=seconds,
    )
