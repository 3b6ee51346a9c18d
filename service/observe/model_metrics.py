"""The metrics of one bundle: its decisions and scores, beside what its calibration promises of them.

With the calibration's distribution published under the bounds of the live histogram, PromQL alone computes how far the
two are apart (Kolmogorov-Smirnov).
"""

import math
from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from typing import TypedDict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from service.contract.bundle import Manifest
from service.contract.decision import Scope, Verdict, threshold

SCORE_STEPS = 24
CALIBRATION_STEPS = 20  # bounds at every twentieth of the calibration scores
OUTLIER_STEPS = 6  # beyond nearly all of them, evenly spaced
P_VALUE_BUCKETS = tuple(round(0.05 * i, 2) for i in range(1, 21))
OUTLIER = "outlier"


class _Where(TypedDict):
    registry: CollectorRegistry
    namespace: str


class ModelMetrics(Collector):
    """Each model keeps its own, so requests that end after another bundle has taken over do not count there.

    Every series exists from the start, at zero: rates are right from the first event on.
    """

    def __init__(self, manifest: Manifest, provider: str, operating_point: str, scope: Scope) -> None:
        self._manifest = manifest
        self._registry = CollectorRegistry()
        where = _Where(registry=self._registry, namespace="tailguard")
        ours, self._ours = ["model", "version"], (manifest.name, manifest.version)
        identity = (*self._ours, manifest.sha256, manifest.provenance.method, provider)
        self._identity = identity
        self._info = Gauge(
            "model_info", "The model in service and what decides",
            [*ours, "sha256", "method", "provider", "operating_point", "scope"], **where,
        )  # fmt: skip
        self._thresholds = Gauge(
            "threshold", "Deciding score above which an image predicted in the group is rejected",
            [*ours, "group"], **where,
        )  # fmt: skip
        self._expected = Gauge(
            "expected_rejection", "Share of in-distribution images rejected at calibration, by predicted group",
            [*ours, "group"], **where,
        )  # fmt: skip
        self._count_decisions(where)
        self._count_scores(where)
        self._publish_calibration(where)
        self.set_in_force(operating_point, scope)

    def _count_decisions(self, where: _Where) -> None:
        ours, manifest = ["model", "version"], self._manifest
        decisions = Counter("decisions", "Decisions by predicted class", [*ours, "class", "group", "decision"], **where)
        feedback = Counter(
            "feedback", "True labels told afterwards; class: the true one",
            [*ours, "class", "group", "outcome", "decision"], **where,
        )  # fmt: skip
        self._corrections = Counter(
            "feedback_corrections", "True labels counted in feedback and later replaced by another", ours, **where
        ).labels(*self._ours)
        both = ("accept", "reject")
        self._decisions = [
            {d: decisions.labels(*self._ours, info.name, info.group, d) for d in both} for info in manifest.classes
        ]
        self._feedback: dict[tuple[int | None, str, str], Counter] = {
            (i, outcome, d): feedback.labels(*self._ours, info.name, info.group, outcome, d)
            for i, info in enumerate(manifest.classes)
            for outcome in ("correct", "wrong")
            for d in both
        }
        self._feedback |= {(None, OUTLIER, d): feedback.labels(*self._ours, OUTLIER, "none", OUTLIER, d) for d in both}

    def _count_scores(self, where: _Where) -> None:
        ours, manifest = ["model", "version"], self._manifest
        self._bounds = deciding_bounds(manifest)
        deciding = Histogram(
            "deciding_score", "The score that decides, by group of the predicted class; larger = more outlying",
            [*ours, "group"], buckets=self._bounds, **where,
        )  # fmt: skip
        self._deciding = {group: deciding.labels(*self._ours, group) for group in manifest.group_names}
        self._p_value = Histogram(
            "p_value", "p-values of classified images: uniform while the stream is what the model was calibrated on",
            ours, buckets=P_VALUE_BUCKETS, **where,
        ).labels(*self._ours)  # fmt: skip
        # One family of metrics whose members have bounds of their own, which a registry would not take.
        self._families = {
            name: Histogram(
                "score", "Every score of classified images; larger = more outlying", [*ours, "score"],
                buckets=score_bounds(manifest, name), namespace="tailguard", registry=None,
            )
            for name in manifest.scores
        }  # fmt: skip
        self._scores = {name: family.labels(*self._ours, name) for name, family in self._families.items()}

    def _publish_calibration(self, where: _Where) -> None:
        ours, manifest = ["model", "version"], self._manifest
        reference = manifest.calibration.id_scores
        cdf = Gauge(
            "calibration_cdf", "Share of calibration images with a deciding score of at most le", [*ours, "le"], **where
        )
        for bound in (*self._bounds, math.inf):
            cdf.labels(*self._ours, _le(bound)).set(bisect_right(reference, bound) / len(reference))
        images = Gauge("calibration_images", "In-distribution images behind calibration_cdf", ours, **where)
        images.labels(*self._ours).set(manifest.calibration.in_distribution_images)
        share = Gauge(
            "expected_class_share", "Share of the class in the mix that calibration expects in service",
            [*ours, "class", "group"], **where,
        )  # fmt: skip
        for info, expected in zip(manifest.classes, manifest.calibration.class_shares, strict=True):
            share.labels(*self._ours, info.name, info.group).set(expected)

    def set_in_force(self, operating_point: str, scope: Scope) -> None:
        """Publish what decides from now on, and what it is expected to cost."""
        point = self._manifest.operating_points[operating_point]
        cost = point.cost(scope).calibration
        self._info.clear()
        self._info.labels(*self._identity, operating_point, scope).set(1)
        self._expected.clear()
        self._expected.labels(*self._ours, "all").set(cost.id_rejected)
        for group in self._manifest.group_names:
            self._thresholds.labels(*self._ours, group).set(threshold(point, scope, group))
            share = cost.id_rejected_by_predicted_group.get(group)
            self._expected.labels(*self._ours, group).set(cost.id_rejected if share is None else share)

    def count_decision(self, scores: dict[str, float], verdict: Verdict) -> None:
        """Count one classified image."""
        self._decisions[verdict.class_index][verdict.decision].inc()
        for name, value in scores.items():
            if math.isfinite(value):  # one NaN would spoil the sum for good
                self._scores[name].observe(value)
        if math.isfinite(verdict.score):
            self._deciding[self._manifest.classes[verdict.class_index].group].observe(verdict.score)
        self._p_value.observe(verdict.p_value)

    def count_feedback(self, class_index: int | None, outcome: str, decision: str, count: int = 1) -> None:
        """Count one true label; `class_index` None: an outlier. With count=-1 an earlier one has been corrected.

        To Prometheus a counter that falls has been reset, and `increase` would count everything again: corrections
        are counted apart, and GET /stats is exact. Raises KeyError for an outcome or decision that is none.
        """
        series = self._feedback[class_index, outcome, decision]
        (series if count > 0 else self._corrections).inc(abs(count))

    def collect(self) -> Iterator[Metric]:
        yield from self._registry.collect()
        merged: Metric | None = None
        for family in self._families.values():
            for found in family.collect():
                if merged is None:
                    merged = found
                else:
                    merged.samples.extend(found.samples)
        if merged is not None:
            yield merged


def _le(bound: float) -> str:
    """A bound as the histograms write it, so that PromQL can match the two."""
    written: str = floatToGoString(bound)  # type: ignore[no-untyped-call]
    return written


def deciding_bounds(manifest: Manifest) -> list[float]:
    """Upper bounds at every twentieth of the calibration scores, then evenly spaced to the largest outlier seen.

    So no bucket holds more than a twentieth of what is expected, and a distance between live and calibration that is
    read at the bounds is less than 1/20 short of the true one.
    """
    reference = manifest.calibration.id_scores
    last = len(reference) - 1
    found = [reference[round(last * i / CALIBRATION_STEPS)] for i in range(CALIBRATION_STEPS + 1)]
    seen = [v for row in manifest.calibration.quantiles.get(manifest.deciding_score, {}).values() for v in row]
    top = max([*seen, found[-1]])
    found += [found[-1] + (top - found[-1]) * i / OUTLIER_STEPS for i in range(1, OUTLIER_STEPS + 1)]
    bounds = sorted({float(f"{v:.6g}") for v in found})
    return bounds if len(bounds) > 1 else [bounds[0], bounds[0] + 1.0]


def score_bounds(manifest: Manifest, name: str) -> list[float]:
    """Evenly spaced upper bounds over what calibration saw of a score, in-distribution and outliers together."""
    seen = [v for row in manifest.calibration.quantiles.get(name, {}).values() for v in row]
    if name == manifest.deciding_score:
        seen += [manifest.calibration.id_scores[0], manifest.calibration.id_scores[-1]]
    low, high = (min(seen), max(seen)) if seen else (0.0, 1.0)
    step = (high - low) / SCORE_STEPS
    bounds = [float(f"{low + i * step:.6g}") for i in range(SCORE_STEPS + 1)]
    return bounds if all(a < b for a, b in pairwise(bounds)) else [0.0, 0.5, 1.0]
