"""The demo: its figures by hand, against the real metrics and promtool; its traffic against the bundle; its display."""

import io
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from service.contract.bundle import read
from service.contract.decision import decide
from service.inference.engine import Engine
from service.observe.metrics import Metrics
from service.observe.model_metrics import ModelMetrics
from tests.demo import traffic
from tests.demo.display import Display, sparkline
from tests.demo.pictures import Familiar, strange
from tests.demo.watch import Seen, between, parse, queries
from tests.drift.rules import KS_C
from tests.drift.scores import BUNDLE, GROUPS, load

BY_HAND = """
tailguard_decisions_total{{class="a",group="many",decision="accept"}} {many}
tailguard_decisions_total{{class="b",group="many",decision="accept"}} 0
tailguard_decisions_total{{class="a",group="many",decision="reject"}} {rejected}
tailguard_decisions_total{{class="c",group="few",decision="accept"}} 0
tailguard_decisions_total{{class="c",group="few",decision="reject"}} {few}
# TYPE tailguard_deciding_score histogram
tailguard_deciding_score_bucket{{group="many",le="0.5"}} {low}
tailguard_deciding_score_bucket{{group="many",le="+Inf"}} {all}
tailguard_calibration_cdf{{le="0.5"}} 0.75
tailguard_calibration_cdf{{le="+Inf"}} 1
tailguard_calibration_images 100
tailguard_expected_rejection{{group="all"}} 0.05
tailguard_expected_rejection{{group="many"}} 0.04
"""


def test_figures_by_hand() -> None:
    before = parse(BY_HAND.format(many=10, rejected=5, few=3, low=2, all=18))
    now = parse(BY_HAND.format(many=16, rejected=7, few=5, low=7, all=28))
    seen = between(before, now)
    assert (seen.images, seen.ks) == (10, 0.25)  # 5 of the 10 new scores are at most 0.5, at calibration 75%
    assert (seen.rejected["all"], seen.rejected["many"], seen.rejected["few"]) == (0.4, 0.25, 1.0)
    assert math.isnan(seen.rejected["medium"])
    assert (seen.expected["all"], seen.expected["many"]) == (0.05, 0.04)
    assert seen.ks_bound == pytest.approx(KS_C * math.sqrt(1 / 10 + 1 / 100))
    nothing = between(now, now)
    assert nothing.images == 0
    assert math.isnan(nothing.ks)
    assert math.isnan(nothing.ks_bound)


@pytest.fixture(scope="module")
def scraped() -> tuple[str, str, np.ndarray]:
    """/metrics before and after 400 CIFAR test images and their scores, by the service's own metrics."""
    manifest, some = read(BUNDLE), load()["test"]
    metrics = Metrics()
    model = ModelMetrics(manifest, "CPUExecutionProvider", "id95", "group")
    metrics.bind(model)
    before = metrics.render().decode()
    for score, predicted in zip(some.score[:400].tolist(), some.predicted[:400].tolist(), strict=True):
        model.count_decision({"msp": score}, decide(manifest, predicted, score, "id95", "group"), by_deployment=True)
    return before, metrics.render().decode(), some.score[:400]


def test_figures_of_the_real_metrics(scraped: tuple[str, str, np.ndarray]) -> None:
    manifest, (before, now, scores) = read(BUNDLE), scraped
    seen = between(parse(before), parse(now))
    reference = np.array(manifest.calibration.id_scores)
    at = np.sort(np.concatenate([reference, scores]))
    live = np.searchsorted(np.sort(scores), at, side="right") / len(scores)
    exact = np.abs(live - np.searchsorted(reference, at, side="right") / len(reference)).max()
    assert exact - 0.05 < seen.ks <= exact  # read at bounds a twentieth apart
    cost = manifest.operating_points["id95"].group_cost.calibration
    assert seen.expected["all"] == cost.id_rejected
    assert (seen.images, seen.calibration_images) == (400, 1241)
    assert set(seen.rejected) == {"all", *GROUPS}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (apt-get install prometheus)")
def test_promql_gives_the_same_figures(scraped: tuple[str, str, np.ndarray], tmp_path: Path) -> None:
    before, now, _ = scraped
    seen = between(parse(before), parse(now))
    wanted = {"images": seen.images, "rejected_all": seen.rejected["all"], "ks": seen.ks, "calibration": 1241.0}
    cases = [
        {"expr": f"abs({queries(30)[name]} - {value!r}) < bool 1e-9", "eval_time": "30s", "exp_samples": [{"value": 1}]}
        for name, value in wanted.items()
    ]
    for name, values in (("rejected", seen.rejected), ("expected", seen.expected)):
        for group in GROUPS:
            expr = f"sum(abs(({queries(30)[name]}) - {values[group]!r} and on (group) vector(1)) < bool 1e-9)"
            expr = expr.replace("vector(1)", f'label_replace(vector(1), "group", "{group}", "", "")')
            cases.append({"expr": expr, "eval_time": "30s", "exp_samples": [{"value": 1}]})
    series = []
    for line in now.splitlines():
        if line.startswith(
            ("tailguard_decisions", "tailguard_deciding", "tailguard_calibration", "tailguard_expected")
        ):
            name, value = line.rsplit(" ", 1)
            steady = name.startswith(("tailguard_calibration", "tailguard_expected"))
            series.append({"series": name, "values": f"{value}+0x30" if steady else f"0+{float(value) / 30!r}x30"})
    tests = [{"interval": "1s", "input_series": series, "promql_expr_test": cases}]
    (tmp_path / "case.yml").write_text(json.dumps({"evaluation_interval": "1s", "tests": tests}))
    told = subprocess.run(["promtool", "test", "rules", tmp_path / "case.yml"], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr


def test_the_first_half_looks_like_the_calibration_and_the_second_does_not() -> None:
    manifest, random = read(BUNDLE), np.random.default_rng(0)
    familiar = Familiar(BUNDLE, manifest, load()["calibration"], random, images=1500)
    engine = Engine(BUNDLE, manifest)

    def rejected(images: np.ndarray) -> float:
        out = engine.run(images)
        pairs = zip(out.probabilities.argmax(1).tolist(), out.scores["msp"].tolist(), strict=True)
        return float(np.mean([decide(manifest, k, s, "id95", "group").decision == "reject" for k, s in pairs]))

    expected = manifest.operating_points["id95"].group_cost.calibration.id_rejected
    assert rejected(np.stack([familiar.next() for _ in range(600)])) == pytest.approx(expected, abs=0.03)
    assert rejected(np.stack([strange(random) for _ in range(600)])) > 0.5


def test_the_whole_demo_plain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(traffic, "POOL_IMAGES", 300)
    monkeypatch.setattr(sys, "argv", ["traffic", "--seconds", "4", "--rate", "20", "--window", "2"])
    traffic.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("20 images/s to http://127.0.0.1:")
    assert lines[1].startswith("   1 s  ID:")
    assert lines[-1] == "80 images answered, 0 failed, 0 not sent: too slow"
    assert not any("\x1b" in line for line in lines)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_redrawn_in_place() -> None:
    out = Terminal()
    display = Display(10, 5, 30, out)
    rejected = dict.fromkeys(("all", *GROUPS), 0.5) | {"few": math.nan}
    seen = Seen(100, rejected, dict.fromkeys(("all", *GROUPS), 0.05), 0.4, 1000)
    display.show(1, "ID", seen)
    lines = out.getvalue().count("\n")
    assert not re.search(r"\x1b\[\d+A", out.getvalue())
    display.show(2, "OOD", seen)
    assert out.getvalue().count("\n") == 2 * lines
    assert out.getvalue().count(f"\x1b[{lines}A") == 1  # up as many lines as were drawn
    assert "50.0%" in out.getvalue()


def test_a_sparkline_shows_the_last_values() -> None:
    assert sparkline([0.0, 0.5, 1.0, math.nan], 3) == "▄█ "
