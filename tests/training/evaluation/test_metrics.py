"""Metrics against the reference implementation's numbers, values worked out by hand, and their invariances."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.evaluation import metrics

GOLDEN = Path(__file__).resolve().parents[4] / "shared" / "golden" / "pascl.json"
TOLERANCE = 1e-9

scores = st.lists(st.integers(-20, 20), min_size=1, max_size=40)


@pytest.fixture(params=[0, 1], ids=["distinct scores", "tied scores"])
def golden(request):
    if not GOLDEN.exists():
        pytest.skip(f"{GOLDEN} is not there: the golden values come with the project's shared folder")
    return json.loads(GOLDEN.read_text())["metrics"][request.param]


# ---- The reference implementation ----


def test_golden_detection(golden):
    found = metrics.ood_metrics(golden["scores_in"], golden["scores_ood"])
    for name in ("auroc", "aupr", "fpr95"):
        assert getattr(found, name) == pytest.approx(golden["expected"][name], abs=TOLERANCE)


@pytest.mark.parametrize("name", ["acc_at_tpr", "acc_at_fpr"])
def test_golden_accuracy_of_what_is_kept(golden, name):
    function = metrics.accuracy_at_tpr if name == "acc_at_tpr" else metrics.accuracy_at_fpr
    arguments = [golden[k] for k in ("labels", "predictions", "scores_in", "scores_ood")]
    for level, expected in golden["expected"][name].items():
        assert function(*arguments, float(level)) == pytest.approx(expected, abs=TOLERANCE)


def test_golden_groups(golden):
    expected = golden["expected"]
    groups = metrics.group_accuracy(golden["labels"], golden["predictions"], golden["train_counts"])
    assert groups._asdict() == pytest.approx({k: expected[k] for k in ("many", "medium", "few")}, abs=TOLERANCE)
    assert metrics.accuracy(golden["labels"], golden["predictions"]) == pytest.approx(expected["acc"], abs=TOLERANCE)


# ---- By hand: detection ----


def test_one_pair_out_of_order():
    # Of the four (ID, OOD) pairs only (3, 2) is in the wrong order. Precision is 1 at OOD 4 and 2/3 at OOD 2.
    found = metrics.ood_metrics(id_scores=[1.0, 3.0], ood_scores=[2.0, 4.0])
    assert found.auroc == pytest.approx(3 / 4)
    assert found.aupr == pytest.approx((1 + 2 / 3) / 2)
    assert found.aupr_id_positive == pytest.approx((1 + 2 / 3) / 2)
    assert found.fpr95 == pytest.approx(1 / 2)  # nearest recall to 0.95 is 1, at threshold 2, which flags ID 3
    assert found.fpr95_id_positive == pytest.approx(1 / 2)


def test_perfect_separation():
    found = metrics.ood_metrics([0.1, 0.2], [0.8, 0.9, 1.0])
    assert found == metrics.OODMetrics(auroc=1.0, aupr=1.0, fpr95=0.0, fpr95_id_positive=0.0, aupr_id_positive=1.0)


def test_all_scores_tied():
    found = metrics.ood_metrics([1.0] * 3, [1.0])
    assert (found.auroc, found.aupr, found.fpr95) == (0.5, 0.25, 1.0)
    assert (found.fpr95_id_positive, found.aupr_id_positive) == (1.0, 0.75)


def test_of_two_equally_near_recalls_the_larger_is_taken():
    # Recall is 1/2 at threshold 3 and 1 at threshold 1, which flags the ID image as well.
    assert metrics._fpr_at_recall(np.array([1.0, 3.0]), np.array([2.0]), level=0.75) == 1.0


def test_fpr95_takes_the_largest_rate_of_one_recall():
    # Recall 19/20 is nearest and holds at the thresholds 1 (OOD), 0.5 and 0.4 (ID): two of three are flagged.
    outliers = [*np.linspace(1, 2, 19), 0.0]
    assert metrics.ood_metrics([0.5, 0.4, -1.0], outliers).fpr95 == pytest.approx(2 / 3)


# ---- By hand: accuracy of what is kept ----

LABELS = [0, 0, 1, 1]
PREDICTIONS = [0, 1, 1, 0]
ID_SCORES = [0.1, 0.7, 0.2, 0.6]
OOD_SCORES = [0.65, 0.9]


def test_accuracy_at_tpr_keeps_what_lies_on_or_below_the_threshold():
    # The threshold that catches both outliers is 0.65: 0.7 is rejected, and of the other three two are right.
    assert metrics.accuracy_at_tpr(LABELS, PREDICTIONS, ID_SCORES, OOD_SCORES, 0.95) == pytest.approx(2 / 3)
    assert metrics.accuracy_at_tpr(LABELS, PREDICTIONS, ID_SCORES, OOD_SCORES, 0.0) == pytest.approx(1 / 2)


def test_the_image_on_the_threshold_is_kept():
    # A quarter of ID (0.7) is flagged by the threshold 0.7, which keeps it: the reference implementation's rule.
    assert metrics.accuracy_at_fpr([0, 0], [0, 1], [0.1, 0.7], [0.8, 0.0], 0.5) == pytest.approx(1 / 2)


def test_accuracy_is_nan_when_nothing_is_kept():
    assert math.isnan(metrics.accuracy_at_tpr([0], [0], [0.5], [0.1], 1.0))


def test_fpr_by_group():
    counts = [9, 5, 5, 1]  # many, medium, medium, few
    found = metrics.fpr_at_tpr_by_group([0, 0, 3, 3], [0.1, 0.2, 0.3, 0.7], [0.6, 0.9], counts, levels=[0.95])[0.95]
    assert (found.overall, found.many, found.few) == (0.25, 0.0, 0.5)
    assert math.isnan(found.medium)
    assert list(metrics.fpr_at_tpr_by_group([0], [0.1], [0.2], counts)) == [0.98, 0.95, 0.90, 0.80]


# ---- By hand: classes and groups ----


def test_groups_of_the_literature():
    cifar10 = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert metrics.class_groups(cifar10) == ["many"] * 3 + ["medium"] * 4 + ["few"] * 3
    cifar100 = [int(500 * 0.01 ** (i / 99)) for i in range(100)]
    groups = metrics.class_groups(cifar100)
    assert [groups.count(g) for g in ("many", "medium", "few")] == [34, 34, 32]
    assert metrics.class_groups([101, 100, 20, 19] + [50] * 997)[:4] == ["many", "medium", "medium", "few"]


def test_groups_do_not_depend_on_the_order_of_classes():
    assert metrics.class_groups([1, 5, 9, 5]) == ["few", "medium", "many", "medium"]
    assert metrics.class_groups([7, 7, 7]) == ["medium"] * 3  # a balanced set has neither head nor tail
    assert metrics.class_groups([7]) == ["medium"]


def test_class_and_group_accuracy():
    labels, predictions = [0, 0, 0, 1, 3, 3], [0, 0, 2, 1, 3, 9]
    by_class = metrics.class_accuracy(labels, predictions, 4)
    assert by_class == pytest.approx([2 / 3, 1.0, math.nan, 1 / 2], nan_ok=True)
    assert metrics.accuracy(labels, predictions) == pytest.approx(4 / 6)
    groups = metrics.group_accuracy(labels, predictions, [8, 4, 2, 1])
    assert groups == pytest.approx((2 / 3, 1.0, 1 / 2), nan_ok=True)
    assert math.isnan(metrics.group_accuracy([0], [0], [8, 4, 2, 1]).few)


# ---- Invariances ----


@given(scores, scores, st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter(ins, outs, random):
    expected = metrics.ood_metrics(ins, outs)
    random.shuffle(ins)
    random.shuffle(outs)
    assert metrics.ood_metrics(ins, outs) == expected


@given(scores, scores)
def test_only_the_ranking_matters(ins, outs):
    assert metrics.ood_metrics(np.exp(np.array(ins) / 4), np.exp(np.array(outs) / 4)) == metrics.ood_metrics(ins, outs)


@given(scores, scores)
def test_exchanging_the_roles_exchanges_the_conventions(ins, outs):
    found = metrics.ood_metrics(ins, outs)
    mirrored = metrics.ood_metrics(-np.array(outs), -np.array(ins))
    assert found.fpr95_id_positive == mirrored.fpr95
    assert found.aupr_id_positive == mirrored.aupr
    assert found.auroc == pytest.approx(mirrored.auroc)


@given(scores, scores, st.floats(0, 1))
def test_rates_stay_in_range(ins, outs, level):
    found = metrics.accuracy_at_tpr([0] * len(ins), [0] * len(ins), ins, outs, level)
    assert math.isnan(found) or found == 1.0
    assert 0 <= metrics.fpr_at_tpr_by_group([0] * len(ins), ins, outs, [3], [level])[level].overall <= 1


def test_tensors_are_accepted():
    torch = pytest.importorskip("torch")
    ins, outs = [1.0, 3.0], [2.0, 4.0]
    assert metrics.ood_metrics(torch.tensor(ins), torch.tensor(outs)) == metrics.ood_metrics(ins, outs)
    assert metrics.accuracy(torch.tensor([0, 1]), torch.tensor([0, 0])) == 0.5


# ---- Errors ----


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.ood_metrics([], [1.0]), r"id_scores has shape \(0,\)"),
        (lambda: metrics.ood_metrics([1.0], []), r"ood_scores has shape \(0,\)"),
        (lambda: metrics.ood_metrics([1.0, math.nan], [1.0]), "id_scores has 1 values of 2 that are NaN"),
        (lambda: metrics.ood_metrics([1.0], [math.inf]), "ood_scores has 1 values of 1"),
        (lambda: metrics.ood_metrics([[1.0]], [1.0]), r"shape \(1, 1\)"),
        (lambda: metrics.accuracy([0, 1], [0]), "lengths differ: labels 2, predictions 1"),
        (lambda: metrics.accuracy([], []), "labels has shape"),
        (lambda: metrics.accuracy([0.5], [0]), "labels has dtype float64"),
        (lambda: metrics.accuracy_at_tpr([0], [0], [0.1, 0.2], [1.0], 0.9), "lengths differ: .*id_scores 2"),
        (lambda: metrics.accuracy_at_tpr([0], [0], [0.1], [1.0], 95), "level is 95"),
        (lambda: metrics.accuracy_at_fpr([0], [0], [0.1], [1.0], -0.1), "level is -0.1"),
        (lambda: metrics.accuracy_at_fpr([0], [0], [0.1], [1.0], math.nan), "level is nan"),
        (lambda: metrics.class_accuracy([0, 3], [0, 0], 3), r"labels has 3: 3 classes are 0\.\.2"),
        (lambda: metrics.group_accuracy([-1], [0], [2, 1]), r"labels has -1: 2 classes are 0\.\.1"),
        (lambda: metrics.fpr_at_tpr_by_group([2], [0.1], [0.2], [2, 1]), "labels has 2"),
        (lambda: metrics.class_groups([]), "train_counts has shape"),
        (lambda: metrics.class_groups([3, -1]), "train_counts has -1"),
    ],
)
def test_errors_name_the_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()
