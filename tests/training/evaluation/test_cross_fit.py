"""Cross-fitting: folds that part no group, heads that have not seen what they judge, figures and thresholds of both."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from service.contract import bundle
from service.contract.calibration.groups import group_classes
from tests.training import tiny
from tests.training.network.test_frozen import config, write_extractor
from training import finished, trainer
from training.data import loading
from training.data.choice import Choice, Part
from training.data.loading import Data
from training.data.readers import DataError
from training.data.splits import folds
from training.evaluation import cross_costs, cross_fit, folding, left_out, measure, predict
from training.evaluation.cross_fit import FOLDS, NAMED, Judged
from training.evaluation.predict import Outputs
from training.evaluation.reasons import Found
from training.network import frozen
from training.runs import checkpoint
from training.runs.checkpoint import Run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head with an outlier class on a frozen extractor, of scikit-learn's digits."""
    folder = tmp_path_factory.mktemp("cross")
    write_extractor(folder / "means.onnx")
    return trainer.train(config(folder / "means.onnx", method="tailguard-joint", learning_rate=0.01), folder / "run")


@pytest.fixture(scope="module")
def loaded(run: Path) -> tuple[Run, Data]:
    kept = checkpoint.trained(run)
    backbone = frozen.load(kept.config, run)
    return kept, backbone.data(loading.load(kept.config, run, target=backbone.target))


def untested(data: Data) -> Data:
    """`data` as it is read where there is no test part."""
    return replace(data, test=data.test.take(np.arange(0)))


# ---- Folds ----


def test_folds_keep_groups_together_and_deal_out_each_class() -> None:
    units = np.array([7, 7, 7, 1, 2, 3, 4, 9, 9, 8, 8, 5], np.uint64)
    labels = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2])
    found = folds(units, labels, np.ones(12, bool), 2)
    assert found[:3].tolist() == [0, 0, 0]  # the largest group first
    assert (found[3:7] == 1).sum() >= 2  # then the other fold is filled up
    assert abs((found[:7] == 0).sum() - (found[:7] == 1).sum()) <= 1
    assert found[7] == found[8] != found[9] == found[10]
    assert found[11] == -1  # the only image of its class is always learnt


def test_folds_leave_each_class_something_to_learn_from() -> None:
    units, labels = np.arange(4, dtype=np.uint64), np.array([0, 0, 1, 1])
    assert folds(units, labels, np.array([True, False, True, True]), 2).tolist()[:2] != [0, 1]
    found = folds(units, labels, np.array([True, False, True, True]), 2)
    assert found[0] == -1  # what is left of class 0 would be a calibration image alone
    assert sorted(found[2:].tolist()) == [0, 1]


def test_folds_do_not_depend_on_the_order_of_images() -> None:
    random = np.random.default_rng(0)
    units, labels = random.integers(0, 40, 200).astype(np.uint64), random.integers(0, 3, 200)
    order = random.permutation(200)
    one, two = (folds(u, y, np.ones(200, bool), 5) for u, y in ((units, labels), (units[order], labels[order])))
    np.testing.assert_array_equal(one[order], two)
    assert all(len(set(one[units == u])) == 1 for u in np.unique(units))


# ---- Groups are written down ----


def test_groups_survive_in_the_choice(tmp_path: Path) -> None:
    keys, none = np.array([3, 5, 9], np.uint64), Part(np.array([], np.uint64), [])
    parts = {"train": Part(keys, ["a", "a", "b"], ["x", "y", "z"], [11, 11, 12])}
    Choice(parts | dict.fromkeys(("calibration", "test", "outliers", "calibration_outliers"), none)).write(tmp_path)
    again = Choice.read(tmp_path)
    assert again.groups_of(np.array([9, 5, 3, 4], np.uint64)).tolist() == [12, 11, 11, 4]  # type: ignore[union-attr]
    file = tmp_path / "split.csv"
    file.write_text("\n".join(line.rsplit(",", 1)[0] for line in file.read_text().splitlines()) + "\n")
    assert Choice.read(tmp_path).groups_of(keys) is None  # of an earlier version


# ---- Heads ----


def test_each_image_is_judged_by_the_head_that_has_not_seen_it(loaded: tuple[Run, Data]) -> None:
    run, data = loaded
    crossed = folding.with_folds(run, untested(data), CPU, calibrates=False).folds
    assert len(crossed.images.labels) == len(data.train.labels) + len(data.calibration.labels)
    judged = crossed.judge("reject-mass")
    for k, head in enumerate(crossed.heads):
        own = crossed.fold == k
        assert sum(head.train_counts) == (crossed.fold[: len(data.train.labels)] != k).sum()
        module = predict.deployed(head, scores=["reject-mass"])
        alone = predict.torch_predict(module, CPU)(crossed.images.images[own])
        rows = judged.of(k)
        np.testing.assert_allclose(judged.outputs.scores["reject-mass"][rows], alone.scores["reject-mass"], atol=1e-5)
        np.testing.assert_array_equal(judged.labels[rows], crossed.images.labels[own])
    weights = [head.scoring.head.weight for head in crossed.heads]
    assert not any(torch.equal(weights[0], other) for other in weights[1:])


def test_heads_are_kept_and_not_trained_again(loaded: tuple[Run, Data], monkeypatch: pytest.MonkeyPatch) -> None:
    run, data = loaded
    first = cross_fit.CrossFit(run, data, CPU).judge("energy")
    monkeypatch.setattr(left_out, "trained", lambda *_: pytest.fail("trained again"))
    again = cross_fit.CrossFit(run, data, CPU).judge("energy")
    np.testing.assert_array_equal(first.outputs.scores["energy"], again.outputs.scores["energy"])
    monkeypatch.undo()
    os.truncate(run.folder / cross_fit.HEADS_FILE, 1000)  # a copy that was cut off
    anew = cross_fit.CrossFit(run, data, CPU).judge("energy")
    np.testing.assert_array_equal(first.outputs.scores["energy"], anew.outputs.scores["energy"])


def test_with_a_test_part_nothing_is_cross_fitted_unless_asked_for(loaded: tuple[Run, Data]) -> None:
    run, data = loaded
    assert folding.with_folds(run, data, CPU, calibrates=False).folds is None
    assert folding.with_folds(run, data, CPU, calibrates=True).folds is not None
    second = replace(run, method=replace(run.method, stage2="crt"))
    assert folding.with_folds(second, untested(data), CPU, calibrates=False).folds is None
    with pytest.raises(ValueError, match="--cross-fit: its second stage, crt"):
        folding.with_folds(second, data, CPU, calibrates=True)


def test_scores_of_another_graph_are_refused(loaded: tuple[Run, Data]) -> None:
    run, data = loaded
    crossed = cross_fit.CrossFit(run, data, CPU)
    seen = predict.torch_predict(predict.deployed(run), CPU)(data.calibration.images).scores["energy"]
    crossed.require_same_scores("energy", seen + 1e-5)
    with pytest.raises(ValueError, match="export with --precision fp32"):
        crossed.require_same_scores("energy", seen + 1)


@pytest.mark.parametrize("score", ["energy", "msp"])
def test_the_rounding_of_a_single_calibration_image_is_no_other_graph(loaded: tuple[Run, Data], score: str) -> None:
    """One image has no span: the export of 88 images of 41 classes failed on 2e-7, after all of the work."""
    run, data = loaded
    crossed = cross_fit.CrossFit(run, replace(data, calibration=data.calibration.take(np.array([0]))), CPU)
    seen = predict.torch_predict(predict.deployed(run, scores=[score]), CPU)(data.calibration.images[:1]).scores[score]
    crossed.require_same_scores(score, np.nextafter(seen, np.float32(np.inf)))
    with pytest.raises(ValueError, match="export with --precision fp32"):
        crossed.require_same_scores(score, seen + 1)


def test_too_few_groups_are_refused_in_words(loaded: tuple[Run, Data]) -> None:
    run, data = loaded
    one = {name: replace(part, groups=[7] * len(part.keys)) for name, part in data.choice.parts.items()}
    with pytest.raises(DataError, match="--test-fraction"):
        cross_fit.CrossFit(run, replace(data, choice=Choice(one)), CPU).judge("energy")


# ---- Validation images ----


def test_validation_images_alone_set_the_thresholds_with_a_test_part_and_without(loaded: tuple[Run, Data]) -> None:
    """Without one the training images did too, many times as many: val/ of another camera had next to no say."""
    run, data = loaded
    model = predict.torch_predict(predict.deployed(run, scores=["energy"]), CPU)
    validated = replace(data, validated=True)
    tested = folding.with_folds(run, validated, CPU, calibrates=False)
    alone = folding.with_folds(run, untested(validated), CPU, calibrates=False)
    one, two = (measure.measure(model, d, {}, score="energy", temperature=1.0, scope="group") for d in (tested, alone))
    for name, point in one["operating_points"].items():
        for kind in ("threshold", "group_thresholds"):
            assert two["operating_points"][name][kind] == pytest.approx(point[kind], abs=1e-5)
    assert two["calibration"]["references"]["all"]["images"] == len(data.calibration.labels)
    assert "calibrated" not in two["evaluation"]  # which would say that heads on parts set the thresholds
    outputs = model(data.calibration.images)
    assert two["evaluation"]["accuracy"] == pytest.approx((outputs.predictions == data.calibration.labels).mean())
    assert (two["evaluation"]["figures"], two["evaluation"]["images"]) == (
        folding.VALIDATED, len(data.calibration.labels)
    )  # fmt: skip


def test_no_validation_image_has_a_say_in_the_threshold_that_it_is_judged_at(loaded: tuple[Run, Data]) -> None:
    run, data = loaded
    judge = folding.with_folds(run, untested(replace(data, validated=True)), CPU, calibrates=False).folds
    judged = judge.judge("energy")
    assert all(head is run for head in judge.heads)
    assert (judge.fold[: len(data.train.labels)] == -1).all()
    assert sorted(set(judged.folds.tolist())) == list(range(FOLDS))
    np.testing.assert_array_equal(judge.judged_images.keys, data.calibration.keys)
    groups = data.choice.groups_of(data.calibration.keys)
    assert groups is not None
    assert all(len(set(judged.folds[groups == g].tolist())) == 1 for g in np.unique(groups))


@pytest.mark.parametrize(
    ("frozen", "tested", "validated", "kind"),
    [(True, True, True, None), (True, True, False, None), (False, True, False, None), (False, False, False, None),
     (True, False, True, folding.OnValidation), (False, False, True, folding.OnValidation),
     (True, False, False, cross_fit.CrossFit)],
)  # fmt: skip
def test_which_folds_follow_from_the_parts(frozen: bool, tested: bool, validated: bool, kind: object) -> None:
    assert folding.kind(frozen=frozen, tested=tested, validated=validated) is kind


# ---- Figures ----


def test_pooled_costs_are_those_of_all_images_together() -> None:
    groups = group_classes([100, 2])
    labels = np.array([0, 0, 0, 1, 0, 1, 0, 0, 1, 0])
    scores = np.array([9, 1, 1, 9, 1, 1, 1, 9, 1, 1], np.float32)
    probabilities = np.eye(2, dtype=np.float32)[labels]
    out = Outputs(np.eye(2, dtype=np.float32)[[0, 1]], {"s": np.array([9, 1], np.float32)})
    judged = Judged(labels, np.arange(10) % FOLDS, Outputs(probabilities, {"s": scores}), ({"x": out},) * FOLDS, [7, 3],
                    np.zeros(10, bool))  # fmt: skip
    mix = cross_costs.ClassMix("train", np.array([0.7, 0.3]))
    point = {"level": None, "threshold": 5.0, "group_thresholds": {"head": 5.0, "tail": 5.0}}
    found, refused, caught = cross_costs.costs(
        judged, "s", {"ood95": point}, groups, mix, "group", Found(None, "ood95")
    )
    cost = found["ood95"]["group"]
    assert cost["in_distribution_images"] == 10
    assert cost["id_rejected"] == pytest.approx(0.3)
    assert cost["id_rejected_by_group"] == pytest.approx({"head": 2 / 7, "tail": 1 / 3})
    assert cost["id_between_groups"] == {
        "head": {"head": pytest.approx((1, 2 / 7))}, "tail": {"tail": pytest.approx((1, 1 / 3))}
    }  # fmt: skip
    assert (cost["outlier_images"], cost["outliers_caught"]) == (2, pytest.approx(0.5))
    assert refused["ood95"].tolist() == (scores > 5).tolist()
    assert caught["ood95"] == pytest.approx({"x": 0.5})
    results = judged.results("s")
    assert (results["accuracy"], results["figures"], results["images"]) == (1.0, NAMED, 10)


def test_thresholds_rest_on_all_images_and_the_bundle_says_so(run: Path, tmp_path: Path) -> None:
    finished.Calibrate(run=run, device="cpu").cli_cmd()
    split = json.loads((run / "calibration.json").read_text())
    finished.Calibrate(run=run, device="cpu", cross_fit=True).cli_cmd()
    crossed = json.loads((run / "calibration.json").read_text())
    data = loading.load(checkpoint.config_of(run), run)
    everything = len(data.train.labels) + len(data.calibration.labels)
    assert split["calibration"]["references"]["all"]["images"] == len(data.calibration.labels)
    assert crossed["calibration"]["references"]["all"]["images"] == everything
    assert crossed["evaluation"]["images"] == len(data.test.labels)  # figures are the test part's as before
    assert "figures" not in crossed["evaluation"]
    cost = crossed["operating_points"]["id95"]["global_cost"]
    assert cost["calibration"]["id_rejected"] <= 0.05
    assert cost["test"]["in_distribution_images"] == len(data.test.labels)
    with tiny.quick_export(100):
        finished.Export(run=run, out=tmp_path, device="cpu").cli_cmd()
    manifest = bundle.read(tmp_path / "digits" / "1")
    assert manifest.evaluation["calibrated"] == NAMED
    assert manifest.calibration.reference("global", "head").images == everything
    assert "cross-conformal" in (tmp_path / "digits" / "1" / "CARD.md").read_text()
