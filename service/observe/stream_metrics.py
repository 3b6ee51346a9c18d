"""What is estimated of a model's stream, beside what is counted: its audit sample."""

from prometheus_client import CollectorRegistry, Gauge

Shares = dict[tuple[str, str], tuple[float, float, float]]


class StreamMetrics:
    """Gauges in the registry of one model; `ours` are the values of its labels model and version."""

    def __init__(self, registry: CollectorRegistry, ours: tuple[str, str]) -> None:
        self._ours, names = ours, ["model", "version"]
        self._audit = Gauge(
            "tailguard_audit_share", "Shares of the stream from the audit sample, with the ends of their intervals",
            [*names, "share", "group", "bound"], registry=registry,
        )  # fmt: skip
        self._audit_images = Gauge(
            "tailguard_audit_images", "Labelled images of the audit sample", names, registry=registry
        )

    def set_audit(self, images: int, shares: Shares) -> None:
        """Publish estimates from the audit sample: by name and group (or "all") the share and its interval."""
        self._audit_images.labels(*self._ours).set(images)
        self._audit.clear()
        for names, values in shares.items():
            for bound, value in zip(("share", "low", "high"), values, strict=True):
                self._audit.labels(*self._ours, *names, bound).set(value)
