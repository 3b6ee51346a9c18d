"""Which score decides: the rule by hand, classes left out in turn, and the choice from calibration to the card."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from service.contract import bundle
from tests.training import tiny
from tests.training.network.test_frozen import config, write_extractor
from training import finished, trainer
from training.data import loading
from training.data.loading import Data
from training.evaluation import choose, left_out, predict
from training.evaluation.choose import LEFT_OUT, OUTLIERS, Candidate
from training.network import frozen
from training.runs import checkpoint
from training.runs.checkpoint import Run

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    """Two folds, fewer images compared at export, and no plots on the card."""
    with tiny.quick_export(300) as patch:
        patch.setattr(left_out, "FOLDS", 2)
        yield


def candidates(**worth: float) -> list[Candidate]:
    named = {name.replace("_or_msp", "|msp").replace("_", "+"): value for name, value in worth.items()}
    return [Candidate(name, {OUTLIERS: value}) for name, value in named.items()]


@pytest.mark.parametrize(
    ("given", "chosen", "why"),
    [
        ({"energy": 0.9, "msp": 0.7}, "energy", "the best single score"),
        ({"energy": 0.7, "msp": 0.9}, "msp", "the best single score"),
        ({"energy": 0.896, "msp": 0.9}, "energy", "within 0.4 points of msp, and simpler"),
        ({"energy": 0.8, "msp": 0.9, "energy_msp": 0.909}, "msp", "no sum of two is better enough"),
        ({"energy": 0.8, "msp": 0.9, "energy_msp": 0.911}, "energy+msp", "the sum is 1.1 points better than msp"),
        ({"energy": 0.896, "msp": 0.9, "energy_msp": 0.907}, "energy", "and simpler"),
        ({"energy": 0.9, "msp": 0.8, "energy_or_msp": 0.89}, "energy|msp", "1.0 points below energy, the best"),
        ({"energy": 0.9, "msp": 0.8, "energy_or_msp": 0.91}, "energy|msp", "1.0 points above energy, the best"),
        ({"energy": 0.9, "msp": 0.8, "energy_or_msp": 0.879}, "energy", "is too far below it: 2.1 points"),
        ({"energy": 0.89, "gen": 0.9, "energy_or_msp": 0.885}, "energy|msp", "1.5 points below gen, the best"),
        ({"energy": 0.87, "gen": 0.9, "energy_or_msp": 0.875}, "gen", "is too far below it: 2.5 points"),
        (
            {"energy": 0.8, "ncm": 0.8, "energy_ncm": 0.9, "energy_ncm_or_msp": 0.9, "energy_or_msp": 0.9},
            "energy+ncm|msp",
            "energy+ncm says best what is unknown",
        ),
    ],
)
def test_the_rule_by_hand(given: dict[str, float], chosen: str, why: str) -> None:
    score, reason = choose.best(candidates(**given))
    assert score == chosen
    assert why in reason


def test_a_score_is_worth_the_mean_of_both_kinds() -> None:
    assert Candidate("energy", {OUTLIERS: 0.9, LEFT_OUT: 0.6}).worth == pytest.approx(0.75)


def test_auroc_against_scikit_learn_with_ties() -> None:
    random = np.random.default_rng(0)
    inside, outside = random.integers(0, 9, 60).astype(float), random.integers(3, 12, 40).astype(float)
    truth = np.repeat([0, 1], [60, 40])
    expected = roc_auc_score(truth, np.concatenate([inside, outside]))
    assert choose.auroc(inside, outside) == pytest.approx(expected)


def test_folds_deal_head_and_tail_and_leave_half_to_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(left_out, "FOLDS", 5)
    counts = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
    parts = left_out.folds(counts)
    assert sorted(np.concatenate(parts).tolist()) == list(range(11))
    assert parts[0].tolist() == [0, 5, 10]  # the largest, the sixth, the smallest
    assert len(parts) == 5
    assert [len(part) for part in left_out.folds(counts[:4])] == [2, 2]


# ---- On a frozen backbone ----


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("choose")
    write_extractor(folder / "means.onnx")
    given = config(folder / "means.onnx", method="tailguard-joint", epochs=4)
    return trainer.train(given, folder / "run")


@pytest.fixture(scope="module")
def given(run_folder: Path) -> tuple[Run, Data]:
    run = checkpoint.trained(run_folder)
    backbone = frozen.load(run.config, run_folder)
    return run, backbone.data(loading.load(run.config, run_folder, target=backbone.target))


def test_a_fold_has_not_seen_its_classes(given: tuple[Run, Data]) -> None:
    run, data = given
    before = {name: value.clone() for name, value in run.scoring.state_dict().items()}
    seen: list[int] = []
    for fold in left_out.left_out(run, data, CPU):
        classes = [run.classes.index(name) for name in fold.run.classes]
        outside = set(fold.unknown_labels.tolist())
        assert not outside & set(classes)
        assert len(fold.data.train.labels) == data.train.counts[classes].sum()
        assert fold.data.train.counts.tolist() == data.train.counts[classes].tolist()
        own = fold.data.calibration
        rows = np.flatnonzero(np.isin(data.calibration.labels, classes))
        np.testing.assert_array_equal(own.images, data.calibration.images[rows])
        assert [own.classes[c] for c in own.labels] == [run.classes[c] for c in data.calibration.labels[rows]]
        with torch.no_grad():
            logits, _ = fold.run.scoring(torch.from_numpy(np.array(own.images)))
        assert float((logits.argmax(dim=1).numpy() == own.labels).mean()) > 0.7
        seen += sorted(outside)
    assert sorted(seen) == np.unique(data.calibration.labels).tolist()
    after = run.scoring.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_choice_is_deterministic_and_rests_on_both_kinds(given: tuple[Run, Data]) -> None:
    run, data = given
    random = torch.get_rng_state()
    one, two = choose.choose(run, data, CPU), choose.choose(run, data, CPU)
    assert one == two
    assert torch.equal(torch.get_rng_state(), random)
    assert set(one.images) == {OUTLIERS, LEFT_OUT}
    assert one.score in {c.score for c in one.candidates}
    found = {c.score: c for c in one.candidates}
    assert "knn" not in found
    assert "in-or-out" not in found  # of ImOOD's reject logit, which means the opposite
    # what the exported score gives is what was compared
    pair = "reject-half+ncm"
    module = predict.deployed(run, scores=[pair], train=data.train)
    model = predict.torch_predict(module, CPU)
    inside, outside = (model(x).scores[pair] for x in (data.calibration.images, data.calibration_outliers))
    assert choose.auroc(inside.astype(float), outside.astype(float)) == pytest.approx(
        found[pair].aurocs[OUTLIERS], abs=2e-3
    )


def test_without_outliers_left_out_classes_decide(given: tuple[Run, Data]) -> None:
    run, data = given
    none = replace(data, calibration_outliers=data.calibration_outliers[:0])
    assert set(choose.choose(run, none, CPU).images) == {LEFT_OUT}


def test_from_calibration_to_the_card(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "PAIR_MARGIN", -1.0)  # so that the sum of two decides
    finished.Calibrate(run=run_folder, score="auto").cli_cmd()
    record = json.loads((run_folder / "calibration.json").read_text())
    assert record["score"] == record["score_choice"]["score"]
    assert f"deciding score {record['score']}: {record['score_choice']['why']}" in capsys.readouterr().out
    finished.Export(run=run_folder, out=tmp_path, precision="fp32").cli_cmd()
    manifest = bundle.read(tmp_path / "digits" / "1")
    assert manifest.deciding_score == record["score"]
    assert "+" in record["score"]
    assert record["score"] in manifest.golden[0].scores
    assert manifest.evaluation["score_choice"] == record["score_choice"]
    card = (tmp_path / "digits" / "1" / "CARD.md").read_text()
    assert "## Why this score decides" in card
    named = record["score"].replace("|", "\\|")
    assert f"| `{named}` |" in card


# ---- From scratch ----


def scratch(folder: Path, **changes: Any) -> tuple[Run, Data]:
    run = checkpoint.trained(folder)
    return run, replace(loading.load(run.config, folder), **changes)


def test_a_network_from_scratch_is_judged_by_outliers_alone(finished: Path) -> None:
    run, data = scratch(finished)
    choice = choose.choose(run, data, CPU)
    assert set(choice.images) == {OUTLIERS}
    assert all("reject" not in c.score for c in choice.candidates)  # the network has no reject logits
    empty = np.empty((0, 16, 16, 3), np.uint8)
    own = choose.choose(run, replace(data, calibration_outliers=empty), CPU)
    assert (own.score, own.candidates) == (run.method.score, ())
    assert "no held-back outliers" in own.record(run.method.score)["why"]
    assert own.record(run.method.score)["margin_over_method_score"] is None


def test_auto_is_for_calibrate_alone(finished: Path) -> None:
    from training.finished import Evaluate

    with pytest.raises(ValueError, match="There is no score 'auto'"):
        Evaluate(run=finished, score="auto").cli_cmd()
