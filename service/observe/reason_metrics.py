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
        self._expected = Gauge(
            "expected_rejections", "Share of in-distribution images rejected for this reason at calibration, by "
            "predicted group and of all; only at the bundle's own operating point, of which it is known",
            ["model", "version", "group", "reason"], registry=registry, namespace="tailguard",
        )  # fmt: skip

    def set_in_force(self, operating_point: str, scope: Scope) -> None:
        """Make every series of this operating point and scope, and publish what is expected there, if it is known."""
        manifest = self._manifest
        if self._rejections is None or manifest.reasons is None:
            return
        for group in manifest.group_names:
            for reason in REASONS:
                self._rejections.labels(*self._ours, group, reason, operating_point, scope)
        self._expected.clear()
        told = manifest.reasons.measured.calibration
        if (operating_point, scope) == (manifest.default_operating_point, manifest.threshold_scope):
            for group, shares in {ALL: told.all, **told.by_predicted_group}.items():
                for reason in REASONS:
                    self._expected.labels(*self._ours, group, reason).set(getattr(shares, reason))

    def count(self, verdict: Verdict, group: str) -> None:
        """Count a rejected image that has a reason."""
        if verdict.reason is not None and self._rejections is not None:
            self._rejections.labels(*self._ours, group, verdict.reason, verdict.operating_point, verdict.scope).inc()
