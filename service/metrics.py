"""Every Prometheus metric of the service and its buckets. Base units; every label has few values."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import TypedDict

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from service.bundle import Manifest
from service.decision import Verdict

disable_created_metrics()  # type: ignore[no-untyped-call]  # a _created series per counter doubles the scrape for nothing

REQUEST_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
STAGE_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
SCORE_BUCKETS = 24
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


class Where(TypedDict):
    registry: CollectorRegistry
    namespace: str


class Metrics:
    """One registry per application, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        where = Where(registry=self.registry, namespace="tailguard")
        ProcessCollector(registry=self.registry)
        self.requests = Counter("requests", "Requests answered", ["route", "method", "status"], **where)
        self.request_seconds = Histogram(
            "request_seconds", "Time from the first byte to the answer", ["route"], buckets=REQUEST_BUCKETS_S, **where
        )
        self.stage_seconds = Histogram(
            "stage_seconds",
            "Time of an image in a stage; inference: of a batch",
            ["stage"],
            buckets=STAGE_BUCKETS_S,
            **where,
        )
        self.batch_images = Histogram("batch_images", "Images per run of the graph", buckets=BATCH_BUCKETS, **where)
        self.queue_images = Gauge("queue_images", "Images admitted and not yet answered", **where)
        self.refused = Counter("refused", "Images or requests refused or failed, by reason", ["reason"], **where)
        self.decisions = Counter("decisions", "Decisions by predicted class", ["class", "group", "decision"], **where)
        self.model_info = Gauge(
            "model_info", "The model in service", ["model", "version", "sha256", "method", "provider"], **where
        )
        self.device_memory_bytes = Gauge(
            "device_memory_bytes", "Memory in use on the accelerator, by all processes", ["provider"], **where
        )
        self.swaps = Counter("swaps", "Bundles put in service while running, or refused", ["outcome"], **where)
        self.shadow_images = Counter(
            "shadow_images", "Images that the shadow bundle has seen, by how it would answer", ["outcome"], **where
        )
        # A label is looked up once, not once a request.
        self.receive_seconds, self.decode_seconds, self.queue_seconds, self.inference_seconds = (
            self.stage_seconds.labels(stage) for stage in ("receive", "decode", "queue", "inference")
        )
        self._model: ModelMetrics | None = None
        for outcome in ("done", "refused"):
            self.swaps.labels(outcome)

    def bind(self, model: "ModelMetrics") -> None:
        """Publish the series of `model` in place of those of the one before."""
        if self._model is not None:
            self.registry.unregister(self._model)
        self._model = model
        self.registry.register(model)
        self.model_info.clear()
        self.model_info.labels(*model.identity).set(1)

    def ran(self, images: int, seconds: float) -> None:
        """Count one run of the graph."""
        self.batch_images.observe(images)
        self.inference_seconds.observe(seconds)

    def render(self) -> bytes:
        return generate_latest(self.registry)


class ModelMetrics(Collector):
    """The series that depend on a bundle: its decisions by class, a histogram per score with bounds of its own.

    Each model keeps its own, so requests that end after another bundle has taken over do not count there.
    """

    def __init__(self, manifest: Manifest, provider: str) -> None:
        self.identity = (manifest.name, manifest.version, manifest.sha256, manifest.provenance.method, provider)
        where = Where(registry=CollectorRegistry(), namespace="tailguard")
        self._registry = where["registry"]
        decisions = Counter("decisions", "Decisions by predicted class", ["class", "group", "decision"], **where)
        self._decisions = [  # at zero from the start: rates are right from the first event on
            {decision: decisions.labels(info.name, info.group, decision) for decision in ("accept", "reject")}
            for info in manifest.classes
        ]
        self._scores = {
            name: Histogram(
                f"score_{name}",
                f"{name} of classified images, larger = more outlying",
                buckets=score_buckets(manifest, name),
                **where,
            )
            for name in manifest.scores
        }

    def collect(self) -> Iterator[Metric]:
        return iter(self._registry.collect())

    def decided(self, class_index: int, scores: dict[str, float], verdict: Verdict) -> None:
        """Count one classified image."""
        self._decisions[class_index][verdict.decision].inc()
        for name, value in scores.items():
            if math.isfinite(value):  # one NaN would spoil the sum for good
                self._scores[name].observe(value)


def score_buckets(manifest: Manifest, name: str) -> list[float]:
    """Evenly spaced upper bounds over what calibration saw of a score, in-distribution and outliers together."""
    seen = [v for row in manifest.calibration.quantiles.get(name, {}).values() for v in row]
    if name == manifest.deciding_score:
        seen += [manifest.calibration.id_scores[0], manifest.calibration.id_scores[-1]]
    low, high = (min(seen), max(seen)) if seen else (0.0, 1.0)
    step = (high - low) / SCORE_BUCKETS
    bounds = [float(f"{low + i * step:.6g}") for i in range(SCORE_BUCKETS + 1)]
    return bounds if all(a < b for a, b in pairwise(bounds)) else [0.0, 0.5, 1.0]
