"""Thresholds, temperature and costs: order statistics by hand, guarantees by simulation."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.calibration import calibrate, conformal, distributions
from service.contract.calibration.groups import group_classes
from service.contract.calibration.mix import ClassMix, class_mix
from training.data import loading, taxonomy
from training.data.readers import DataError
from training.evaluation import measure, predict, temperature
from training.evaluation.predict import Outputs
from training.finished import Calibrate
from training.runs import checkpoint
from training.runs.files import jsonable


def shuffled(n):
    """The scores 1 to n in some order."""
    return np.random.default_rng(n).permutation(n) + 1.0


# ---- Thresholds ----


def all_reference(scores, levels=(0.95,), weights=None, new_weight=1.0, spare=()):
    """The reference of scores that all count alike, without the margin for rounding."""
    scores = np.asarray(scores, np.float64)
    return conformal.reference(scores, np.ones(len(scores)) if weights is None else weights, new_weight, levels, spare)


@pytest.mark.parametrize("n", range(19, 400))
def test_the_threshold_is_the_conformal_order_statistic(n):
    kept = (shuffled(n) <= all_reference(shuffled(n)).threshold(0.95)).sum()
    assert kept == -(-95 * (n + 1) // 100)  # ⌈.95·(n + 1)⌉ in whole numbers


def test_thresholds_by_hand():
    # n = 19: the ⌈20·.95⌉ = 19th of 19 is the largest. n = 39: the 38th. n = 99: the 95th
    assert [all_reference(shuffled(n)).threshold(0.95) for n in (19, 39, 99, 100)] == [19, 38, 95, 96]
    assert all_reference(shuffled(99)).threshold(0.99) == 99
    assert all_reference([1.0] * 50 + [2.0] * 48 + [7.0]).threshold(0.95) == 2.0  # the 95th is a 2: all 2s are kept


def test_p_values_count_scores_at_or_above_and_the_image_itself():
    found = all_reference([1.0, 2.0, 2.0, 3.0], levels=(0.8,))
    assert [found.p_value(s) for s in (1, 1.5, 2, 2.5, 3, 3.5, math.nan)] == [1, 0.8, 0.8, 0.4, 0.4, 0.2, 0.2]


@pytest.mark.parametrize("n", [2001, 4001, 5000, 30_000])
def test_thinned_references_never_understate_and_keep_the_thresholds(n):
    scores, levels = shuffled(n), (0.9, 0.95, 0.99)
    found = all_reference(scores, levels)
    assert len(found.scores) <= conformal.MOST_SCORES + len(levels)
    for level in levels:
        assert (scores <= found.threshold(level)).sum() == math.ceil(round(level * (n + 1), 6))
    for score in np.linspace(0.5, n + 1.5, 3001):
        exact = (1 + (scores >= score).sum()) / (n + 1)
        assert exact <= found.p_value(score) <= exact + (n / conformal.MOST_SCORES + 1) / (n + 1)


def test_a_group_rejects_at_most_5_percent_of_exchangeable_images():
    random = np.random.default_rng(1)
    rates = []
    for _ in range(600):
        scores = random.gamma(2, size=199 + 300)
        rates.append((scores[199:] > all_reference(scores[:199]).threshold(0.95)).mean())
    error = np.std(rates) / math.sqrt(600)
    assert 0.05 - 3 * error <= np.mean(rates) <= 0.05 + 3 * error


def test_weights_by_hand():
    # weights 3, 1, 1 and a new image of weight 3: p = 3/8 above all, 4/8 above the second, 5/8 above the first
    found = all_reference([1.0, 2.0, 3.0], levels=(0.6,), weights=np.array([3.0, 1.0, 1.0]), new_weight=3.0)
    assert found.p_values == (1, 5 / 8, 4 / 8, 3 / 8)
    assert found.threshold(0.6) == 3.0


def test_borrowed_scores_by_hand():
    spare = [(9.0, 1.0), (1.0, 1.0), (12.0, 1.0), (11.0, 1.0)]
    found = all_reference([4.0, 5.0], levels=(0.8,), spare=spare)  # 4 images are needed: the first two are borrowed
    assert (found.images, found.borrowed) == (2, 2)
    assert [found.p_value(s) for s in (4, 5, 6, 9, 9.5)] == [1, 2 / 3, 1 / 3, 1 / 3, 1 / 5]
    assert found.threshold(0.8) == 9.0
    assert all_reference([], levels=(0.5,), spare=spare).p_values == (1, 1 / 2)
    with pytest.raises(ValueError, match="no calibration score"):
        all_reference([])


def test_margins_keep_order_and_exceed_rounding():
    scores = np.array([-3.0, -1.0, -1.0, 0.0, 2.5, 2.5000001])
    moved = conformal.raised(scores, scores)
    assert (np.diff(moved) >= 0).all()
    assert ((moved - scores) > 1e-6 * np.abs(scores)).all()
    assert (moved - scores).max() < 1e-3
    assert conformal.raised(np.zeros(3), np.zeros(3)).tolist() == [0, 0, 0]
    few = np.array([-1.7154245])  # of an image that ONNX Runtime gives -1.7154217; its export was refused
    assert conformal.raised(few, np.append(scores, few))[0] - few[0] > 1e-5
    assert conformal.raised(np.zeros(30), scores)[0] > 1e-5  # saturated: on another processor they are 6e-8
    with pytest.raises(ValueError, match="1 of 2 calibration scores are NaN or infinite"):
        conformal.raised(np.array([1.0, np.nan]), scores)


# ---- Groups ----


def test_group_classes_by_hand():
    cases = {
        (1000, 20): ["head", "tail"], (500, 500, 500, 10, 10, 10): ["head"] * 3 + ["tail"] * 3, (7,): ["balanced"],
        (40, 10): ["balanced"] * 2, (50, 10): ["head", "tail"], (4, 100, 20): ["tail", "head", "middle"],
        (0, 3): ["tail", "head"], (0, 0): ["balanced"] * 2,
        (2000, 300, 50, 9, 1): ["head", "middle-1", "middle-2", "middle-3", "tail"],
    }  # fmt: skip
    for counts, expected in cases.items():
        assert group_classes(counts).of_class.tolist() == expected, counts
    with pytest.raises(ValueError, match="give the number of training images of each class"):
        group_classes([])


@given(counts=st.lists(st.integers(0, 20_000), min_size=1, max_size=60))
def test_groups_follow_the_counts_and_never_join_a_factor_of_five(counts):
    found = group_classes(counts)
    assert set(found.of_class) == set(found.names)
    assert len(set(found.names)) == len(found.names)
    ordered = [n for group in reversed(found.groups) for n in (group.least_images, group.most_images)]
    assert ordered == sorted(ordered)
    for group in found.groups:
        inside = [n for n, name in zip(counts, found.of_class, strict=True) if name == group.name]
        assert (min(inside), max(inside)) == (group.least_images, group.most_images)
        assert max(inside) < 5 * min(inside) or min(inside) == max(inside)


GROUPS = group_classes([1000, 20])


def uniform_weights(scored, mix=None):
    shares = np.array([0.98, 0.02])
    return calibrate.Weighted.by_mix(scored, mix or ClassMix("train", shares), GROUPS)


def keep(scores, predicted, levels=(0.95,)):
    scored = calibrate.Scored(np.asarray(scores, np.float64), np.asarray(predicted), np.asarray(predicted))
    weighted = uniform_weights(scored)
    held = calibrate.supported_levels(levels, weighted)
    found = calibrate.references(weighted, GROUPS, held)
    return calibrate.keep_points(found, weighted, GROUPS, held, ClassMix("train", np.array([0.98, 0.02])))


def test_each_group_has_its_own_quantile():
    points = keep([*shuffled(99), *(1000 + shuffled(39))], [0] * 99 + [1] * 39)
    limits = points["id95"]["group_thresholds"]
    assert limits == pytest.approx({"head": 95, "tail": 1038}, rel=1e-3)
    assert points["id95"]["group_promises"] == {"head": 0.05, "tail": 0.05}


def test_a_group_of_ten_borrows_nine_and_says_what_it_promises():
    points = keep([*shuffled(99), *(1000 + shuffled(10))], [0] * 99 + [1] * 10)
    assert points["id95"]["group_thresholds"]["tail"] == pytest.approx(1010, rel=1e-3)
    assert points["id95"]["group_promises"] == {"head": 0.05, "tail": 1 / 11}
    low = keep([*(1000 + shuffled(99)), *shuffled(10)], [0] * 99 + [1] * 10)
    assert 1009 < low["id95"]["group_thresholds"]["tail"] <= 1099.2  # the largest of nine of the head


@pytest.mark.parametrize(("images", "level"), [(9, 0.9), (19, 0.95), (39, 0.975), (99, 0.99)])
def test_a_sum_of_weights_that_is_rounded_costs_no_level(images, level):
    own = np.zeros(images, np.int64)
    for weight in np.random.default_rng(0).uniform(0.01, 20, 200).tolist():
        alike = calibrate.Weighted(
            calibrate.Scored(shuffled(images), own, own), np.full(images, weight), np.full(1, weight)
        )
        assert calibrate.supported_levels([level], alike) == [level], weight
        found = calibrate.references(alike, group_classes([100]), [level])
        assert found["balanced"].threshold(level) == pytest.approx(images, rel=1e-3)
        fewer = calibrate.Weighted(alike.images, alike.weights[1:], alike.class_weights)
        assert calibrate.supported_levels([level], fewer) != [level]


def test_levels_name_the_points_and_few_images_lower_them():
    scores, predicted = [*shuffled(99), *(1000 + shuffled(39))], [0] * 99 + [1] * 39
    assert list(keep(scores, predicted, levels=(0.9, 0.99))) == ["id90", "id99"]
    assert list(keep(shuffled(8), [0] * 8, levels=(0.95, 0.9, 0.8))) == ["id88", "id80"]
    assert keep(shuffled(8), [0] * 8)["id88"]["level"] == 0.88
    assert list(keep([1.0], [1], levels=(0.95,))) == ["id50"]
    for level in (0, 1, 95, math.nan):
        with pytest.raises(ValueError, match="is no share of images to keep: give one between 0 and 1"):
            keep(scores, predicted, levels=(level,))


def test_catch_points_catch_and_borrow_likewise():
    scored = calibrate.Scored(np.concatenate([shuffled(100), 1000 + shuffled(10)]), np.array([0] * 100 + [1] * 10))
    point = calibrate.catch_point(scored, GROUPS)["ood95"]
    assert (scored.scores > point["threshold"]).sum() == 110 - 4  # ⌊111·.05⌋ = 5: all from the 5th smallest on
    assert point["group_thresholds"]["head"] == pytest.approx(5, abs=0.1)
    assert point["group_thresholds"]["tail"] < 100  # below all of its own, and nine of the head's
    assert list(calibrate.catch_point(calibrate.Scored(shuffled(8), np.zeros(8, int)), GROUPS)) == ["ood88"]
    assert calibrate.catch_point(calibrate.Scored(np.empty(0), np.empty(0, int)), GROUPS) == {}


# ---- The mix of classes in service ----


def test_class_weights_by_hand():
    counts = np.array([90, 10])
    assert ClassMix("train", np.array([0.9, 0.1])).class_weights(counts, GROUPS.of_class).tolist() == [1, 1]
    found = ClassMix("uniform", np.array([0.5, 0.5])).class_weights(counts, GROUPS.of_class)
    assert found == pytest.approx([50 / 90, 5])
    lacking = ClassMix("uniform", np.full(3, 1 / 3)).class_weights(np.array([90, 0, 10]), np.array(["a", "a", "b"]))
    assert lacking == pytest.approx([2 / 3 * 100 / 90, 0, 1 / 3 * 100 / 10])  # the second's share goes to its group


def test_a_mix_from_a_file(tmp_path):
    path, counts = tmp_path / "mix.csv", np.array([900, 100])
    path.write_text('class,share\n"dog, big",3\ncat,1\n')
    found = class_mix(str(path), ["cat", "dog, big"], counts)
    assert (found.name, found.shares.tolist()) == ("mix.csv", [0.25, 0.75])
    path.write_text("cre\u0300me,1\n cat,3\n")  # as macOS writes file names
    assert class_mix(str(path), ["cat", "cr\u00e8me"], counts).shares.tolist() == [0.75, 0.25]
    assert class_mix("uniform", ["a", "b"], counts).shares.tolist() == [0.5, 0.5]
    assert class_mix("train", ["a", "b"], counts).shares.tolist() == [0.9, 0.1]


@pytest.mark.parametrize(("text", "message"), [
    ("a,1\n", "has no share for b: give a line for every class"),
    ("a,1\nb,2\nc,3\n", "has shares for c, which are no classes"),
    ("a,1\nb,x\n", "line 2 of .* is 'b,x': write class,share"),
    ("a,1\nb\n", "line 2 of .* is 'b': write class,share"),
    ("class,share\na,1,5\nb,0,5\n", "line 2 of .* is 'a,1,5': write class,share"),  # the shares would be 1 and 0
    ("a,1\na,2\nb,1\n", "line 2 of .* names a class twice"),
    ("a,1\nb,-1\n", r"line 2 of .* has a share of -1\.0"),
    ("a,1\nb,nan\n", "line 2 of .* has a share of nan"),
    ("a,0\nb,0\n", "are all 0"),
])  # fmt: skip
def test_a_mix_that_is_none(tmp_path, text, message):
    path = tmp_path / "mix.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        class_mix(str(path), ["a", "b"], np.array([1, 1]))


def test_a_mix_that_is_no_file():
    with pytest.raises(ValueError, match="class mix 'even' is neither train, uniform nor a file of shares"):
        class_mix("even", ["a"], np.array([1]))


# ---- Costs ----


POINT = {"threshold": 2.0, "group_thresholds": {"head": 3.0, "middle": 2.0, "tail": 1.0}}
THREE = group_classes([100, 20, 4])


def test_rejected_by_hand():
    scores, groups = np.array([2.5, 2.0, 1.5, 3.0, np.nan]), np.array(["head", "middle", "tail", "head", "head"])
    assert calibrate.rejected(scores, groups, POINT, "global").tolist() == [True, False, False, True, True]
    assert calibrate.rejected(scores, groups, POINT, "group").tolist() == [False, False, True, False, True]


def test_cost_by_hand():
    inside = calibrate.Scored(np.array([2.5, 2.0, 1.5, 3.5]), np.array([0, 1, 2, 0]), np.array([0, 0, 1, 1]))
    first = calibrate.Scored(np.array([5.0, 0.0]), np.array([0, 2]))
    second = calibrate.Scored(np.array([5.0, 6.0, 1.5, 1.5]), np.array([0, 0, 2, 1]))
    empty = calibrate.Scored(np.empty(0), np.empty(0, int))
    found = calibrate.cost(POINT, "group", THREE, inside, [first, second, empty])
    assert found["in_distribution_images"] == 4
    assert found["outlier_images"] == 6
    assert found["id_rejected"] == 0.5  # 1.5 as tail, 3.5 as head
    assert found["id_rejected_by_group"] == {"head": 0.0, "middle": 1.0, "tail": None}
    assert found["id_rejected_by_predicted_group"] == {"head": 0.5, "middle": 0.0, "tail": 1.0}
    assert found["outliers_caught"] == pytest.approx((1 / 2 + 3 / 4) / 2)  # each set once
    assert found["outliers_caught_by_predicted_group"] == {"head": 1.0, "middle": 0.0, "tail": 0.5}
    assert found["id_between_groups"] == {
        "head": {"head": (0.5, 0.0), "middle": (0.5, 0.0)}, "middle": {"head": (0.5, 1.0), "tail": (0.5, 1.0)}
    }  # fmt: skip
    none = calibrate.cost(POINT, "global", THREE, inside, [], weights=np.array([1.0, 1.0, 0.0, 2.0]))
    assert none["outliers_caught"] is None
    assert none["outlier_images"] == 0
    assert none["id_rejected"] == 0.75  # 2.5 and 3.5 of a weight of 4
    assert none["id_rejected_by_predicted_group"] == {"head": 1.0, "middle": 0.0, "tail": None}


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
    assert temperature.fit_temperature(stated, labels) == pytest.approx(known, rel=0.05)


def test_temperature_where_all_is_correct():
    assert temperature.fit_temperature([[0.9, 0.1], [0.2, 0.8]], [0, 1]) == 1.0


def test_temperature_stays_in_its_range():
    hopeless = temperature.fit_temperature([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], [1, 1, 0])
    assert hopeless == pytest.approx(20, rel=0.01)


# ---- Reference distributions ----


def test_distribution():
    alike = np.ones(5)
    assert distributions.distribution(shuffled(5), alike) == [1, 2, 3, 4, 5]
    found = distributions.distribution(shuffled(10_000), np.ones(10_000))
    assert len(found) == distributions.MOST_SCORES
    np.testing.assert_allclose(found, np.linspace(3, 9998, len(found)), atol=1)
    assert distributions.distribution(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 1.0, 1.0, 5.0])) == [1, 3, 4, 4]


def test_quantiles():
    groups = np.array(["head"] * 100 + ["tail"])
    found = distributions.quantiles(np.arange(101.0), groups, ("head", "middle", "tail"), np.empty(0))
    assert list(found) == ["all", "head", "tail"]
    assert found["all"] == pytest.approx(list(range(101)))
    assert found["tail"] == [100.0] * 101


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
    kept = (scores <= points["id95"]["threshold"]).sum()
    assert kept == -(-95 * (len(scores) + 1) // 100)
    outside = predictor(loaded.calibration_outliers).scores["msp"].astype(np.float64)
    assert (outside > points["ood95"]["threshold"]).sum() == len(outside) - (len(outside) + 1) // 20 + 1
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


def test_measure_with_levels_and_a_mix(digits_and_predict):
    loaded, predictor = digits_and_predict
    counts = measure.data_groups(loaded).counts
    mix = class_mix("uniform", loaded.train.classes, counts)
    found = measure.measure(
        predictor, loaded, {}, score="msp", temperature=1.0, scope="group", levels=(0.9, 0.8), mix=mix
    )
    assert list(found["operating_points"])[:2] == ["id90", "id80"]
    assert found["default_operating_point"] == "id90"
    record = found["calibration"]
    assert (record["class_mix"], record["class_shares"]) == ("uniform", [1 / 8] * 8)
    assert set(record["references"]) == {"all", *(g["name"] for g in found["groups"])}
    assert "in the class mix uniform" in found["operating_points"]["id90"]["description"]
    # costs count each calibration image by its weight: the mean over the classes
    scores = predictor(loaded.calibration.images).scores["msp"].astype(np.float64)
    labels = loaded.calibration.labels
    flags = scores > found["operating_points"]["id80"]["threshold"]
    by_class = [flags[labels == c].mean() for c in range(8) if (labels == c).any()]
    cost = found["operating_points"]["id80"]["global_cost"]["calibration"]
    if len(by_class) == 8:
        assert cost["id_rejected"] == pytest.approx(np.mean(by_class))


def test_groups_come_from_the_counts_before_the_calibration_split(digits_and_predict):
    loaded, predictor = digits_and_predict
    found = measure.measure(predictor, loaded, {}, score="msp", temperature=1.0, scope="group")
    before = loaded.train.counts + loaded.calibration.counts
    assert [c["group"] for c in found["classes"]] == group_classes(before).of_class.tolist()
    assert found["groups"][-1]["least_images"] == before.min()


def test_a_calibration_that_does_not_end_leaves_the_run_its_tree(finished, tmp_path, monkeypatch):
    """It had the new tree with the thresholds of the old one, for the next export."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    lines = [f"{name},{'even' if int(name) % 2 == 0 else 'odd'}/{name}\n" for name in checkpoint.load(run)["classes"]]
    (tmp_path / "tree.csv").write_text("class,path\n" + "".join(lines))

    def killed(*_, **__):
        raise KeyboardInterrupt

    command = Calibrate(run=run, taxonomy=tmp_path / "tree.csv", device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(measure, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            command.cli_cmd()
    assert taxonomy.recorded(run) is None
    command.cli_cmd()
    assert set(taxonomy.recorded(run).paths.values()) == {("even",), ("odd",)}
