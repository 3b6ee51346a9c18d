"""Rejection and the Kolmogorov-Smirnov distance as two witnesses see them: the service's /metrics, or Prometheus."""

import math
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.drift.rules import KS_C
from tests.drift.scores import GROUPS

ROWS = ("all", *GROUPS)
Series = dict[str, dict[tuple[str, ...], float]]
LABELS = {  # what is read of /metrics, summed over all other labels
    "tailguard_decisions_total": ("group", "decision"),
    "tailguard_deciding_score_bucket": ("le",),
    "tailguard_calibration_cdf": ("le",),
    "tailguard_calibration_images": (),
    "tailguard_expected_rejection": ("group",),
}


def ks_bound(images: float, calibration: float) -> float:
    """What the alert allows: two samples of one distribution are farther apart in one case of 10,000."""
    return KS_C * math.sqrt(1 / images + 1 / calibration) if images else math.nan


@dataclass(frozen=True)
class Seen:
    """One window: images and share rejected by group and of all, what was expected, and the KS distance."""

    images: float
    rejected: dict[str, float]
    expected: dict[str, float]
    ks: float
    calibration_images: float

    @property
    def ks_bound(self) -> float:
        return ks_bound(self.images, self.calibration_images)


class Witness(Protocol):
    def look(self) -> Seen: ...


def parse(text: str) -> Series:
    """The sums that LABELS names from a Prometheus text."""
    found: Series = {name: defaultdict(float) for name in LABELS}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in LABELS:
                found[sample.name][tuple(sample.labels[key] for key in LABELS[sample.name])] += sample.value
    return found


def between(before: Series, now: Series) -> Seen:
    """What the counters moved by between two readings. Shares of nothing are NaN."""

    def moved(name: str, *labels: str) -> float:
        return now[name][labels] - before[name].get(labels, 0.0)

    both: dict[str, list[float]] = {
        g: [moved("tailguard_decisions_total", g, d) for d in ("accept", "reject")] for g in GROUPS
    }
    both["all"] = [sum(column) for column in zip(*both.values(), strict=True)]
    rejected = {g: reject / (accept + reject) if accept + reject else math.nan for g, (accept, reject) in both.items()}
    images = sum(both["all"])
    scored = moved("tailguard_deciding_score_bucket", "+Inf")
    cdf = now["tailguard_calibration_cdf"]
    ks = max(
        (abs(moved("tailguard_deciding_score_bucket", *le) / scored - share) for le, share in cdf.items()),
        default=math.nan,
    ) if scored else math.nan  # fmt: skip
    expected = {group: now["tailguard_expected_rejection"].get((group,), math.nan) for group in ROWS}
    return Seen(images, rejected, expected, ks, now["tailguard_calibration_images"].get((), math.nan))


class Scraped:
    """Reads /metrics itself and remembers a window of readings."""

    def __init__(self, client: httpx.Client, window_s: float) -> None:
        self._client, self._window_s = client, window_s
        self._readings: deque[tuple[float, Series]] = deque()
        self.look()

    def look(self) -> Seen:
        answer = self._client.get("/metrics")
        answer.raise_for_status()
        now = time.monotonic()
        self._readings.append((now, parse(answer.text)))
        while len(self._readings) > 2 and self._readings[1][0] <= now - self._window_s:
            self._readings.popleft()
        return between(self._readings[0][1], self._readings[-1][1])


def queries(window_s: float) -> dict[str, str]:
    """PromQL of the same figures; `rejected` and `expected` give a series per group."""
    decisions, scores = "tailguard_decisions_total", "tailguard_deciding_score"
    w = f"[{window_s:.0f}s]"
    share = f'increase({decisions}{{decision="reject"}}{w})) / sum'
    return {
        "images": f"sum(increase({decisions}{w}))",
        "rejected": f"sum by (group) ({share} by (group) (increase({decisions}{w}))",
        "rejected_all": f"sum({share}(increase({decisions}{w}))",
        "expected": "max by (group) (tailguard_expected_rejection)",
        "ks": f"max(abs(sum by (le) (increase({scores}_bucket{w})) / scalar(sum(increase({scores}_count{w})))"
        " - on (le) max by (le) (tailguard_calibration_cdf)))",
        "calibration": "max(tailguard_calibration_images)",
    }


class Prometheus:
    """Asks Prometheus at `url`; raises httpx.HTTPError when it cannot answer."""

    def __init__(self, url: str, window_s: float) -> None:
        self._client = httpx.Client(base_url=url, timeout=10)
        self._queries = queries(window_s)

    def ask(self, route: str, query: str, **more: float) -> list[dict[str, Any]]:
        answer = self._client.get(f"/api/v1/{route}", params={"query": query, **more})
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    def _one(self, name: str) -> float:
        found = self.ask("query", self._queries[name])
        return float(found[0]["value"][1]) if found else math.nan

    def _by_group(self, name: str) -> dict[str, float]:
        values = dict.fromkeys(ROWS, math.nan)
        return values | {s["metric"]["group"]: float(s["value"][1]) for s in self.ask("query", self._queries[name])}

    def look(self) -> Seen:
        rejected = self._by_group("rejected") | {"all": self._one("rejected_all")}
        images = self._one("images")
        return Seen(
            0.0 if math.isnan(images) else images,
            rejected,
            self._by_group("expected"),
            self._one("ks"),
            self._one("calibration"),
        )

    def history(self, name: str, start: float, end: float) -> dict[str, tuple[list[float], list[float]]]:
        """Unix times and values by group ("" where the query has none), a point a second."""
        found = self.ask("query_range", self._queries[name], start=start, end=end, step=1)
        return {
            s["metric"].get("group", ""): ([float(t) for t, _ in s["values"]], [float(v) for _, v in s["values"]])
            for s in found
        }
