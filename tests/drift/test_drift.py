"""The drift alerts as the simulation computes them: by hand, against the rule files, and against promtool itself."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.contract.bundle import read
from service.observe.class_mix import expected_cdf, expected_images
from tests.drift import report, rules
from tests.drift.rules import EVALUATION_S, HOLD_S, Expected, firing, ks, rejection, wilson_lower, z_score
from tests.drift.scores import BUNDLE, GROUPS, IN_DISTRIBUTION
from tests.drift.simulate import BALANCED, REDRAWN, TOGETHER, World, delays, false_alarms
from tests.drift.streams import Counts, over_window
from tests.live import ROOT

RULES = ROOT / "docker" / "prometheus" / "rules"
PER_HOUR = 3600 // EVALUATION_S


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def counts(group: list[float], rejected: list[float], bucket: list[float]) -> Counts:
    return Counts(np.array(group), np.array(rejected), np.array(bucket))


def expected(share: float = 0.05, images: float = 1000) -> Expected:
    return Expected(np.full(4, share), np.full(4, images), np.array([0.5, 1.0]))


def test_kept_scores_are_those_of_the_calibration(world: World) -> None:
    assert sorted(world.sets["calibration"].score.tolist()) == list(world.manifest.calibration.id_scores)
    assert set(world.sets) == {*IN_DISTRIBUTION, *world.manifest.evaluation["ood"]}
    point = world.manifest.operating_points["id95"].group_cost.calibration
    shares = [point.id_rejected_by_predicted_group[g] for g in GROUPS]
    assert world.expected().rejection.tolist() == pytest.approx([*shares, point.id_rejected])


def test_by_hand() -> None:
    seen = counts([300, 80, 20], [30, 4, 2], [300, 100])
    share, n = rejection(seen)
    assert share.tolist() == [0.1, 0.05, 0.1, 0.09]
    # pooled (30 + 50) / 1300; 0.05 / sqrt(0.0615 · 0.9385 · (1/300 + 1/1000)) = 3.16
    assert z_score(share, n, expected())[0] == pytest.approx(3.160, abs=1e-3)
    distance, bound = ks(seen, expected())
    assert (distance, bound) == (0.25, pytest.approx(2.2252 * (1 / 400 + 1 / 1000) ** 0.5))
    # Wilson at z = 4 for 50 of 100: (0.5 + 0.08 - 4 sqrt(0.0025 + 0.0004)) / 1.16
    assert wilson_lower(np.array(0.5), np.array(100.0)) == pytest.approx((0.58 - 4 * 0.0029**0.5) / 1.16)
    assert wilson_lower(np.array(0.0), np.array(0.0)) == 0


def test_no_alarm_on_20_images_however_they_come() -> None:
    for group in ([20, 0, 0], [0, 20, 0], [0, 0, 20], [7, 7, 6]):
        for rejected in (group, [0, 0, 0]):
            seen = counts(group, rejected, [0, 20])
            fired = [name for name, condition in rules.ALERTS.items() if condition(seen, expected(0.06)).any()]
            assert fired == [rules.UNTESTED]


def test_an_alarm_needs_its_condition_at_every_evaluation_of_the_hold() -> None:
    steps = HOLD_S // EVALUATION_S
    condition = np.zeros((60, 2), bool)
    condition[5 : 5 + steps + 1, 0] = True  # from 5 on for just the hold
    condition[40 : 40 + steps, 1] = True  # one evaluation short
    condition[30:35, 0] = True
    assert np.flatnonzero(firing(condition)).tolist() == [5 + steps]


def test_windows_are_sums_of_what_is_behind() -> None:
    columns = np.arange(5.0)[:, None] * [1, 10]
    assert over_window(columns, 3).tolist() == [[3, 30], [6, 60], [9, 90]]


def test_what_arrives_is_what_is_expected(world: World) -> None:
    shares = world.stream(BALANCED)
    drawn = world.cells.draw(np.random.default_rng(0), shares, 50, (4000,))
    assert drawn.mean(0) == pytest.approx(50 * world.cells.expected(shares), abs=0.6)
    seen = world.cells.split(drawn)
    assert (seen.bucket.sum(-1) == seen.images).all()
    assert (seen.rejected <= seen.group).all()


def test_calm_where_nothing_changes_and_awake_where_it_does(world: World) -> None:
    def alarms(stream: str) -> dict[str, float]:
        rows = false_alarms(world, stream, 20.0, 1, np.random.default_rng(1))
        return {r["alert"]: r["share_of_time_firing"] for r in rows if r["window"] == "any"}

    calm, moved = alarms(REDRAWN), alarms(BALANCED)
    assert [calm[name] for name in rules.ALERTS if name != rules.UNTESTED] == [0, 0, 0]
    assert moved["TailGuardScoreDrift"] > 0.99
    rows = delays(world, "chars74k", 2.0, 10, np.random.default_rng(1))
    (first,) = (r for r in rows if r["alert"] == TOGETHER)
    assert first["noticed"] == 10
    assert HOLD_S <= first["median_s"] <= first["p90_s"] <= 3600


def test_a_balanced_stream_is_no_drift_once_its_mix_is_known_and_outliers_still_are(world: World) -> None:
    """Without any chance error of the live side; the bound is that of calibration images alone, brought to the mix."""
    classes, bounds = len(world.manifest.classes), [*world.cells.bounds.tolist(), np.inf]

    def distance(shares: np.ndarray, mix: np.ndarray | None) -> float:
        seen = world.cells.split(world.cells.expected(shares) * 1e6)
        return float(ks(seen, replace(world.expected(), cdf=np.array(expected_cdf(world.manifest, bounds, mix))))[0])

    def bound(mix: np.ndarray | None) -> float:
        return rules.KS_C / expected_images(world.manifest, mix) ** 0.5

    balanced = world.stream(BALANCED)
    assert distance(balanced, None) == pytest.approx(float(ks(world.cells.split(world.cells.expected(balanced) * 1e6),
                                                              world.expected())[0]))  # fmt: skip
    even = np.full(classes, 1 / classes)
    assert distance(balanced, None) > 4 * bound(None)
    assert distance(balanced, even) < bound(even) / 4
    own = np.array(world.manifest.calibration.class_shares)
    assert distance(world.stream(REDRAWN), own) < 0.01
    of_class = np.array([GROUPS.index(info.group) for info in world.manifest.classes])
    noticed = set()
    for name in world.ood:  # a fifth of the stream; those that are accepted spoil the estimate as far as they can
        scored = world.sets[name]
        accepted = scored.predicted[scored.score <= world.cells.limits[of_class[scored.predicted]]]
        mix = 0.8 * 0.95 * own + 0.2 * np.bincount(accepted, minlength=classes) / len(scored.score)
        shares = 0.8 * world.stream(REDRAWN) + 0.2 * world.cells.shares(name)
        mix /= mix.sum()
        assert distance(shares, own) > bound(None)
        if distance(shares, mix) > bound(mix):
            noticed.add(name)
    assert noticed == {*world.ood} - {"cifar100"}  # which looks most like the classes: .065 against .066


def alert_text(name: str) -> str:
    parts = re.split(r"- alert: ", (RULES / "alerts.yml").read_text())
    return next(part for part in parts if part.startswith(f"{name}\n"))


def test_the_numbers_are_those_of_the_rule_files() -> None:
    texts = {name: alert_text(name) for name in rules.ALERTS if name != rules.UNTESTED}
    assert all(f"for: {HOLD_S // 60}m" in text for text in texts.values())
    off = texts["TailGuardRejectionOff"]
    assert f":z) > {rules.Z:g}\n" in off
    assert f":increase >= {rules.REJECTION_IMAGES}\n" in off
    assert f") > {rules.EFFECT}\n" in off
    assert f":images >= {rules.KS_IMAGES}\n" in texts["TailGuardScoreDrift"]
    assert f'{{group=~"tail|few"}} >= {rules.TAIL_IMAGES}\n' in texts["TailGuardTailRefused"]
    assert f"> on (model, version) group_left {rules.TAIL_TIMES:g} * " in texts["TailGuardTailRefused"]
    recording = (RULES / "recording.yml").read_text()
    windows = re.findall(r"labels: \{window: (\w+)\}\n\s+expr: .*tailguard_(?:decisions|deciding)", recording)
    assert set(windows) == set(rules.WINDOWS_S)
    prometheus = (RULES.parent / "prometheus.yml").read_text()
    assert f"evaluation_interval: {EVALUATION_S}s" in prometheus


def promtool_case(world: World, columns: np.ndarray) -> tuple[list[dict[str, str]], dict[str, float]]:
    """Series that grow by `columns` every evaluation, and what each recorded series must be after an hour."""
    seen, promised = world.cells.split(columns), world.expected()
    own = 'model="m",version="1"'
    series = {
        f"tailguard_calibration_images{{{own}}}": f"{world.images}+0x{PER_HOUR}",
        f"tailguard_model_info{{{own}}}": f"1+0x{PER_HOUR}",
    }
    for i, group in enumerate(GROUPS):
        label = f'{own},class="c{i}",group="{group}"'
        for decision, step in (("reject", seen.rejected[i]), ("accept", seen.group[i] - seen.rejected[i])):
            series[f'tailguard_decisions_total{{{label},decision="{decision}"}}'] = f"0+{step:.0f}x{PER_HOUR}"
        share = promised.images[i] / world.images
        series[f"tailguard_expected_class_share{{{label}}}"] = f"{float(share)!r}+0x{PER_HOUR}"
    for group, share in zip((*GROUPS, "all"), promised.rejection.tolist(), strict=True):
        series[f'tailguard_expected_rejection{{{own},group="{group}"}}'] = f"{share!r}+0x{PER_HOUR}"
    bounds = [*(str(b) for b in world.cells.bounds), "+Inf"]
    for le, step, share in zip(bounds, np.cumsum(seen.bucket), promised.cdf, strict=True):
        series[f'tailguard_deciding_score_bucket{{{own},group="many",le="{le}"}}'] = f"0+{step:.0f}x{PER_HOUR}"
        series[f'tailguard_calibration_cdf{{{own},le="{le}"}}'] = f"{float(share)!r}+0x{PER_HOUR}"
    hour = world.cells.split(columns * PER_HOUR)
    share, n = rejection(hour)
    distance, bound = ks(hour, promised)
    wanted = {
        'model_version:tailguard_ks:distance{window="1h"}': float(distance),
        'model_version:tailguard_ks:bound{window="1h"}': float(bound),
    }
    for i, group in enumerate((*GROUPS, "all")):
        at = f'{{window="1h",group="{group}"}}'
        wanted[f"model_version_group:tailguard_rejection:z{at}"] = float(z_score(share, n, promised)[i])
        wanted[f"model_version_group:tailguard_rejection:wilson_lower{at}"] = float(wilson_lower(share, n)[i])
    return [{"series": k, "values": v} for k, v in series.items()], wanted


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (apt-get install prometheus)")
def test_the_recording_rules_compute_what_the_simulation_computes(world: World, tmp_path: Path) -> None:
    for i, name in enumerate(("calibration", "scenes")):
        columns = world.cells.draw(np.random.default_rng(i), world.cells.shares(name), 30, ())
        series, wanted = promtool_case(world, columns)
        cases = [
            {"expr": f"sum(abs({m} - ({v!r})) < bool 1e-6)", "eval_time": "1h", "exp_samples": [{"value": 1}]}
            for m, v in wanted.items()
        ]
        tests = [{"interval": f"{EVALUATION_S}s", "input_series": series, "promql_expr_test": cases}]
        files = [str(RULES / "recording.yml")]
        whole = {"rule_files": files, "evaluation_interval": f"{EVALUATION_S}s", "tests": tests}
        (tmp_path / "case.yml").write_text(json.dumps(whole))
        told = subprocess.run(["promtool", "test", "rules", tmp_path / "case.yml"], capture_output=True, text=True)
        assert told.returncode == 0, told.stdout + told.stderr


def test_the_committed_results_are_of_this_bundle_and_make_both_tables(world: World) -> None:
    found = report.results()
    assert found["bundle"] == read(BUNDLE).sha256
    assert found["images"] == {name: len(scored.score) for name, scored in world.sets.items()}
    lines = report.block().splitlines()
    assert sum(line.startswith("|") for line in lines) == 4 + 4 * 3 + len(world.ood)
    assert len({line.count("|") for line in lines[:14]}) == 1


def test_wilson() -> None:
    assert report.wilson(0, 100) == (0.0, pytest.approx(0.0370, abs=1e-4))  # z² / (n + z²)
    assert report.wilson(50, 100) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))
