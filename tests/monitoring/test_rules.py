"""Prometheus' configuration, rules and alerts through the real promtool."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring.stack import PROMETHEUS, prometheus_configuration, shortened

RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))
TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))


@pytest.fixture(scope="session")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    return found


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "rules" / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_configuration(promtool: str) -> None:
    run(promtool, "check", "config", "--syntax-only", PROMETHEUS / "prometheus.yml")


def test_configuration_and_rules_as_the_live_test_has_them(promtool: str, tmp_path: Path) -> None:
    config = prometheus_configuration(tmp_path, "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")
    assert "rule files" in run(promtool, "check", "config", config)


def test_rules(promtool: str) -> None:
    run(promtool, "check", "rules", *RULES)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_where_they_should_and_nowhere_else(promtool: str, path: Path) -> None:
    run(promtool, "test", "rules", path)


def test_every_alert_is_tested_and_says_what_to_do() -> None:
    tested = "".join(path.read_text() for path in TESTS)
    for alert in alerts():
        firing = rf'alertname="{alert["alert"]}",alertstate="firing"'
        assert firing in tested, alert["alert"]
        assert alert["labels"]["severity"] in ("info", "warning", "critical")
        assert set(alert["annotations"]) == {"summary", "description", "action"}
        assert all(len(text) > 15 for text in alert["annotations"].values())


def test_the_panel_of_what_refused_images_are_told_shows_shares(promtool: str, tmp_path: Path) -> None:
    """Two replicas: of each eight refused images four are told nothing, three a node below the root, one a deeper."""
    dashboard = PROMETHEUS.parent / "grafana" / "dashboards" / "tailguard-decisions.json"
    [panel] = [p for p in json.loads(dashboard.read_text())["panels"] if p["title"].startswith("What can still")]
    expr = panel["targets"][0]["expr"].replace("$model", ".*").replace("$version", ".*")
    series = 'tailguard_refused_told_total{{instance="{}",model="m",version="1",depth="{}"}}'
    asked = {
        "expr": expr,
        "eval_time": "2h",
        "exp_samples": [
            {"labels": f'{{depth="{depth}"}}', "value": share}
            for depth, share in (("nothing", 0.5), ("1", 0.375), ("2", 0.125))
        ],
    }
    given = [
        {"series": series.format(instance, depth), "values": f"0+{step}x120"}
        for instance, steps in {"i": (1, 3, 1), "j": (3, 0, 0)}.items()
        for depth, step in enumerate(steps)
    ]
    test = {"interval": "1m", "input_series": given, "promql_expr_test": [asked]}
    path = tmp_path / "told.yml"
    path.write_text(yaml.safe_dump({"rule_files": [], "evaluation_interval": "1m", "tests": [test]}))
    run(promtool, "test", "rules", path)


@pytest.mark.parametrize(("values", "ready"), [("1x20", 1), ("1x5 stale", 0)])
def test_a_replica_that_was_lost_is_not_ready(promtool: str, tmp_path: Path, values: str, ready: int) -> None:
    """Its series end with it: of those that were left every one was ready."""
    dashboard = PROMETHEUS.parent / "grafana" / "dashboards" / "tailguard-service.json"
    [panel] = [p for p in json.loads(dashboard.read_text())["panels"] if p["title"] == "Ready"]
    given = [
        {"series": f'{name}{{instance="{instance}",job="tailguard"}}', "values": of}
        for instance, alive in {"i": "1x20", "j": values}.items()
        for name, of in (("tailguard_ready", alive), ("up", alive.replace("stale", "0x15")))
    ]
    asked = {"expr": panel["targets"][0]["expr"], "eval_time": "10m", "exp_samples": [{"labels": "{}", "value": ready}]}
    path = tmp_path / "ready.yml"
    test = {"interval": "1m", "input_series": given, "promql_expr_test": [asked]}
    path.write_text(yaml.safe_dump({"rule_files": [], "evaluation_interval": "1m", "tests": [test]}))
    run(promtool, "test", "rules", path)


def test_quantiles_of_two_models_with_bounds_of_their_own_are_not_mixed(promtool: str, tmp_path: Path) -> None:
    """Summed, the two have no common bound but infinity: every quantile from a half up was the largest bound of all.
    A third one, which had more images, is no longer in force."""
    dashboard = PROMETHEUS.parent / "grafana" / "dashboards" / "tailguard-decisions.json"
    panels = {panel["title"]: panel for panel in json.loads(dashboard.read_text())["panels"]}
    filled = {"$model": ".*", "$version": ".*", "$group": "many", "$__rate_interval": "1m"}
    models = {"0": ({"21": 0, "22": 90, "+Inf": 90}, 0.9), "1": ({"1": 0, "2": 60, "3": 60, "+Inf": 60}, 0.5),
              "2": ({"11": 0, "12": 30, "13": 30, "+Inf": 30}, 0.7)}  # fmt: skip
    given = []
    for version, (counts, threshold) in models.items():
        ours = f'model="m",version="{version}"'
        if version != "0":
            given.append({"series": f"tailguard_model_info{{{ours}}}", "values": "1x60"})
        for le, step in counts.items():
            for name, more in (("deciding_score", 'group="many"'), ("score", 'score="msp"')):
                series = f'tailguard_{name}_bucket{{instance="i",{ours},{more},le="{le}"}}'
                given.append({"series": series, "values": f"0+{step}x60"})
        for name, values in ((f'deciding_score_count{{{ours},group="many"}}', f"0+{counts['+Inf']}x60"),
                             (f'threshold{{{ours},group="many"}}', f"{threshold}x60")):  # fmt: skip
            given.append({"series": f"tailguard_{name}", "values": values})
    bands = [[("{}", 1 + q)] for q in (0.05, 0.25, 0.5, 0.75, 0.95)]
    medians = [
        (f'{{model="m",version="{version}",score="msp"}}', value)
        for version, value in (("0", 21.5), ("1", 1.5), ("2", 11.5))
    ]
    wanted = {"Deciding score and threshold": [*bands, [('{group="many"}', 0.5)]], "Every score": [medians]}
    asked = []
    for title, samples in wanted.items():
        for target, expected in zip(panels[title]["targets"], samples, strict=True):
            expr = target["expr"]
            for name, value in filled.items():
                expr = expr.replace(name, value)
            told = [{"labels": labels, "value": value} for labels, value in expected]
            asked.append({"expr": f"round({expr}, 0.0001)", "eval_time": "10m", "exp_samples": told})
    test = {"interval": "15s", "input_series": given, "promql_expr_test": asked}
    path = tmp_path / "two.yml"
    path.write_text(yaml.safe_dump({"rule_files": [], "evaluation_interval": "15s", "tests": [test]}))
    run(promtool, "test", "rules", path)


def test_an_alert_that_no_longer_fires_is_noticed(promtool: str, tmp_path: Path) -> None:
    (tmp_path / "rules").mkdir()
    (tmp_path / "tests").mkdir()
    for path in RULES:
        deaf = path.read_text().replace("tailguard_ks:images >= 500", "tailguard_ks:images >= 5e9")
        (tmp_path / "rules" / path.name).write_text(deaf)
    copied = shutil.copy(PROMETHEUS / "tests" / "decisions.yml", tmp_path / "tests")
    done = subprocess.run([promtool, "test", "rules", copied], capture_output=True, text=True)
    assert done.returncode != 0
    assert "TailGuardScoreDrift" in done.stdout + done.stderr


def test_only_durations_differ_in_the_live_test() -> None:
    def without(text: str) -> str:
        return re.sub(r"\[\w+\]|(?m:^ +for: \w+$)", "", text)

    for path in RULES:
        assert without(shortened(path.read_text())) == without(path.read_text())
