"""Refused at idNN and p <= 1 - .NN are the same thing, whatever the calibration scores, groups, levels and mix."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.contract.bundle import Manifest
from service.contract.calibration import calibrate, conformal, distributions
from service.contract.calibration.calibrate import Scored, Weighted
from service.contract.calibration.groups import Groups, group_classes
from service.contract.calibration.mix import ClassMix
from service.contract.decision import decide, decide_row
from tests.service import tiny

LITERALS = {"id95": 0.05, "id90": 0.1, "id99": 0.01, "id80": 0.2}
COUNTS = ([7], [900, 30], [500, 500, 10, 10], [2000, 300, 50, 9, 1])
# Ties come from small whole numbers; the others are as a network gives them, in float32.
SCORES = st.one_of(
    st.integers(-3, 3).map(float), st.floats(-1e6, 1e6, width=32, allow_nan=False),
    st.sampled_from([0.0, -0.0, 1e-7, 0.9999999, 1e-38]),
)  # fmt: skip


def manifest(images: Scored, groups: Groups, mix: ClassMix, levels: tuple[float, ...]) -> Manifest:
    """One that decides by these calibration images; everything else is that of the tiny bundle."""
    fields = tiny.manifest()
    weighted = Weighted.by_mix(images, mix, groups)
    held = calibrate.supported_levels(levels, weighted)
    references = calibrate.references(weighted, groups, held)
    points = calibrate.keep_points(references, weighted, groups, held, mix)
    costs = {"calibration": calibrate.cost(next(iter(points.values())), "group", groups, images, []), "test": None}
    classes = [
        {"name": f"c{c}", "train_count": int(n), "group": str(group), "accuracy": None, "rejected": None}
        for c, (n, group) in enumerate(zip(groups.counts, groups.of_class, strict=True))
    ]
    calibration = fields["calibration"] | {
        "in_distribution_images": len(images.scores), "images_by_group": {}, "class_mix": mix.name,
        "class_shares": mix.shares.tolist(), "id_scores": distributions.distribution(images.scores, weighted.weights),
        "references": {name: reference.model_dump() for name, reference in references.items()}, "quantiles": {},
    }  # fmt: skip
    changed: dict[str, Any] = {
        "format": 2, "groups": [g.model_dump() for g in groups.groups], "classes": classes, "golden": [],
        "operating_points": {n: p | {"global_cost": costs, "group_cost": costs} for n, p in points.items()},
        "default_operating_point": next(iter(points)), "calibration": calibration, "files": {"model.onnx": "0" * 64},
    }  # fmt: skip
    return Manifest.model_validate(fields | changed)


def contradictions(made: Manifest, scores: list[float]) -> list[tuple[Any, ...]]:
    """Images of which decision and p-value say different things."""
    found = []
    for name, point in made.operating_points.items():
        assert point.level is not None
        limit = LITERALS.get(name, round(1 - point.level, 9))
        for index in range(len(made.classes)):
            for scope in ("group", "global"):
                for score in scores:
                    verdict = decide(made, index, score, name, scope)  # type: ignore[arg-type]
                    if (verdict.decision == "reject") != (verdict.p_value <= limit):
                        found.append((name, index, scope, score, verdict))
    return found


@st.composite
def calibrations(draw: st.DrawFn) -> tuple[Scored, Groups, ClassMix, tuple[float, ...]]:
    counts = draw(st.sampled_from(COUNTS))
    classes = st.integers(0, len(counts) - 1)
    rows = draw(st.lists(st.tuples(SCORES, classes, classes), min_size=1, max_size=150))
    scores, predicted, labels = (np.array(column) for column in zip(*rows, strict=True))
    shares = np.array(draw(st.lists(st.integers(0, 5), min_size=len(counts), max_size=len(counts))), float)
    shares[labels[0]] += 1  # one of the classes that were seen is expected
    name = draw(st.sampled_from(["train", "file.csv"]))
    levels = draw(st.sampled_from([(0.95,), (0.9, 0.99), (0.95, 0.8), (0.99,)]))
    return (
        Scored(scores.astype(float), predicted, labels),
        group_classes(counts),
        ClassMix(name, shares / shares.sum()),
        levels,
    )


@settings(max_examples=150, deadline=None)
@given(given_calibration=calibrations(), kept=st.sampled_from([4, 7, 2000]), asked=st.lists(SCORES, max_size=6))
def test_the_decision_and_the_p_value_never_contradict(
    given_calibration: tuple[Scored, Groups, ClassMix, tuple[float, ...]], kept: int, asked: list[float]
) -> None:
    images, groups, mix, levels = given_calibration
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conformal, "MOST_SCORES", kept)  # thinned to so many
        made = manifest(images, groups, mix, levels)
    near = [f(s) for s in images.scores[:12].tolist() for f in (float, lambda v: math.nextafter(v, math.inf))]
    limits = [t for p in made.operating_points.values() for t in (p.threshold, *p.group_thresholds.values())]
    beyond = [math.nextafter(t, math.inf) for t in limits]
    assert contradictions(made, [*asked, *near, *limits, *beyond, math.inf, -math.inf, math.nan]) == []
    for score, decision in ((math.nan, "reject"), (math.inf, "reject"), (-math.inf, "accept")):
        assert decide(made, 0, score, made.default_operating_point, "group").decision == decision
    p_values = [decide(made, 0, s, made.default_operating_point, "group").p_value for s in sorted(near)]
    assert p_values == sorted(p_values, reverse=True)


def test_no_calibration_image_of_a_supported_group_is_refused_beyond_the_level() -> None:
    """Above 2 x 2,000 images, where references are thinned and old p-values came out too small."""
    random = np.random.default_rng(0)
    scores = random.gamma(2.0, size=9_001).astype(np.float32).astype(float)
    labels = (random.random(9_001) < 0.02).astype(int)
    groups, mix = group_classes([9000, 180]), ClassMix("train", np.array([0.98, 0.02]))
    made = manifest(Scored(scores, labels, labels), groups, mix, (0.95, 0.99))
    head = np.sort(scores[labels == 0])
    for score in head[:: len(head) // 500].tolist():
        exact = (1 + (head >= score).sum()) / (len(head) + 1)
        p = decide(made, 0, score, "id95", "group").p_value
        assert exact <= p <= exact + 1 / 1000
    for name, level in (("id95", 0.95), ("id99", 0.99)):
        kept = sum(decide(made, 0, s, name, "group").decision == "accept" for s in head.tolist())
        assert kept == math.ceil(round(level * (len(head) + 1), 6))
    assert contradictions(made, scores[:200].tolist()) == []


def test_a_row_of_the_graph_is_read_from_the_same_reference() -> None:
    images = Scored(np.arange(60.0), np.repeat([0, 1], [40, 20]), np.repeat([0, 1], [40, 20]))
    made = manifest(images, group_classes([900, 30]), ClassMix("train", np.array([0.97, 0.03])), (0.95,))
    for row, scope in (([0.9, 0.1], "group"), ([0.1, 0.9], "group"), ([0.9, 0.1], "global")):
        for score in (20.0, 38.1, 39.5, 57.5, 58.9, 60.0):
            found = decide_row(made, np.array(row, np.float32), {"energy": score, "msp": 0.0}, "id95", scope)  # type: ignore[arg-type]
            assert (found.decision == "reject") == (found.p_value <= 0.05)


def test_scores_that_are_not_finite_cannot_calibrate() -> None:
    images = Scored(np.array([1.0, math.inf, 2.0]), np.zeros(3, int), np.zeros(3, int))
    with pytest.raises(ValueError, match="1 of 3 calibration scores are NaN or infinite"):
        manifest(images, group_classes([7]), ClassMix("train", np.ones(1)), (0.5,))
