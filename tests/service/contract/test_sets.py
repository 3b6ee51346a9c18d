"""service/contract/sets.py and calibration/sets.py: sets by hand, and the promise held by group on drawn images."""

import numpy as np
import pytest

from service.contract.calibration import sets as calibrated
from service.contract.calibration.calibrate import Scored, Weighted
from service.contract.calibration.groups import Groups, group_classes
from service.contract.calibration.mix import class_mix
from service.contract.reference import Reference
from service.contract.sets import PredictionSets, Sets

COUNTS = [1000, 1000, 10]  # two classes of the head, one of the tail


def reference(scores: list[float]) -> Reference:
    """Unweighted: (1 + number at or above) / (n + 1)."""
    n = len(scores)
    steps = [1.0, *((n - k) / (n + 1) for k in range(n))]
    return Reference(images=n, borrowed=0, scores=tuple(scores), p_values=tuple(steps))


def test_a_set_by_hand():
    head = reference([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])  # at .8 the p-value of .8 is .2, so .7 … .8 is out
    found = PredictionSets(Sets(references={"head": head}, measured=()), ["head", "head", "tail"])
    limits = found.limits(0.8)
    assert limits.values.tolist() == [0.8, 0.8, np.inf]
    assert limits.too_few == ("tail",)  # it has no calibration image
    assert found.of(np.array([0.75, 0.15, 0.1], np.float32), 0.8) == [0, 2]
    assert found.of(np.array([0.5, 0.3, 0.2], np.float32), 0.8) == [0, 1, 2]
    assert found.of(np.array([0.05, 0.45, 0.5], np.float32), 0.8) == [2, 1]  # the most probable first
    assert found.limits(0.95).too_few == ("head", "tail")  # nine images hold .9 at most
    assert found.of(np.array([1.0, 0.0, 0.0], np.float32), 0.95) == [0, 1, 2]


def test_the_most_probable_class_is_always_in_the_set_and_nan_leaves_none_out():
    strict = PredictionSets(
        Sets(references={"all": reference([0.01 * i for i in range(1, 100)])}, measured=()), ["all"] * 3
    )
    assert strict.of(np.array([0.34, 0.33, 0.33], np.float32), 0.5) == [0]
    assert strict.of(np.array([np.nan] * 3, np.float32), 0.5) == [0, 1, 2]


def test_sets_grow_with_the_level():
    rng = np.random.default_rng(0)
    known, probabilities, groups = drawn(rng, 800)
    found = PredictionSets(
        Sets(references=calibrated.references(probabilities, known, groups), measured=()), groups.of_class.tolist()
    )
    before = np.zeros(probabilities.shape, bool)
    for level in (0.1, 0.5, 0.8, 0.9, 0.99, 0.999):
        now = found.contains(probabilities, level)
        assert (now | before == now).all()
        before = now


def drawn(rng: np.random.Generator, images: int) -> tuple[Weighted, np.ndarray, Groups]:
    """Images of the counts' mix; a tail image is mostly taken for one of the head, as classifiers do."""
    groups = group_classes(COUNTS)
    labels = rng.choice(3, images, p=np.array([0.45, 0.45, 0.1]))
    logits = rng.normal(size=(images, 3)) + 1.2 * np.eye(3)[labels] - [0, 0, 1]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    scored = Scored(1 - probabilities.max(1), probabilities.argmax(1), labels)
    return Weighted.by_mix(scored, class_mix("train", ["a", "b", "c"], groups.counts), groups), probabilities, groups


def test_the_level_holds_for_head_and_tail_alike():
    """The mean coverage over many calibration splits lies between the level and the level + 1 / (n + 1)."""
    rng = np.random.default_rng(1)
    covered: dict[str, list[float]] = {"head": [], "tail": []}
    plain = []
    for _ in range(150):
        known, probabilities, groups = drawn(rng, 300)
        fresh, seen, _ = drawn(rng, 500)
        found = calibrated.references(probabilities, known, groups)
        labels = fresh.images.labels
        outcome = calibrated.outcome(found, groups, seen, labels, 0.9)
        figures = calibrated.figures(0.9, outcome, groups.of_class[labels], groups.names)
        for group in covered:
            covered[group].append(figures["covered_by_group"][group])
        # one quantile for all images, which is what Mondrian is there to mend
        limit = np.quantile(1 - probabilities[np.arange(300), known.images.labels], 0.9)
        tail = groups.of_class[labels] == "tail"
        plain.append((1 - seen[np.arange(500), labels] <= limit)[tail].mean())
    assert np.mean(covered["head"]) == pytest.approx(0.9, abs=0.01)
    assert np.mean(covered["tail"]) == pytest.approx(0.915, abs=0.025)  # some thirty images: up to 1/31 more
    assert np.mean(plain) < 0.7


def test_a_group_without_images_has_no_reference_and_weights_of_zero_count_alike():
    known, probabilities, groups = drawn(np.random.default_rng(2), 200)
    rows = np.flatnonzero(known.images.labels < 2)
    part = Scored(known.images.scores[rows], known.images.predicted[rows], known.images.labels[rows])
    found = calibrated.references(probabilities[rows], Weighted.alike(part, 3), groups)
    assert set(found) == {"head"}
    none = Weighted(known.images, known.weights * (known.images.labels < 2), np.array([1.0, 1.0, 0.0]))
    assert calibrated.references(probabilities, none, groups)["tail"].images == (known.images.labels == 2).sum()


def test_figures_by_hand():
    outcome = calibrated.pooled([
        calibrated.Outcome(np.array([True, False]), np.array([1, 2]), ("tail",)),
        calibrated.Outcome(np.array([True]), np.array([3]), ("tail",)),
    ])  # fmt: skip
    found = calibrated.figures(0.9, outcome, np.array(["head", "head", "tail"]), ["head", "tail", "none"])
    assert (found["covered"], found["mean_size"]) == (pytest.approx(2 / 3), 2.0)
    assert found["covered_by_group"] == {"head": 0.5, "tail": 1.0, "none": None}
    assert found["mean_size_by_group"] == {"head": 1.5, "tail": 3.0, "none": None}
    assert found["too_few"] == ("tail",)
