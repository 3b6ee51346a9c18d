"""Results: means, reliability and what is written, all by hand on a predictor that says what the test wants."""

import json

import numpy as np
import pytest

from training.data.readers import ImageSet
from training.evaluation import evaluate
from training.evaluation.predict import Outputs
from training.runs.files import write_json


def test_unweighted_mean():
    sets = [
        {"images": 10, "auroc": 0.5, "acc": {"95": 0.2, "90": 0.4}},
        {"images": 990, "auroc": 0.9, "acc": {"95": 0.4, "90": 0.8}},
    ]
    found = evaluate.unweighted_mean(sets)
    assert found["images"] == 1000
    assert found["auroc"] == pytest.approx(0.7)
    assert found["acc"] == pytest.approx({"95": 0.3, "90": 0.6})


def test_reliability_by_hand():
    # 15 bins: .9 falls in bin 13, .62 in bin 9, 1 in the last
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.38, 0.62], [1.0, 0.0]], np.float32)
    found = evaluate.reliability(np.array([0, 1, 1, 0]), probabilities)
    assert found["images"] == [0] * 9 + [1] + [0] * 3 + [2, 1]
    assert found["confidence"][13] == pytest.approx(0.9)
    assert found["accuracy"][13] == 0.5
    assert found["accuracy"][9] == 1
    assert found["accuracy"][0] is None
    assert found["ece"] == pytest.approx((2 * 0.4 + 0.38 + 0) / 4)


def test_calibrated_confidence_has_no_error():
    probabilities = np.array([[0.75, 0.25]] * 4, np.float32)
    assert evaluate.reliability(np.array([0, 0, 0, 1]), probabilities)["ece"] == pytest.approx(0)


def predictor(table):
    """Predict that looks an image's number up in `table`: number → (probabilities, score)."""

    def predict(images):
        rows = [table[int(i[0, 0, 0])] for i in images]
        scores = np.array([s for _, s in rows], np.float32)
        return Outputs(np.array([p for p, _ in rows], np.float32), {"energy": -scores, "msp": scores})

    return predict


def numbered(*values):
    return np.array(values, np.uint8)[:, None, None, None].repeat(3, axis=3)


@pytest.fixture
def results():
    table = {
        0: ([0.8, 0.1, 0.1], 0.1), 1: ([0.6, 0.3, 0.1], 0.2), 2: ([0.1, 0.8, 0.1], 0.3), 3: ([0.5, 0.4, 0.1], 0.6),
        10: ([0.4, 0.3, 0.3], 0.5), 11: ([0.4, 0.3, 0.3], 0.9), 12: ([0.4, 0.3, 0.3], 0.05),
    }  # fmt: skip
    test = ImageSet(numbered(0, 1, 2, 3), np.array([0, 0, 1, 1]), ("a", "b", "c"))
    ood = {"far": numbered(11), "near": numbered(10, 12)}
    return evaluate.evaluate(predictor(table), test, ood, [500, 50, 5], "msp")[0]


def test_results_by_hand(results):
    assert results["accuracy"] == 0.75
    assert results["class_accuracy"] == [1.0, 0.5, None]  # no image of the third class
    assert results["ood"]["far"]["auroc"] == 1
    assert results["ood"]["near"]["auroc"] == pytest.approx(3 / 8)  # .5 lies above three of four scores, .05 above none
    assert results["mean"]["auroc"] == pytest.approx((1 + 3 / 8) / 2)
    assert results["mean"]["images"] == 3
    assert results["ood"]["near"]["fpr95"] == 1
    assert results["ood"]["far"]["fpr95"] == 0
    assert results["acc_at_fpr"] == results["mean"]["acc_at_fpr"]
    assert results["score"] == "msp"
    assert "OOD is the positive class" in results["conventions"]


def test_without_ood_sets():
    test = ImageSet(numbered(0), np.array([0]), ("a", "b"))
    results = evaluate.evaluate(predictor({0: ([0.9, 0.1], 0.1)}), test, {}, [5, 5], "msp")[0]
    assert results["ood"] == {}
    assert "mean" not in results


def test_json_has_no_nan(results, tmp_path):
    write_json(tmp_path / "results.json", results)
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    assert json.loads(text) == results
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
