"""Every Prometheus metric of the service and its buckets. Base units; every label has few values."""

import math
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
        self._scores: dict[str, Histogram] = {}

    def bind(self, manifest: Manifest, provider: str) -> None:
        """Make the series that depend on the bundle: its identity, its classes, a histogram per score."""
        self.model_info.clear()
        self.model_info.labels(
            manifest.name, manifest.version, manifest.sha256, manifest.provenance.method, provider
        ).set(1)
        self.decisions.clear()
        for info in manifest.classes:  # at zero from the start: rates are right from the first event on
            for decision in ("accept", "reject"):
                self.decisions.labels(info.name, info.group, decision)
        for histogram in self._scores.values():
            self.registry.unregister(histogram)
        self._scores = {
            name: Histogram(
                f"score_{name}",
                f"{name} of classified images, larger = more outlying",
                buckets=score_buckets(manifest, name),
                registry=self.registry,
                namespace="tailguard",
            )
            for name in manifest.scores
        }

    def decided(self, manifest: Manifest, class_index: int, scores: dict[str, float], verdict: Verdict) -> None:
        """Count one classified image."""
        info = manifest.classes[class_index]
        self.decisions.labels(info.name, info.group, verdict.decision).inc()
        for name, value in scores.items():
            if math.isfinite(value):  # one NaN would spoil the sum for good
                self._scores[name].observe(value)

    def render(self) -> bytes:
        return generate_latest(self.registry)


def score_buckets(manifest: Manifest, name: str) -> list[float]:
    """Evenly spaced upper bounds over what calibration saw of a score, in-distribution and outliers together."""
    seen = [v for row in manifest.calibration.quantiles.get(name, {}).values() for v in row]
    if name == manifest.deciding_score:
        seen += [manifest.calibration.id_scores[0], manifest.calibration.id_scores[-1]]
    low, high = (min(seen), max(seen)) if seen else (0.0, 1.0)
    step = (high - low) / SCORE_BUCKETS
    bounds = [float(f"{low + i * step:.6g}") for i in range(SCORE_BUCKETS + 1)]
    return bounds if all(a < b for a, b in pairwise(bounds)) else [0.0, 0.5, 1.0]
