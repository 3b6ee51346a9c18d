"""Load the bundle of a deployment, and the one that is in force when a replica starts."""

from pathlib import Path
from typing import NamedTuple

import structlog

from service.bundles import addresses, kinds
from service.contract.bundle import BundleError
from service.deploy.deployments import Deployment, Deployments, Served
from service.errors import SettingsError, TailGuardError
from service.inference import model
from service.inference.model import Deciding, Model
from service.ledger.rows import ModelKey, key_of
from service.observe.metrics import Metrics
from service.settings import PREFIX, Settings
from service.settings.places import Source, bundle_source

log = structlog.get_logger()


class Started(NamedTuple):
    """What a replica begins with; `row` is the deployment's, 0 for the bundle of the settings."""

    model: Model
    deciding: Deciding
    row: int


def load(
    what: Source | Deployment | Served, settings: Settings, metrics: Metrics, deciding: Deciding, *,
    shadow: bool = False,
) -> Model:  # fmt: skip
    """The bundle at a path or an address, or one that was in force. Raises as model.load and addresses.fetched, and
    SettingsError where another lies by now where that one was."""
    source = bundle_source(what if isinstance(what, Path | str) else what.path)
    path = addresses.fetched(source, settings.bundle_cache)
    embedding = settings.keeps and not shadow
    loaded = model.load(path, settings, metrics, deciding, shadow=shadow, embedding=embedding, source=source)
    was, now = None if isinstance(what, Path | str) else what.model, key_of(loaded.manifest)
    if was is not None and was != now:
        loaded.close()
        raise SettingsError(
            f"{kinds.shown(source)} was {_shown(was)}, when it was in force, and is {_shown(now)} now: put it in "
            "force by its path if that is meant"
        )
    return loaded


def at_start(deployments: Deployments, settings: Settings, metrics: Metrics, deciding: Deciding) -> Started:
    """The last deployment, or the bundle of the settings where there is none or it cannot be had. As model.load."""
    if (last := _last(deployments)) is not None:
        try:
            chosen = deciding.changed(*last.decides_by)
            return Started(load(last, settings, metrics, chosen), chosen, last.row)
        except (BundleError, TailGuardError) as error:
            log.error("what was deployed last cannot be loaded: the bundle of the settings is served", error=str(error))
            metrics.deployment_failed.set(1)
    if "bundle" not in settings.model_fields_set and not Path(settings.bundle).exists():  # a wheel holds no bundle
        raise SettingsError(f"{PREFIX}BUNDLE is not set, and {settings.bundle} is not here: name the bundle to serve")
    return Started(load(settings.bundle, settings, metrics, deciding), deciding, 0)


def _shown(key: ModelKey) -> str:
    return f"{key.name} version {key.version}, graph {key.sha256[:16]}"


def _last(deployments: Deployments) -> Deployment | None:
    try:
        return deployments.last()
    except Exception as error:  # each driver has its own
        log.warning("what was deployed last cannot be read: the bundle of the settings is served", error=str(error))
        return None
