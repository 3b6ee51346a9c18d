"""The metrics of one bundle: its decisions and scores, beside what its calibration promises of them.

Decisions are counted under the operating point and scope that decided, so that after a change a window holds only what
the new ones decided. Requests that name another point are counted apart. The calibration's distribution is published
under the bounds of the live histogram, so PromQL alone computes how far the two are apart (Kolmogorov-Smirnov).
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

from service.contract.bundle import OUTLIER_LABEL, Manifest
from service.contract.decision import Scope, Verdict, threshold
from service.observe.reason_metrics import ReasonMetrics
from service.observe.stream_metrics import StreamMetrics
from service.observe.told_metrics import ToldMetrics

SCORE_STEPS = 24
CALIBRATION_STEPS = 20  # bounds at every twentieth of the calibration scores
OUTLIER_STEPS = 6  # beyond nearly all of them, evenly spaced
P_VALUE_BUCKETS = tuple(round(0.05 * i, 2) for i in range(1, 21))
OTHER_CLASSES = "(other classes)"


class _Where(TypedDict):
    registry: CollectorRegistry
    namespace: str


class ModelMetrics(Collector):
    """One object per model, so requests that end after a swap are counted for the model that decided them.

    Every series of the point in force exists from its start, at zero: rates are right from the first event on.
    """

    def __init__(
        self, manifest: Manifest, provider: str, operating_point: str, scope: Scope, max_classes: int = 200
    ) -> None:
        """`max_classes`: with series of their own, the most frequent first; the others count as one in each group."""
        self._manifest = manifest
        self._labels = class_labels(manifest, max_classes)
        self._registry = CollectorRegistry()
        where = _Where(registry=self._registry, namespace="tailguard")
        ours, self._ours = ["model", "version"], (manifest.name, manifest.version)
        self._identity = (*self._ours, manifest.sha256, manifest.provenance.method, provider)
        self._decision_series: dict[tuple[int, str, str, Scope], Counter] = {}  # looked up once, not once an image
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
        self._reasons = ReasonMetrics(self._registry, manifest)
        self._count_scores(where)
        self._publish_calibration(where)
        bounds = {_le(bound): bound for bound in (*self._bounds, math.inf)}
        self.stream = StreamMetrics(self._registry, manifest, self._labels, bounds)
        self.told = ToldMetrics(self._registry, manifest)
        self.set_in_force(operating_point, scope)

    def _count_decisions(self, where: _Where) -> None:
        ours, point = ["model", "version"], ["operating_point", "scope"]
        self._decisions = Counter(
            "decisions", "Decisions as the deployment decides, by predicted class",
            [*ours, "class", "group", "decision", *point], **where,
        )  # fmt: skip
        self._feedback = Counter(
            "feedback", "True labels of images that the deployment decided; class: the true one",
            [*ours, "class", "group", "outcome", "decision", *point], **where,
        )  # fmt: skip
        self._requested_decisions = Counter(
            "requested_decisions", "Decisions at an operating point or scope that the request named",
            [*ours, "decision", *point], **where,
        )  # fmt: skip
        self._requested_feedback = Counter(
            "requested_feedback", "True labels of images that were decided as their request named",
            [*ours, "outcome", "decision", *point], **where,
        )  # fmt: skip
        self._corrections = Counter(
            "feedback_corrections", "True labels counted in feedback and later replaced by another", ours, **where
        ).labels(*self._ours)

    def _start_at_zero(self, operating_point: str, scope: Scope) -> None:
        """Make every series of this operating point and scope."""
        for decision in ("accept", "reject"):
            point = (decision, operating_point, scope)
            for labels in sorted(set(self._labels)):
                self._decisions.labels(*self._ours, *labels, *point)
                for outcome in ("correct", "wrong"):
                    self._feedback.labels(*self._ours, *labels, outcome, *point)
            self._feedback.labels(*self._ours, OUTLIER_LABEL, "none", OUTLIER_LABEL, *point)
        self._reasons.set_in_force(operating_point, scope)

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
        for labels, expected in zip(self._labels, manifest.calibration.class_shares, strict=True):
            share.labels(*self._ours, *labels).inc(expected)

    def set_in_force(self, operating_point: str, scope: Scope) -> None:
        """Publish what decides from now on, and what it is expected to cost; its decisions are counted from zero."""
        self._start_at_zero(operating_point, scope)
        point = self._manifest.operating_points[operating_point]
        cost = point.cost(scope).calibration
        self._info.clear()
        self._info.labels(*self._identity, operating_point, scope).set(1)
        self._expected.clear()
        self._expected.labels(*self._ours, "all").set(cost.id_rejected)
        self.stream.set_cost(cost)
        for group in self._manifest.group_names:
            self._thresholds.labels(*self._ours, group).set(threshold(point, scope, group))
            share = cost.id_rejected_by_predicted_group.get(group)
            self._expected.labels(*self._ours, group).set(cost.id_rejected if share is None else share)

    def count_decision(self, scores: dict[str, float], verdict: Verdict, *, by_deployment: bool) -> None:
        """Count one classified image. `by_deployment`: not at an operating point or scope that its request named."""
        point = (verdict.decision, verdict.operating_point, verdict.scope)
        index, group = verdict.class_index, self._manifest.classes[verdict.class_index].group
        for name, value in scores.items():
            if math.isfinite(value):  # one NaN would make the sum NaN for good
                self._scores[name].observe(value)
        if math.isfinite(verdict.score):
            self._deciding[group].observe(verdict.score)
        if by_deployment:
            series = self._decision_series.get((index, *point))
            if series is None:
                series = self._decisions.labels(*self._ours, *self._labels[index], *point)
                self._decision_series[index, *point] = series
            series.inc()
            self._p_value.observe(verdict.p_value)
            self._reasons.count(verdict, group)
        else:
            self._requested_decisions.labels(*self._ours, *point).inc()

    def count_feedback(
        self, class_index: int | None, outcome: str, decided: tuple[str, str, str], count: int = 1, *,
        by_deployment: bool,
    ) -> None:  # fmt: skip
        """Count one true label; `class_index` None: an outlier. With count=-1 an earlier one has been corrected.

        `decided`: decision, operating point and scope. To Prometheus a counter that falls has been reset, and
        `increase` would count everything again: corrections are counted apart, and GET /stats is exact.
        """
        if count < 0:
            self._corrections.inc(-count)
        elif by_deployment:
            labels = (OUTLIER_LABEL, "none") if class_index is None else self._labels[class_index]
            self._feedback.labels(*self._ours, *labels, outcome, *decided).inc(count)
        else:
            self._requested_feedback.labels(*self._ours, outcome, *decided).inc(count)

    def collect(self) -> Iterator[Metric]:
        yield from self._registry.collect()
        merged: Metric | None = None
        for family in self._families.values():
            for metric in family.collect():
                if merged is None:
                    merged = metric
                else:
                    merged.samples.extend(metric.samples)
        if merged is not None:
            yield merged


def class_labels(manifest: Manifest, max_classes: int) -> list[tuple[str, str]]:
    """The labels class and group of each class: its own name for the `max_classes` most frequent in training."""
    classes = manifest.classes
    frequent = sorted(range(len(classes)), key=lambda i: -classes[i].train_count)[:max_classes]
    named = set(frequent)
    return [(info.name if i in named else OTHER_CLASSES, info.group) for i, info in enumerate(classes)]


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
    bounds = [reference[round(last * i / CALIBRATION_STEPS)] for i in range(CALIBRATION_STEPS + 1)]
    seen = [v for row in manifest.calibration.quantiles.get(manifest.deciding_score, {}).values() for v in row]
    top = max([*seen, bounds[-1]])
    bounds += [bounds[-1] + (top - bounds[-1]) * i / OUTLIER_STEPS for i in range(1, OUTLIER_STEPS + 1)]
    bounds = sorted({float(f"{v:.6g}") for v in bounds})
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
