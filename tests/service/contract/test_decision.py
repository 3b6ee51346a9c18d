"""service/contract/decision.py against values worked out by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from service.contract import bundle
from service.contract.bundle import Manifest
from service.contract.decision import decide, decide_row, p_value, rejects
from service.contract.reference import Reference
from tests.service import tiny


@pytest.fixture
def manifest(tiny_bundle: Path) -> Manifest:
    return bundle.read(tiny_bundle)


def test_strictly_larger_is_rejected() -> None:
    assert rejects(1.0001, 1.0)
    assert not rejects(1.0, 1.0)
    assert not rejects(-math.inf, 1.0)
    assert rejects(math.inf, 1.0)
    assert rejects(math.nan, 1.0)


@pytest.mark.parametrize(
    ("class_index", "scope", "threshold"),
    [(0, "group", -5.5), (1, "group", -5.25), (2, "group", -5.0), (0, "global", -5.5), (2, "global", -5.5)],
)
def test_threshold_in_force(manifest: Manifest, class_index: int, scope: str, threshold: float) -> None:
    below = decide(manifest, class_index, threshold, "id95", scope)  # type: ignore[arg-type]
    above = decide(manifest, class_index, threshold + 1e-6, "id95", scope)  # type: ignore[arg-type]
    assert (below.decision, above.decision) == ("accept", "reject")
    assert (below.threshold, below.scope, below.operating_point) == (threshold, scope, "id95")


def test_operating_point_decides(manifest: Manifest) -> None:
    assert decide(manifest, 0, -6.0, "id95", "global").decision == "accept"
    assert decide(manifest, 0, -6.0, "ood95", "global").decision == "reject"
    with pytest.raises(KeyError):
        decide(manifest, 0, -6.0, "id99", "global")


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (-100.0, (1 + 99) / 100),  # below all 99 calibration scores
        (100.0, 1 / 100),  # above all of them
        (tiny.ID_SCORES[-1], (1 + 1) / 100),  # equal to the largest: it counts
        (tiny.ID_SCORES[50], (1 + 49) / 100),
        (math.nan, 1 / 100),
    ],
)
def test_p_value(manifest: Manifest, score: float, expected: float) -> None:
    for scope, group in (("group", "many"), ("global", "many")):
        assert p_value(manifest, score, scope, group) == pytest.approx(expected, abs=1e-12)  # type: ignore[arg-type]


def test_p_values_follow_the_scope(manifest: Manifest) -> None:
    few = Reference(images=1, borrowed=0, scores=(-9.0,), p_values=(1.0, 0.5))
    references = manifest.calibration.references | {"few": few}
    other = manifest.model_copy(
        update={"calibration": manifest.calibration.model_copy(update={"references": references})}
    )
    assert decide(other, 2, -8.0, "id95", "group").p_value == 0.5
    assert decide(other, 2, -8.0, "id95", "global").p_value == decide(manifest, 2, -8.0, "id95", "global").p_value


def test_not_a_number_is_rejected_everywhere(manifest: Manifest) -> None:
    for point in manifest.operating_points:
        assert decide(manifest, 0, math.nan, point, "group").decision == "reject"


def test_a_row_is_decided_by_its_most_probable_class_and_the_deciding_score(manifest: Manifest) -> None:
    scores = {"energy": -5.2, "msp": 0.9}  # energy decides; -5.2 is above the thresholds of classes 0 and 1 only
    for probabilities, class_index, decision in (
        ([0.1, 0.7, 0.2], 1, "reject"),
        ([0.1, 0.2, 0.7], 2, "accept"),
        ([0.4, 0.4, 0.2], 0, "reject"),  # the first of equals
    ):
        verdict = decide_row(manifest, np.array(probabilities, np.float32), scores, "id95", "group")
        assert (verdict.class_index, verdict.score, verdict.decision) == (class_index, -5.2, decision)
        assert verdict == decide(manifest, class_index, -5.2, "id95", "group")
