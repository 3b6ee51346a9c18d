"""Thresholds, temperature and costs: order statistics by hand, guarantees by simulation."""

import json
import math

import numpy as np
import pytest

from training.data import loading
from training.data.readers import DataError
from training.evaluation import calibrate, measure, predict
from training.evaluation.predict import Outputs
from training.runs.files import jsonable

RANDOM = np.random.default_rng(0)


def shuffled(n):
    """The scores 1 to n in some order."""
    return np.random.default_rng(n).permutation(n) + 1.0


# ---- Thresholds ----


def test_keep_threshold_by_hand():
    # n = 19: the ⌈20·.95⌉ = 19th of 19 is the largest, so none is rejected; a little above it, 1% of the range
    assert calibrate.keep_threshold(shuffled(19)) == pytest.approx(19 + 0.01 * 18)
    # n = 20: ⌈21·.95⌉ = 20. n = 99: ⌈100·.95⌉ = the 95th, midway to the 96th. n = 39: the 38th
    assert calibrate.keep_threshold(shuffled(20)) == pytest.approx(20 + 0.01 * 19)
    assert calibrate.keep_threshold(shuffled(39)) == 38.5
    assert calibrate.keep_threshold(shuffled(99)) == 95.5
    assert calibrate.keep_threshold(shuffled(100)) == 96.5  # ⌈101·.95⌉ = 96


def test_keep_threshold_of_few():
    assert calibrate.keep_threshold(np.array([2.0])) == 2.0
    assert calibrate.keep_threshold(shuffled(10)) == pytest.approx(10 + 0.01 * 9)


def test_keep_threshold_steps_over_ties():
    scores = np.array([1.0] * 50 + [2.0] * 48 + [7.0])
    assert calibrate.keep_threshold(scores) == 4.5  # the 95th is a 2; all 2s are kept, and 7 is not


@pytest.mark.parametrize("n", range(1, 400))
def test_keep_threshold_is_the_conformal_order_statistic(n):
    kept = (shuffled(n) <= calibrate.keep_threshold(shuffled(n))).sum()
    assert kept == min(-(-95 * (n + 1) // 100), n)  # ⌈.95·(n + 1)⌉ in whole numbers


def test_keep_threshold_rejects_at_most_5_percent_of_exchangeable_images():
    random = np.random.default_rng(1)
    rates = []
    for _ in range(600):
        scores = random.gamma(2, size=199 + 300)
        rates.append((scores[199:] > calibrate.keep_threshold(scores[:199])).mean())
    error = np.std(rates) / math.sqrt(600)
    assert np.mean(rates) <= 0.05 + 3 * error
    assert np.mean(rates) >= 0.045 - 3 * error  # and keeps no more than it has to: 9 of 200 at least


def test_catch_threshold_by_hand():
    assert calibrate.catch_threshold(shuffled(20)) == 1.5  # 19 of 20
    assert calibrate.catch_threshold(shuffled(100)) == 5.5
    assert calibrate.catch_threshold(np.array([3.0, 3.0, 3.0])) == pytest.approx(3 - 1e-5)
    assert calibrate.catch_threshold(np.array([1.0, 3.0])) == pytest.approx(1 - 0.01 * 2)  # both are needed for 95%


@pytest.mark.parametrize("n", range(1, 400))
def test_catch_threshold_catches_95_percent_and_no_more(n):
    scores = shuffled(n)
    limit = calibrate.catch_threshold(scores)
    caught = (scores > limit).sum()
    assert 100 * caught >= 95 * n
    # a threshold at the smallest of those caught would catch too few
    assert 100 * (scores > scores[scores > limit].min()).sum() < 95 * n


def test_thresholds_follow_the_scores():
    scores = RANDOM.normal(size=77)
    for quantile in (calibrate.keep_threshold, calibrate.catch_threshold):
        assert quantile(3 * scores + 5) == pytest.approx(3 * quantile(scores) + 5)
        assert quantile(scores[::-1]) == quantile(scores)


# ---- Groups ----


def test_shrinkage_by_hand():
    scores = np.concatenate([np.zeros(20), np.full(60, 4.0)])
    groups = np.array(["many"] * 20 + ["medium"] * 60)
    found = calibrate.by_group(1.0, scores, groups, np.max)
    assert found["many"] == pytest.approx((20 * 0 + 20 * 1) / 40)  # half the say at 20 images
    assert found["medium"] == pytest.approx((60 * 4 + 20 * 1) / 80)
    assert found["few"] == 1.0  # no image, no say


def test_operating_points_by_hand():
    groups = np.array(["many"] * 99)
    points = calibrate.operating_points(shuffled(99), groups, shuffled(100), np.array(["few"] * 100))
    assert points["id95"]["threshold"] == 95.5
    assert points["ood95"]["threshold"] == 5.5
    assert points["id95"]["group_thresholds"] == {"many": 95.5, "medium": 95.5, "few": 95.5}
    assert points["ood95"]["group_thresholds"] == {"many": 5.5, "medium": 5.5, "few": 5.5}


def test_no_outliers_no_ood95():
    points = calibrate.operating_points(shuffled(30), np.array(["many"] * 30), np.empty(0), np.empty(0, str))
    assert list(points) == ["id95"]


POINT = {"threshold": 2.0, "group_thresholds": {"many": 3.0, "medium": 2.0, "few": 1.0}}


def test_rejected_by_hand():
    scores, groups = np.array([2.5, 2.0, 1.5, 3.0]), np.array(["many", "medium", "few", "many"])
    assert calibrate.rejected(scores, groups, POINT, "global").tolist() == [True, False, False, True]
    assert calibrate.rejected(scores, groups, POINT, "group").tolist() == [False, False, True, False]


def test_cost_by_hand():
    scores = np.array([2.5, 2.0, 1.5, 3.5])
    predicted, true = np.array(["many", "medium", "few", "many"]), np.array(["many", "many", "medium", "medium"])
    first = (np.array([5.0, 0.0]), np.array(["many", "few"]))
    second = (np.array([5.0, 6.0, 1.5, 1.5]), np.array(["many", "many", "few", "medium"]))
    found = calibrate.cost(POINT, "group", scores, predicted, true, [first, second, (np.empty(0), np.empty(0, str))])
    assert found["in_distribution_images"] == 4
    assert found["outlier_images"] == 6
    assert found["id_rejected"] == 0.5  # 1.5 as few, 3.5 as many
    assert found["id_rejected_by_group"] == {"many": 0.0, "medium": 1.0, "few": None}
    assert found["id_rejected_by_predicted_group"] == {"many": 0.5, "medium": 0.0, "few": 1.0}
    assert found["outliers_caught"] == pytest.approx((1 / 2 + 3 / 4) / 2)  # each set once
    assert found["outliers_caught_by_predicted_group"] == {"many": 1.0, "medium": 0.0, "few": 0.5}
    none = calibrate.cost(POINT, "global", scores, predicted, true, [])
    assert none["outliers_caught"] is None
    assert none["outlier_images"] == 0


# ---- Temperature ----


@pytest.mark.parametrize("known", [0.5, 1.0, 3.0])
def test_temperature_comes_back(known):
    random = np.random.default_rng(2)
    logits = random.normal(size=(20000, 5)) * 3
    true = np.exp(logits / known)
    true /= true.sum(axis=1, keepdims=True)
    labels = (true.cumsum(axis=1) < random.random((20000, 1))).sum(axis=1)
    stated = np.exp(logits)
    stated /= stated.sum(axis=1, keepdims=True)
    assert calibrate.fit_temperature(stated, labels) == pytest.approx(known, rel=0.05)


def test_temperature_where_all_is_correct():
    assert calibrate.fit_temperature([[0.9, 0.1], [0.2, 0.8]], [0, 1]) == 1.0


def test_temperature_stays_in_its_range():
    hopeless = calibrate.fit_temperature([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], [1, 1, 0])
    assert hopeless == pytest.approx(20, rel=0.01)


# ---- Reference distributions ----


def test_reference_scores():
    assert calibrate.reference_scores(shuffled(5)) == [1, 2, 3, 4, 5]
    found = calibrate.reference_scores(shuffled(10_001))
    assert len(found) == calibrate.MOST_REFERENCE_SCORES
    assert (found[0], found[-1]) == (1, 10_001)
    np.testing.assert_allclose(found, np.linspace(1, 10_001, len(found)), atol=0.5)


def test_quantiles():
    groups = np.array(["many"] * 100 + ["few"])
    found = calibrate.quantiles(np.arange(101.0), groups, np.empty(0))
    assert list(found) == ["all", "many", "few"]
    assert found["all"] == pytest.approx(list(range(101)))
    assert found["few"] == [100.0] * 101


# ---- Everything a manifest says ----


@pytest.fixture
def digits_and_predict():
    """Digits, and a predictor whose score is an image's brightness: no network, but the real path."""
    from tests.training import tiny

    def run(images):
        brightness = images.mean(axis=(1, 2, 3)).astype(np.float32) / 255
        probabilities = np.eye(8, dtype=np.float32)[images[:, 4, 4, 0] % 8] * 0.6 + 0.05
        return [probabilities, -brightness, brightness]

    return loading.load(tiny.config()), predict.in_batches(run, ("energy", "msp"))


def test_measure_takes_thresholds_from_the_calibration_split_alone(digits_and_predict):
    loaded, predictor = digits_and_predict
    settings = {"score": "msp", "temperature": 1.5, "scope": "group"}
    found = measure.measure(predictor, loaded, loaded.ood, **settings)
    inside: Outputs = predictor(loaded.calibration.images)
    scores = inside.scores["msp"].astype(np.float64)
    points = found["operating_points"]
    assert points["id95"]["threshold"] == calibrate.keep_threshold(scores)
    outside = predictor(loaded.calibration_outliers).scores["msp"].astype(np.float64)
    assert points["ood95"]["threshold"] == calibrate.catch_threshold(outside)
    # other test and OOD images change what thresholds cost, and no threshold
    other = loading.Data(**vars(loaded) | {"test": loaded.train})
    again = measure.measure(predictor, other, {"x": loaded.train.images}, **settings)
    for name, point in points.items():
        assert again["operating_points"][name]["threshold"] == point["threshold"]
        assert again["operating_points"][name]["group_thresholds"] == point["group_thresholds"]
        costs = [m["operating_points"][name]["global_cost"] for m in (found, again)]
        assert costs[0]["calibration"] == costs[1]["calibration"]
        assert costs[0]["test"] != costs[1]["test"]
    assert again["calibration"] == found["calibration"]
    assert found["calibration"]["in_distribution_images"] == len(scores)
    assert found["calibration"]["temperature"] == 1.5


def test_measure_costs_are_what_the_decision_does(digits_and_predict):
    loaded, predictor = digits_and_predict
    found = measure.measure(predictor, loaded, loaded.ood, score="msp", temperature=1.0, scope="global")
    limit = found["operating_points"]["id95"]["threshold"]
    test = predictor(loaded.test.images).scores["msp"]
    nine = predictor(loaded.ood["nine"]).scores["msp"]
    cost = found["operating_points"]["id95"]["global_cost"]["test"]
    assert cost["id_rejected"] == pytest.approx((test > limit).mean())
    assert cost["outliers_caught"] == pytest.approx((nine > limit).mean())
    assert found["evaluation"]["ood"]["nine"]["rejected"]["id95"] == pytest.approx((nine > limit).mean())
    by_class = [(test[loaded.test.labels == c] > limit).mean() for c in range(8)]
    assert [c["rejected"] for c in found["classes"]] == pytest.approx(by_class)
    assert "NaN" not in json.dumps(jsonable(found), allow_nan=False)


def test_measure_without_outliers(digits_and_predict):
    loaded, predictor = digits_and_predict
    bare = loading.Data(**vars(loaded) | {"calibration_outliers": loaded.outliers[:0]})
    found = measure.measure(predictor, bare, {}, score="msp", temperature=1.0, scope="group")
    assert list(found["operating_points"]) == ["id95"]
    assert found["calibration"]["outlier_images"] == 0


def test_measure_without_calibration_images(digits_and_predict):
    loaded, predictor = digits_and_predict
    bare = loading.Data(**vars(loaded) | {"calibration": loaded.train.take(np.empty(0, np.int64))})
    with pytest.raises(DataError, match="no calibration images: train with --calibration-fraction above 0"):
        measure.measure(predictor, bare, {}, score="msp", temperature=1.0, scope="group")
