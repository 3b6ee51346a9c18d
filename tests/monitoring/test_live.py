"""Service, Prometheus and Alertmanager as real processes under real traffic: panels have data, drift is told and ends.

Rules run with five minutes as ten seconds; see tests/monitoring/stack.py. The tests share one stack, in file order: it
is fresh, then gets in-distribution images, then noise, then in-distribution images again.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from service.contract import bundle
from tests.live import ROOT
from tests.monitoring import stack, traffic
from tests.monitoring.stack import SHORT_S, Stack, wait

BUNDLE = ROOT / "models" / "cifar10-lt" / "1"
DASHBOARDS = sorted((ROOT / "docker" / "grafana" / "dashboards").glob("*.json"))
FILLED = {
    "$model": ".*",
    "$version": ".*",
    "$group": "head|middle.*|tail|balanced|many|medium|few",
    "$__rate_interval": f"{SHORT_S}s",
    "$__range": stack.LONG,
}
IMAGES = 1000
PAUSE_S = 0.05  # so that neither the service nor the other tests' machine is saturated
SHORT = 'window="5m"'
WHOLE = 'window="1h"'  # as long as the test, in here
DRIFT = "TailGuardScoreDrift"

pytestmark = pytest.mark.skipif(
    not all(map(stack.program, stack.PROGRAMS)),
    reason="prometheus or alertmanager is not installed: apt-get install prometheus prometheus-alertmanager",
)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack.running(tmp_path_factory.mktemp("stack"), BUNDLE) as found:
        yield found


@pytest.fixture(scope="module")
def usual() -> traffic.Images:
    return traffic.in_distribution(BUNDLE, IMAGES)


def evaluated(live: Stack, scrapes: int) -> None:
    """Wait until Prometheus has scraped, and evaluated the rules on, what is there now."""
    asked = "prometheus_rule_group_iterations_total{rule_group=~'.*;tailguard-model-alerts'}"
    begin = live.value(asked)
    wait(lambda: live.value(asked) >= begin + scrapes, f"{scrapes} evaluations of the rules")


def faults(live: Stack, path: Any) -> list[str]:
    """Panels of a dashboard with a query that gives nothing, or something that is no number."""
    found = []
    for panel in json.loads(path.read_text())["panels"]:
        for target in panel["targets"]:
            expr = target["expr"]
            for name, value in FILLED.items():
                expr = expr.replace(name, value)
            if target.get("instant"):
                last = [float(series["value"][1]) for series in live.ask(expr)]
            else:
                last = [float(series["values"][-1][1]) for series in live.ask_range(expr, 5)]
            if not last and "Empty for a bundle" in panel["description"]:
                continue  # this one gives no reasons and has no taxonomy
            if not last or not all(map(math.isfinite, last)):
                found.append(f"{panel['title']}: {expr}: {last}")
    return found


def variables(live: Stack, path: Any) -> dict[str, list[str]]:
    """What Grafana offers for each variable of a dashboard; queries are label_values(series, label)."""
    found = {}
    for variable in json.loads(path.read_text())["templating"]["list"]:
        series, label = variable["query"]["query"].removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
        for name, value in FILLED.items():
            series = series.replace(name, value)
        answer = live.prometheus.get(f"/api/v1/label/{label}/values", params={"match[]": series})
        found[variable["name"]] = answer.raise_for_status().json()["data"]
    return found


def alarmed(live: Stack) -> list[Any]:
    """Alerts about decisions and the model, pending ones too; those about speed are the test machine's affair."""
    return live.ask('ALERTS{alertname=~"TailGuard(Rejection|Score|Tail|Model|Provider|Down|Ledger).*"}')


def test_every_panel_has_data_on_a_fresh_stack(live: Stack) -> None:
    wait(lambda: live.ask("model_version:tailguard_ks:distance"), "the first evaluation of the rules")
    evaluated(live, 3)
    assert live.ask("sum(tailguard_decisions_total)")[0]["value"][1] == "0"
    for path in DASHBOARDS:
        assert faults(live, path) == [], path.stem
    offered = {"model": ["cifar10-lt"], "version": ["1"], "group": ["few", "many", "medium"]}
    assert [variables(live, path) for path in DASHBOARDS] == [offered, offered, {}, offered]
    assert live.value(f"model_version:tailguard_ks:distance{{{SHORT}}}") == 0
    assert live.state("TailGuardDown") == "inactive"


def test_images_like_those_of_calibration_are_no_drift(live: Stack, usual: traffic.Images) -> None:
    with traffic.Traffic(live.service, usual, PAUSE_S) as sent:
        wait(lambda: len(sent.scores) >= 1.5 * IMAGES, f"{1.5 * IMAGES:g} images")
        wait(lambda: live.value(f"model_version:tailguard_ks:images{{{SHORT}}}") >= 500, "500 images in the window")
        for path in DASHBOARDS:
            assert faults(live, path) == [], path.stem
        assert live.value(f"model_version:tailguard_ks:distance{{{SHORT}}}") < 0.06
        rejected = live.value(f'model_version_group:tailguard_rejection:ratio{{{SHORT},group="all"}}')
        expected = live.value('tailguard_expected_rejection{group="all"}')
        assert rejected == pytest.approx(expected, abs=0.02)
        assert alarmed(live) == []
    evaluated(live, 3)
    _promql_agrees_with_numpy(live, np.array(sent.scores))


def _promql_agrees_with_numpy(live: Stack, scores: np.ndarray) -> None:
    """The distance that the rules computed of all images so far, and one from the scores themselves."""
    reference = np.sort(bundle.read(BUNDLE).calibration.id_scores)
    found = live.ask("tailguard_calibration_cdf")
    bounds = np.sort([float(series["metric"]["le"]) for series in found])
    ours = np.searchsorted(np.sort(scores), bounds, "right") / len(scores)
    theirs = np.searchsorted(reference, bounds, "right") / len(reference)
    distance = np.abs(ours - theirs).max()
    assert live.value("sum(tailguard_deciding_score_count)") == len(scores)
    assert live.value(f"model_version:tailguard_ks:distance{{{WHOLE}}}") == pytest.approx(distance, abs=1e-9)
    every = np.concatenate([scores, reference])
    exact = np.abs(
        np.searchsorted(np.sort(scores), every, "right") / len(scores)
        - np.searchsorted(reference, every, "right") / len(reference)
    ).max()
    assert distance <= exact < distance + 0.05


def test_noise_is_told_to_the_webhook_and_so_is_its_end(live: Stack, usual: traffic.Images) -> None:
    seen = []

    def at(state: str) -> bool:
        now = live.state(DRIFT, window="5m")
        if not seen or seen[-1] != now:
            seen.append(now)
        return now == state

    def told(status: str) -> list[dict[str, Any]]:
        wanted = {"alertname": DRIFT, "window": "5m"}
        return [a for a in live.notified if a["status"] == status and wanted.items() <= a["labels"].items()]

    with traffic.Traffic(live.service, traffic.outliers(IMAGES // 2), PAUSE_S) as sent:
        wait(lambda: at("firing"), "the alert")
        alert = wait(lambda: told("firing"), "the webhook to hear of the alert")[0]
        evaluated(live, 2)
        distance = live.value(f"model_version:tailguard_ks:distance{{{SHORT}}}")
        for path in DASHBOARDS:
            assert faults(live, path) == [], path.stem
        sent.send(usual)
        wait(lambda: at("inactive"), "the end of the alert")
        wait(lambda: told("resolved"), "the webhook to hear of the end")
    assert seen[-3:] == ["pending", "firing", "inactive"]
    assert distance > 0.3
    assert alert["labels"]["severity"] == "warning"
    assert alert["annotations"]["summary"] == "Scores of cifar10-lt 1 are not those of its calibration"
    assert "error expanding" not in str(live.notified)
