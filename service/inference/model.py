"""A bundle in service: manifest, engine, the pipeline before it, and what decides unless a request says otherwise."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from service.contract import bundle, exemplars
from service.contract.bundle import Manifest
from service.contract.decision import Scope
from service.contract.sets import PredictionSets
from service.contract.taxonomy import Tree
from service.errors import InvalidParameter, SettingsError
from service.inference.engine import Engine
from service.inference.health import HealthLimits
from service.inference.neighbours import MOST_NEIGHBOURS, Neighbours
from service.inference.pipeline import NICENESS, Dials, Pipeline
from service.inference.wanted import NOTHING, Wanted
from service.observe.metrics import Metrics
from service.observe.model_metrics import ModelMetrics
from service.settings import Settings
from service.settings.places import Source, without_password

DEFAULT_TOP_K = 5


@dataclass(frozen=True, slots=True)
class DecisionParameters:
    """How one request is decided: what it asked for, checked against the model, with the deployment's defaults."""

    top_k: int
    operating_point: str
    scope: Scope
    is_default: bool  # operating point and scope are the deployment's own
    neighbours: int = 0  # training examples to name
    embedding: bool = False  # to answer with
    wanted: Wanted = NOTHING  # of the graph
    set: float | None = None  # the level of a set of classes to answer with


@dataclass(frozen=True)
class Model:
    """A request takes one Model at its beginning and keeps it, so another may take its place meanwhile."""

    source: Source  # from where it was loaded
    folder: Path
    manifest: Manifest
    engine: Engine
    pipeline: Pipeline
    metrics: ModelMetrics
    operating_point: str
    scope: Scope

    @cached_property
    def class_names(self) -> frozenset[str]:
        """Of all classes."""
        return frozenset(info.name for info in self.manifest.classes)

    @cached_property
    def neighbours(self) -> Neighbours | None:
        """The training examples in the bundle, where it has some."""
        return Neighbours(self.folder, self.manifest) if self.manifest.exemplars else None

    @cached_property
    def sets(self) -> PredictionSets | None:
        """Conformal sets of classes, where the bundle has what they are read from."""
        sets = self.manifest.sets
        return None if sets is None else PredictionSets(sets, [info.group for info in self.manifest.classes])

    @cached_property
    def tree(self) -> Tree | None:
        """The taxonomy above the classes, where the bundle has one."""
        return None if self.manifest.taxonomy is None else Tree(self.manifest.taxonomy)

    def decision_parameters(
        self, *, top_k: int | None = None, operating_point: str | None = None, thresholds: Scope | None = None,
        set: float | None = None, neighbours: int | None = None, embedding: bool = False, map: bool = False,
    ) -> DecisionParameters:  # fmt: skip
        """What a request asks for, None for the deployment's default. Raises InvalidParameter naming valid values."""
        classes, point = len(self.manifest.classes), operating_point
        if top_k is not None and not 1 <= top_k <= classes:
            raise InvalidParameter(f"top_k={top_k} is not valid: this model has {classes} classes, so 1 to {classes}")
        if point is None:
            point = self.operating_point
        elif point not in self.manifest.operating_points:
            known = ", ".join(self.manifest.operating_points)
            raise InvalidParameter(f"operating_point={point[:100]} is none of this model's: {known}")
        scope = thresholds or self.scope
        is_default = (point, scope) == (self.operating_point, self.scope)
        found = DecisionParameters(top_k or min(DEFAULT_TOP_K, classes), point, scope, is_default, set=set)
        if set is not None:
            self.require_sets(set)
        if not (neighbours or embedding or map):
            return found
        self.require(neighbours=neighbours or 0, embedding=embedding, heat_map=map)
        wanted = Wanted(embedding=embedding or bool(neighbours), heat_map=map)
        return replace(found, neighbours=neighbours or 0, embedding=embedding, wanted=wanted)

    def require_sets(self, level: float) -> None:
        """Raises InvalidParameter for a level that is none, and where the bundle has no sets."""
        if not 0 < level < 1:
            raise InvalidParameter(f"set={level:g} is not valid: give a level between 0 and 1, 0.9 say")
        if self.sets is None:
            name = f"{self.manifest.name} {self.manifest.version}"
            raise InvalidParameter(f"{name} has no sets of classes: export it again, or leave set out")

    def require(self, *, neighbours: int = 0, embedding: bool = False, heat_map: bool = False) -> None:
        """Raises InvalidParameter for what this bundle has not got."""
        manifest, name = self.manifest, f"{self.manifest.name} {self.manifest.version}"
        if embedding and manifest.embedding is None:
            raise InvalidParameter(f"{name} gives no embedding: export the model again, or leave it out")
        if heat_map and manifest.heat_map is None:
            reason = manifest.evaluation.get("heat_map")
            remedy = f" ({reason}): leave map out" if reason else ": export the model again, or leave map out"
            raise InvalidParameter(f"{name} gives no heat map{remedy}")
        if not neighbours:
            return
        if manifest.exemplars is None:
            raise InvalidParameter(f"{name} holds no training examples: export it again, or leave neighbours out")
        if not 1 <= neighbours <= (most := min(MOST_NEIGHBOURS, manifest.exemplars.count)):
            raise InvalidParameter(f"neighbours={neighbours} is not valid: of this model's examples 1 to {most}")

    def deciding_by(self, operating_point: str | None, scope: Scope | None) -> "Model":
        """The same model with other defaults; None leaves one as it is. From now on its metrics say so."""
        changed = replace(self, operating_point=operating_point or self.operating_point, scope=scope or self.scope)
        self.metrics.set_in_force(changed.operating_point, changed.scope)
        return changed

    def described(self) -> dict[str, Any]:
        """What the log says of it."""
        return {
            "bundle": without_password(str(self.source)),
            "model": f"{self.manifest.name}/{self.manifest.version}",
            "provider": self.engine.provider,
            "operating_point": self.operating_point,
            "scope": self.scope,
        }

    def close(self) -> None:
        """End the threads and free the graph. Requests that still wait are refused with NotReady."""
        self.pipeline.close()
        self.engine.close()


@dataclass(frozen=True)
class Deciding:
    """Which operating point and thresholds the deployment has chosen; None: what each bundle prefers itself."""

    operating_point: str | None = None
    scope: Scope | None = None
    said_in: str = "operating_point"  # for the error when a bundle lacks it

    def changed(self, operating_point: str | None, scope: Scope | None) -> "Deciding":
        """The same with another point or scope; None leaves one as it is."""
        said_in = self.said_in if operating_point is None else "operating_point"
        return Deciding(operating_point or self.operating_point, scope or self.scope, said_in)

    def within(self, path: Path, manifest: Manifest) -> tuple[str, Scope]:
        """What decides with this bundle. Raises SettingsError when it has no such operating point."""
        point = self.operating_point or manifest.default_operating_point
        if point not in manifest.operating_points:
            known = ", ".join(manifest.operating_points)
            raise SettingsError(f"{self.said_in}={point[:100]} is none of {path}'s: {known}")
        return point, self.scope or manifest.threshold_scope


def load(
    path: Path,
    settings: Settings,
    metrics: Metrics,
    deciding: Deciding,
    *,
    shadow: bool = False,
    embedding: bool = False,
    source: Source | None = None,
) -> Model:
    """Read, verify and warm up the bundle at `path`, the copy of `source` where that is given.

    A shadow gets one thread, which yields to all others; with
    `embedding` each row has its embedding, if the bundle gives one.

    Raises BundleError, EngineError or SettingsError, each with one clear line.
    """
    manifest = bundle.read(path)
    exemplars.read(path, manifest)  # a file that cannot be used is refused here, not when a reviewer needs it
    point, scope = deciding.within(path, manifest)
    engine = Engine(
        path,
        manifest,
        provider=settings.provider,
        intra_op_threads=settings.intra_op_threads,
        gpu_mem_limit_bytes=settings.gpu_mem_limit_bytes,
        max_batch_images=settings.largest_batch,
        embedding=embedding,
    )
    on_cpu = settings.provider == "cpu"
    dials = Dials(
        max_pixels=settings.max_pixels,
        queue_images=2 * settings.largest_batch if shadow else settings.queue_images,
        max_batch_images=settings.largest_batch,
        decode_threads=1 if shadow else settings.decode_threads,
        inference_threads=1 if shadow or not on_cpu else settings.inference_threads,
        fused=on_cpu,
        niceness=19 if shadow else NICENESS,
        max_decoding_bytes=settings.max_decoding_bytes,
        health=HealthLimits(settings.unready_failed_runs, settings.unready_stalled_s, settings.dead_s),
    )
    pipeline = Pipeline(engine, dials, None if shadow else metrics)
    return Model(
        source=source or path,
        folder=path,
        manifest=manifest,
        engine=engine,
        pipeline=pipeline,
        metrics=ModelMetrics(manifest, engine.provider, point, scope, settings.metrics_max_classes),
        operating_point=point,
        scope=scope,
    )
