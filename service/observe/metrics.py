"""Every Prometheus metric of the service, in base units. Every label has few values."""

from typing import Literal, TypedDict

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from service.observe.model_metrics import ModelMetrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # a _created series per counter doubles the scrape for nothing

REQUEST_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
STAGE_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
HTTP_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
REQUEST_STAGES = ("receive", "decode", "queue", "inference", "respond")
ImageOutcome = Literal["answered", "refused", "failed", "abandoned"]
IMAGE_OUTCOMES: tuple[ImageOutcome, ...] = ("answered", "refused", "failed", "abandoned")
# of an image that the shadow saw, see inference/shadow.py
SHADOW_OUTCOMES = (
    "same", "label-differs", "decision-differs", "both-refuse", "other-reason", "taught", "newly-accepted"
)  # fmt: skip
STORE_OUTCOMES = ("kept", "limited", "dropped", "failed")  # limited: by keep_images_per_s; dropped: too many wait
SHED = ("overloaded", "rate-limited", "deadline-exceeded")  # at zero from the start, so that their rates exist


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
        stage_seconds = Histogram(
            "stage_seconds",
            "Time of an image in a stage; inference: of a batch",
            ["stage"],
            buckets=STAGE_BUCKETS_S,
            **where,
        )
        # Labels are looked up once, not once a request.
        self.receive_seconds, self.decode_seconds, self.queue_seconds, self.inference_seconds, self.respond_seconds = (
            stage_seconds.labels(stage) for stage in REQUEST_STAGES
        )
        self.batch_images = Histogram("batch_images", "Images per run of the graph", buckets=BATCH_BUCKETS, **where)
        self.failed_runs = Counter("failed_runs", "Runs of the graph that failed", **where)
        self.engine_usable = Gauge("engine_usable", "0 while the graph fails or does not end its runs", **where)
        self.engine_usable.set(1)
        self.requests_in_flight = Gauge("requests_in_flight", "Requests begun and not yet answered", **where)
        self.queue_images = Gauge("queue_images", "Images admitted and not yet answered", **where)
        self.queue_limit_images = Gauge("queue_limit_images", "Images admitted at most", **where)
        images = Counter("images", "Images by how they ended: see count_image", ["outcome"], **where)
        self._images = {outcome: images.labels(outcome) for outcome in IMAGE_OUTCOMES}
        self.refused = Counter("refused", "Images or requests refused or failed, by reason", ["reason"], **where)
        self.ready = Gauge("ready", "1 while the service takes requests", **where)
        self.provider_asked = Gauge("provider_asked_info", "The provider that the settings name", ["provider"], **where)
        self.swaps = Counter("swaps", "Bundles put in service while running, or refused", ["outcome"], **where)
        self.shadow_images = Counter(
            "shadow_images", "Images that the shadow bundle has seen, by how it would answer", ["outcome"], **where
        )
        self.deployment_failed = Gauge(
            "deployment_failed", "1 while this replica cannot load the bundle that was deployed last", **where
        )
        self.ledger_rows = Counter("ledger_rows", "Rows for the ledger, written or lost", ["outcome"], **where)
        self.ledger_failures = Counter("ledger_failures", "Failed attempts to write; their rows stay queued", **where)
        self.ledger_held_rows = Gauge("ledger_held_rows", "Rows in the ledger", **where)
        self.ledger_bytes = Gauge("ledger_bytes", "Size of the ledger", **where)
        self.store_images = Counter("store_images", "Images to be kept, by how it went", ["outcome"], **where)
        self.store_bytes = Gauge("store_bytes", "Size of the kept images with their thumbnails", **where)
        self._model: ModelMetrics | None = None
        for route in ("/classify", "/classify/batch"):
            self.requests.labels(route, "POST", "200")
        for counter, values in (
            (self.swaps, ("done", "refused")),
            (self.refused, SHED),
            (self.shadow_images, (*SHADOW_OUTCOMES, "failed", "skipped")),
            (self.ledger_rows, ("written", "dropped")),
            (self.store_images, STORE_OUTCOMES),
        ):
            for value in values:
                counter.labels(value)

    def bind(self, model: ModelMetrics) -> None:
        """Publish the series of `model` in place of those of the model before."""
        if self._model is not None:
            self.registry.unregister(self._model)
        self._model = model
        self.registry.register(model)

    def count_image(self, outcome: ImageOutcome, images: int = 1) -> None:
        """Count images of requests that classify: answered with a decision; refused for a reason that the client can
        mend (4xx, shedding included); failed by the service (5xx); abandoned by their client.
        """
        self._images[outcome].inc(images)

    def count_failed_run(self) -> None:
        """Count one run of the graph that failed."""
        self.failed_runs.inc()

    def count_batch(self, images: int, seconds: float) -> None:
        """Count one run of the graph."""
        self.batch_images.observe(images)
        self.inference_seconds.observe(seconds)

    def render(self) -> bytes:
        """The text for Prometheus. Takes milliseconds per thousand series: call it in a thread."""
        return generate_latest(self.registry)
