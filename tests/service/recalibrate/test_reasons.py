"""Reasons of reviewed rows, by hand: they follow from the scores, the new threshold and what was unfit."""

from pathlib import Path

import numpy as np
import pytest

from service.contract import bundle, outcomes
from service.contract.bundle import Manifest
from service.contract.calibration.calibrate import Scored, Weighted
from service.contract.points import OperatingPoint
from service.recalibrate import measured, reasons, report
from service.recalibrate.measured import Sample
from service.recalibrate.rows import Row
from tests.service import refusing, tiny
from tests.service.refusing import AT, EITHER


def row(truth: str | None, unknown: float, score: float, weight: float = 1.0, *, unfit: bool = False) -> Row:
    scores = {"energy": AT + unknown, "msp": 0.1, EITHER: score}
    return Row("red", truth, scores, weight, unfit)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return bundle.read(refusing.write(tmp_path / "tiny"))


def test_shares_are_weighted_and_follow_from_the_new_threshold(manifest: Manifest) -> None:
    known = [
        row("red", -3, -3, 6.0), row("red", 2, 2), row("green", 0, 1.5), row("red", -9, -9, unfit=True),
        row("red", 0.4, 0.4),
    ]  # fmt: skip
    strangers = [row(None, 5, 5), row(None, 0, 3)]
    labels, weights = np.array([0, 0, 1, 0, 0]), np.array([r.weight for r in known])
    inside = Weighted(Scored(np.zeros(5), np.zeros(5, np.int64), labels), weights, np.ones(3))
    outside = Weighted(Scored(np.zeros(2), np.zeros(2, np.int64)), np.ones(2), np.ones(3))
    found = Sample(inside, outside, measured.groups_of(manifest), known, strangers)
    point = {"threshold": 9.0, "group_thresholds": dict.fromkeys(tiny.GROUPS, 1.0)}
    told = reasons.told(manifest, point, found)["measured"]
    assert told["calibration"]["all"] == {"images": 5, "unknown": 0.1, "unsure": 0.1, "unfit": 0.1}
    assert told["calibration"]["by_group"]["medium"] == {"images": 1, "unknown": 0.0, "unsure": 1.0, "unfit": 0.0}
    assert told["outliers"] == {reasons.OUTLIERS: {"images": 2, "unknown": 0.5, "unsure": 0.5, "unfit": 0.0}}
    assert told["test"] is None


def test_an_unfit_image_counts_as_refused_whatever_it_scored(manifest: Manifest) -> None:
    rows = [row("red", 0, s) for s in range(5)] + [row("red", 0, -9, unfit=True)]
    scores = measured._weighted(manifest, measured.groups_of(manifest), rows).images.scores
    assert scores[-1] > 4
    assert scores[:5].tolist() == [0, 1, 2, 3, 4]


def test_unfit_images_are_refused_in_every_figure(manifest: Manifest) -> None:
    """Three known images of 120 and one outlier of 60 are unfit, with the lowest scores of all."""
    high = OperatingPoint(**tiny.point(9.0))
    points = {"id95": high.model_copy(update={"level": 0.95}), "ood95": high}
    manifest = manifest.model_copy(update={"operating_points": points})
    known = [
        Row(name, name, {"energy": AT, "msp": 0.1, EITHER: s}, 1.0, unfit=s == -50)
        for name in tiny.CLASSES
        for s in (-50, *range(-39, 0))
    ]
    strangers = [row(None, 0, s, unfit=s == -60) for s in (-60, *range(-30, 29))]
    groups = measured.groups_of(manifest)
    inside, outside = (measured._weighted(manifest, groups, rows) for rows in (known, strangers))
    found = Sample(inside, outside, groups, known, strangers)
    made, record = measured.measured(manifest, found)
    assert sorted(record["id_scores"])[:3] == [-50, -50, -50]  # what a live score is compared with is what was scored
    # of 40 one may be refused at 5%, as the next would have a p-value of 3/41: the unfit one is it
    refused = {name: made[name]["group_cost"]["calibration"]["id_rejected"] for name in made}
    assert refused["id95"] == 1 / 40
    # of 60 outliers two may be missed, and the unfit one is not missed
    assert made["ood95"]["threshold"] == pytest.approx(-28, abs=0.1)
    assert made["ood95"]["global_cost"]["calibration"]["outliers_caught"] == pytest.approx(58 / 60)
    old = {(c.point, c.where): c.old for c in report.compare(manifest, made, found)}
    assert old["id95", "all"] == old["ood95", "many"] == 1 / 40  # nothing but what was unfit lay above 9
    turned_out = outcomes.decode(outcomes.encode(found.outcomes()), 3)
    assert turned_out.unfit is not None
    assert turned_out.unfit.tolist() == [r.unfit for r in (*known, *strangers)]
