"""service/contract/taxonomy.py and calibration/taxonomy.py: nodes by hand, thresholds by hand, the promise on draws."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from service.contract.calibration import taxonomy as calibrated
from service.contract.taxonomy import Nodes, Taxonomy, Tree

PATHS = (("fruit", "citrus"), ("fruit", "citrus"), ("fruit",), ("packages",), ())  # orange lemon apple milk other


def tree(*thresholds: float | None, paths: Any = PATHS) -> Taxonomy:
    levels = [{"depth": d, "threshold": t, "told": 30, "wrong": 0} for d, t in enumerate(thresholds, 1)]
    return Taxonomy.model_validate(
        {"source": "a file", "paths": paths, "error": 0.05, "uncertain": 40, "levels": levels, "measured": None}
    )


def deepest(given: Taxonomy, *probabilities: float) -> tuple[Any, ...] | None:
    node = Tree(given).deepest(np.array(probabilities, np.float32))
    return node and (node.path, node.depth, pytest.approx(node.probability))


def test_the_deepest_node_that_reaches_its_threshold():
    given = tree(0.7, 0.8)
    assert deepest(given, 0.5, 0.4, 0.05, 0.05, 0) == (("fruit", "citrus"), 2, 0.9)
    assert deepest(given, 0.3, 0.3, 0.2, 0.2, 0) == (("fruit",), 1, 0.8)  # citrus has .6
    assert deepest(given, 0.1, 0.1, 0.1, 0.7, 0) == (("packages",), 1, 0.7)  # exactly the threshold
    assert deepest(given, 0.1, 0.1, 0.1, 0.1, 0.6) is None  # a class below the root
    assert deepest(given, *[float("nan")] * 5) is None


def test_a_depth_without_a_threshold_is_passed_over():
    assert deepest(tree(0.7, None), 0.5, 0.4, 0.05, 0.05, 0) == (("fruit",), 1, 0.95)
    assert deepest(tree(None, None), 1, 0, 0, 0, 0) is None


def test_nodes_of_the_same_name_below_different_parents_are_different():
    nodes = Nodes([("a", "other"), ("b", "other")], 2)
    assert nodes.sums(np.array([0.3, 0.7], np.float32)).tolist() == pytest.approx([0.3, 0.7])


def test_new_classes_hang_where_their_names_say():
    grown = tree(0.7, 0.8).grown(["fig", "fruit/kiwi", "a/b/c/d"])
    assert grown.paths[-3:] == ((), ("fruit",), ("a", "b"))
    assert deepest(grown, *[0.1] * 5, 0, 0.5, 0) == (("fruit",), 1, 0.8)
    assert Taxonomy.model_validate(grown.model_dump()) == grown


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"paths": [(), ()]}, "levels must be those of the depths 1 to 0"),
        ({"levels": []}, "levels must be those of the depths 1 to 2"),
        ({"paths": [("a", "b/c")]}, "hold no /"),
        ({"paths": [("a", " ")]}, "must not be blank"),
        ({"error": 0}, "greater than 0"),
    ],
)
def test_what_is_no_taxonomy_is_refused(changes, reason):
    with pytest.raises(ValidationError, match=reason):
        Taxonomy.model_validate(tree(0.7, 0.8).model_dump() | changes)


# ---- Thresholds ----


def levels(paths: Any, best: list[float], right: list[bool], error: float = 0.05) -> list[dict[str, Any]]:
    """Two classes below two nodes; each image has this probability for its best node, right or not."""
    probabilities = np.array([[p, 1 - p] for p in best], np.float32)
    labels = np.where(right, 0, 1)
    return calibrated.levels(paths, probabilities, labels, np.ones(len(best)), 1.0, error)


TWO = [("a",), ("b",)]


def test_a_threshold_by_hand():
    # 40 right from .99 down to .6, then 3 wrong: (1 + 1) / (41 + 1) = .048 with one of them, .07 with two
    best = [0.99 - 0.01 * i for i in range(40)] + [0.59, 0.58, 0.57]
    [level] = levels(TWO, best, [True] * 40 + [False] * 3)
    assert (level["threshold"], level["told"], level["wrong"]) == (pytest.approx(0.59), 41, 1)


def test_eighteen_images_promise_nothing_and_nineteen_do():
    assert levels(TWO, [0.9] * 18, [True] * 18)[0]["threshold"] is None
    assert levels(TWO, [0.9] * 19, [True] * 19)[0]["threshold"] == pytest.approx(0.9)
    assert levels(TWO, [0.9] * 9, [True] * 9, error=0.1)[0]["threshold"] == pytest.approx(0.9)
    assert levels(TWO, [], [])[0]["threshold"] is None


def test_equals_are_told_together():
    [level] = levels(TWO, [0.9] * 30 + [0.8] * 4, [True] * 30 + [True, False, False, False])
    assert (level["threshold"], level["told"]) == (pytest.approx(0.9), 30)  # not one of the four alone


def test_what_is_told_deeper_does_not_count_above():
    deep = [("a", "x"), ("a", "y"), ("b",)]
    probabilities = np.array([[0.9, 0.1, 0]] * 30 + [[0.5, 0.4, 0.1]] * 25, np.float32)
    labels = np.array([0] * 30 + [1] * 25)
    above, below = calibrated.levels(deep, probabilities, labels, np.ones(55), 1.0)
    assert (below["threshold"], below["told"], below["wrong"]) == (pytest.approx(0.9), 30, 0)
    assert (above["threshold"], above["told"], above["wrong"]) == (pytest.approx(0.9), 25, 0)


def test_the_most_outlying_share_of_each_group():
    scores = np.array([1.0, 2, 3, 4, 10, 20, 30, 40])
    groups = np.array(["head"] * 4 + ["tail"] * 4)
    assert np.flatnonzero(calibrated.uncertain(scores, groups, 0.25)).tolist() == [3, 7]
    assert np.flatnonzero(calibrated.uncertain(scores, groups, 0.26)).tolist() == [2, 3, 6, 7]


def test_at_most_the_error_is_wrong_on_fresh_images():
    """Mean over many splits, of overconfident probabilities; beside what 1 - error as the threshold gets wrong."""
    rng = np.random.default_rng(0)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        z = rng.normal(3, 2, n)
        return 1 / (1 + np.exp(-np.abs(z))), rng.uniform(size=n) < 1 / (1 + np.exp(-0.6 * np.abs(z)))

    wrong, plain, said = [], [], []
    for _ in range(60):
        best, right = draw(300)
        [level] = levels(TWO, best.tolist(), right.tolist())
        fresh, truth = draw(4000)
        told = fresh >= (2 if level["threshold"] is None else level["threshold"])
        said.append(told.mean())
        wrong += [(~truth[told]).mean()] if told.any() else []
        plain.append((~truth[fresh >= 0.95]).mean())
    assert np.mean(wrong) < 0.055
    assert np.mean(plain) > 0.065
    assert np.mean(said) > 0.1
