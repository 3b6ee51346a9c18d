"""A bundle in service: manifest, engine, the queue before it, and what decides unless a request says otherwise."""

from dataclasses import dataclass
from pathlib import Path

from service import bundle
from service.batcher import Batcher
from service.bundle import Manifest
from service.decision import Scope
from service.engine import Engine
from service.errors import InvalidParameter, SettingsError
from service.metrics import Metrics
from service.settings import PREFIX, Settings

DEFAULT_TOP_K = 5


@dataclass(frozen=True)
class Choice:
    """What one request asked for, checked against the model."""

    top_k: int
    operating_point: str
    scope: Scope


@dataclass(frozen=True)
class Model:
    """A request takes one Model at its beginning and keeps it, so another may take its place meanwhile."""

    folder: Path
    manifest: Manifest
    engine: Engine
    batcher: Batcher
    operating_point: str
    scope: Scope

    def choose(self, top_k: int | None, operating_point: str | None, thresholds: Scope | None) -> Choice:
        """The request's wishes with the deployment's defaults. Raises InvalidParameter naming the valid values."""
        classes = len(self.manifest.classes)
        if top_k is not None and not 1 <= top_k <= classes:
            raise InvalidParameter(f"top_k={top_k} is not valid: this model has {classes} classes, so 1 to {classes}")
        point = operating_point if operating_point is not None else self.operating_point
        if point not in self.manifest.operating_points:
            known = ", ".join(self.manifest.operating_points)
            raise InvalidParameter(f"operating_point={point[:100]} is none of this model's: {known}")
        return Choice(top_k or min(DEFAULT_TOP_K, classes), point, thresholds or self.scope)


def load(settings: Settings, metrics: Metrics) -> Model:
    """Read, verify and warm up the bundle that the settings name.

    Raises BundleError, EngineError or SettingsError, each with one clear line.
    """
    manifest = bundle.read(settings.bundle)
    point = settings.operating_point or manifest.default_operating_point
    if point not in manifest.operating_points:
        known = ", ".join(manifest.operating_points)
        raise SettingsError(f"{PREFIX}OPERATING_POINT={point} is none of {settings.bundle}'s: {known}")
    engine = Engine(settings.bundle, manifest, provider=settings.provider)
    metrics.bind(manifest, engine.provider)

    def ran(images: int, seconds: float) -> None:
        metrics.batch_images.observe(images)
        metrics.stage_seconds.labels("inference").observe(seconds)

    batcher = Batcher(
        engine.run,
        workers=settings.inference_threads if settings.provider == "cpu" else 1,
        max_batch_images=settings.max_batch_images,
        queue_images=settings.queue_images,
        on_batch=ran,
    )
    metrics.queue_images.set_function(lambda: batcher.held)
    return Model(
        settings.bundle, manifest, engine, batcher, point, settings.threshold_scope or manifest.threshold_scope
    )
