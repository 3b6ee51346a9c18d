"""What is estimated of a model's stream, beside what is counted: from its audit sample, and its mix of classes."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Gauge

from service.contract.bundle import Cost, Manifest
from service.observe.class_mix import ClassMix, Floats, expected_cdf, expected_images, expected_rejection

Shares = dict[tuple[str, str], tuple[float | None, float, float]]


class StreamMetrics:
    """Gauges in the registry of one model. `labels`: class and group of each class, as its other metrics have them;
    `bounds`: of the deciding score's buckets, by how they are written."""

    def __init__(
        self,
        registry: CollectorRegistry,
        manifest: Manifest,
        labels: Sequence[tuple[str, str]],
        bounds: dict[str, float],
    ) -> None:
        self._ours, names = (manifest.name, manifest.version), ["model", "version"]
        self._manifest, self._labels, self._bounds = manifest, labels, bounds
        self.class_mix = ClassMix(manifest)
        self._cost: Cost | None = None
        self._shares = Gauge(
            "tailguard_class_mix", "Share of the class in recent accepted images, estimated by EM",
            [*names, "class", "group"], registry=registry,
        )  # fmt: skip
        self._cdf = Gauge(
            "tailguard_expected_cdf", "Share of deciding scores of at most le that calibration expects of that mix",
            [*names, "le"], registry=registry,
        )  # fmt: skip
        self._images = Gauge(
            "tailguard_expected_images", "In-distribution images behind expected_cdf, in number as if of its mix",
            names, registry=registry,
        )  # fmt: skip
        self._rejection = Gauge(
            "tailguard_expected_stream_rejection",
            "Share of in-distribution images rejected that calibration expects of that mix, by predicted group",
            [*names, "group"], registry=registry,
        )  # fmt: skip
        self._audit = Gauge(
            "tailguard_audit_share", "Shares of the stream from the audit sample, with the ends of their intervals",
            [*names, "share", "group", "bound"], registry=registry,
        )  # fmt: skip
        self._audit_images = Gauge(
            "tailguard_audit_images", "Labelled images of the audit sample", names, registry=registry
        )

    def set_cost(self, cost: Cost) -> None:
        """What the operating point in force cost at calibration."""
        self._cost = cost
        self._expect(self.class_mix.known)

    def set_audit(self, images: int, shares: Shares) -> None:
        """Publish estimates from the audit sample: by name and group the share, if known, and its interval."""
        self._audit_images.labels(*self._ours).set(images)
        self._audit.clear()
        for names, values in shares.items():
            for bound, value in zip(("share", "low", "high"), values, strict=True):
                if value is not None:
                    self._audit.labels(*self._ours, *names, bound).set(value)

    def estimate(self) -> None:
        """Publish the stream's mix and what calibration expects of it, once it is known: Prometheus averages over the
        replicas, and one that has just started has nothing to say. Work for a thread, see ClassMix.shares."""
        shares = self.class_mix.shares()
        if shares is None:
            return
        for le, share in zip(
            self._bounds, expected_cdf(self._manifest, list(self._bounds.values()), shares), strict=True
        ):
            self._cdf.labels(*self._ours, le).set(share)
        self._images.labels(*self._ours).set(expected_images(self._manifest, shares))
        self._expect(shares)
        summed = dict.fromkeys(self._labels, 0.0)
        for names, share in zip(self._labels, shares.tolist(), strict=True):
            summed[names] += share
        for names, share in summed.items():
            self._shares.labels(*self._ours, *names).set(share)

    def _expect(self, shares: Floats | None) -> None:
        if self._cost is not None and shares is not None:
            for group, share in expected_rejection(self._manifest, self._cost, shares).items():
                self._rejection.labels(*self._ours, group).set(share)
