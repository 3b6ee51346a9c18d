"""training/fit/plan.py: what is chosen, and the reason that is printed beside it."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.training.fit.test_alike import data as data
from tests.training.fit.test_alike import scene
from training.data.folders import set_name
from training.data.readers import DataError
from training.fit import plan, steps
from training.fit.command import Fit


def fraction(given: Fit) -> list[tuple[float, str]]:
    return [(c.value, c.reason) for c in plan.make(given).choices if c.setting == "calibration_fraction"]


def test_with_validation_images_nothing_is_said_of_training_images_held_back(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was said that each group gets so many of them, and by that the share of outliers held back was chosen."""
    monkeypatch.chdir(tmp_path)
    given = {"data": data, "backbone": "onnx:x"}
    assert fraction(Fit(**given)) == []
    [why] = [c.reason for c in plan.make(Fit(data=data / "train", backbone="onnx:x")).choices if c.setting == "data"]
    assert why.endswith("train has val/ and test/ beside it")
    (tmp_path / "outliers").mkdir()
    for i in range(5):
        scene(900 + i).save(tmp_path / "outliers" / f"{i}.png")
    with_outliers = given | {"outliers": tmp_path / "outliers"}
    assert fraction(Fit(**with_outliers)) == [(0.1, "of the outliers: there are validation images to calibrate on")]
    assert fraction(Fit(**with_outliers, calibration_fraction=0.4)) == [(0.4, "as given")]
    (data / "val").rename(tmp_path / "elsewhere")
    [(_, why)] = fraction(Fit(**given))
    assert "images" in why
    assert "validation" not in why


def test_ood_sets_of_one_name_are_refused_before_anything_is_computed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were when the first head had been trained, and then the fit that had begun took no others."""
    monkeypatch.chdir(tmp_path)
    for place in ("day/strangers", "night/strangers"):
        (tmp_path / place).mkdir(parents=True)
        scene(900).save(tmp_path / place / "0.png")
    both = (tmp_path / "day/strangers", tmp_path / "night/strangers")
    with pytest.raises(DataError, match=r"two OOD sets are called 'strangers', .*day/strangers and .*night/"):
        plan.make(Fit(data=data, backbone="onnx:x", ood=both))
    assert set_name(Path("day/strangers")) == set_name(Path("day/strangers/.")) == "strangers"
    monkeypatch.chdir(both[0])
    assert set_name(Path()) == "strangers"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"score": "energi"}, "There is no score 'energi'. Choose from: energy"),
        ({"score": "reject-half"}, "Score 'reject-half' reads reject logits, and this network has none"),
        ({"score": "reject-half", "heads": ("tailguard-placeholders", "msp")}, "this network has none"),
        ({"name": "shop/shelf"}, "--name 'shop/shelf': use small letters, digits"),
    ],
)
def test_a_score_or_a_name_that_does_not_do_is_refused_before_anything_is_computed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], said: str
) -> None:
    """The score was when features and a head were there; models/shop/shelf/1 was written, and called shelf."""
    monkeypatch.chdir(tmp_path)
    given = {"data": data, "backbone": "onnx:x"}
    with pytest.raises(ValueError, match=re.escape(said)):
        plan.make(Fit(**given, **wrong))
    assert plan.make(Fit(**given, score="reject-half|msp", heads=("tailguard-placeholders",))).heads


def test_a_validation_part_without_a_test_part_is_what_thresholds_and_figures_rest_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (data / "test").rename(tmp_path / "elsewhere")
    given = Fit(data=data, backbone="onnx:x")
    made = plan.make(given)
    plan.require_held_back(made)
    [why] = [c.reason for c in made.choices if c.setting == "test_fraction"]
    assert why.startswith("no test part: figures are cross-fitted over 5 folds of the validation images")
    assert steps.trainings(made, "energy") == len(made.heads)  # no head is trained to judge: none has seen val/
    for path in sorted((data / "val").rglob("*.png"))[4:]:
        path.unlink()
    with pytest.raises(DataError, match=r"no test part, and 4 validation images to judge by folds, of which 5"):
        plan.require_held_back(plan.make(given))
