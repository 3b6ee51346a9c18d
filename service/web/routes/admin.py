"""What an admin key may change while the service runs: the bundle, the operating point, the keys. No restart."""

from pathlib import Path

from fastapi import APIRouter, Request

from service.contract.bundle import BundleError
from service.errors import EngineError, InvalidParameter, Refused, SettingsError
from service.inference.model import Model
from service.runtime import of
from service.web.openapi import problems
from service.web.schemas import BundleWish, InForce, KeysRead, OperatingPointWish

router = APIRouter(prefix="/admin")
ERRORS = (401, 403, 422, 429, 500, 503)


@router.put("/bundle", responses=problems("/admin/bundle", 400, 409, *ERRORS))
async def put_bundle(request: Request, wish: BundleWish) -> InForce:
    """Load another bundle beside the running one, verify it, and let it take over; a bad one changes nothing.

    Requests in flight are answered by the bundle they began with.
    """
    service = of(request)
    try:
        loaded, seconds = await service.swap(Path(wish.path), wish.operating_point, wish.threshold_scope)
    except (BundleError, EngineError, SettingsError) as error:
        service.metrics.swaps.labels("refused").inc()
        raise Refused(f"the bundle in service stays: {error}") from error
    service.metrics.swaps.labels("done").inc()
    return _in_force(loaded, round(seconds, 3))


@router.put("/operating-point", responses=problems("/admin/operating-point", 400, *ERRORS))
async def put_operating_point(request: Request, wish: OperatingPointWish) -> InForce:
    """Decide by another operating point, or by other thresholds of it, from the next request on."""
    if wish.operating_point is None and wish.threshold_scope is None:
        raise InvalidParameter("the body names neither operating_point nor threshold_scope: send one of them or both")
    return _in_force(of(request).set_operating_point(wish.operating_point, wish.threshold_scope), None)


@router.post("/keys/reload", responses=problems("/admin/keys/reload", 401, 403, 409, 429, 500))
async def reload_keys(request: Request) -> KeysRead:
    """Read the keys file again, as the signal HUP does; a bad file changes nothing."""
    service = of(request)
    try:
        return KeysRead(keys=service.reload_keys())
    except SettingsError as error:
        raise Refused(f"the keys in force stay: {error}") from error


def _in_force(current: Model, seconds: float | None) -> InForce:
    manifest = current.manifest
    return InForce(
        name=manifest.name,
        version=manifest.version,
        sha256=manifest.sha256,
        provider=current.engine.provider,
        operating_point=current.operating_point,
        threshold_scope=current.scope,
        seconds=seconds,
    )
