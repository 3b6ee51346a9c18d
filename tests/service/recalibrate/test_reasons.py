"""Reasons of reviewed rows, by hand: they follow from the scores, the new threshold and what was unfit."""

from pathlib import Path

import numpy as np
import pytest

from service.contract import bundle
from service.contract.bundle import Manifest
from service.contract.calibration.calibrate import Scored, Weighted
from service.recalibrate import measured, reasons
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
