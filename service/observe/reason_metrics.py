"""Rejected images by reason, beside what calibration and outliers led to expect; nothing where a bundle tells none."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from service.contract.decision import Scope, Verdict
from service.contract.manifest import Manifest
from service.contract.reasons import REASONS
from service.contract.reference import ALL


class ReasonMetrics:
    """Three series for each group of classes, however many classes there are."""

    def __init__(self, registry: CollectorRegistry, manifest: Manifest) -> None:
        self._manifest, self._ours = manifest, (manifest.name, manifest.version)
        self._rejections: Counter | None = None
        if manifest.reasons is None:
            return
        self._rejections = Counter(
            "rejections", "Images rejected as the deployment decides, by why: unknown, unsure or unfit",
            ["model", "version", "group", "reason", "operating_point", "scope"], registry=registry,
            namespace="tailguard",
        )  # fmt: skip
        expected = Gauge(
            "expected_rejections", "Share of in-distribution images rejected for this reason at calibration, by "
            "predicted group and of all, at the bundle's own operating point", ["model", "version", "group", "reason"],
            registry=registry, namespace="tailguard",
        )  # fmt: skip
        told = manifest.reasons.measured.calibration
        for group, shares in {ALL: told.all, **told.by_predicted_group}.items():
            for reason in REASONS:
                expected.labels(*self._ours, group, reason).set(getattr(shares, reason))

    def start_at_zero(self, operating_point: str, scope: Scope) -> None:
        """Make every series of this operating point and scope."""
        if self._rejections is not None:
            for group in self._manifest.group_names:
                for reason in REASONS:
                    self._rejections.labels(*self._ours, group, reason, operating_point, scope)

    def count(self, verdict: Verdict, group: str) -> None:
        """Count a rejected image that has a reason."""
        if verdict.reason is not None and self._rejections is not None:
            self._rejections.labels(*self._ours, group, verdict.reason, verdict.operating_point, verdict.scope).inc()
