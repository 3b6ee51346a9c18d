"""Reasons from calibration to the bundle: shares by hand, the promise with unfit images, a bundle that is served."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from service.contract import bundle, images, outcomes
from service.contract.bundle import Input
from service.contract.calibration import calibrate
from service.contract.calibration.calibrate import Scored
from service.contract.calibration.groups import group_classes
from service.contract.calibration.unfit import counted, refused
from service.contract.decision import Verdict, decide_row
from service.contract.reasons import Limits, Part
from service.inference.engine import Engine
from tests.training import tiny
from training import finished, trainer
from training.data import loading
from training.evaluation import fitness
from training.evaluation.fitness import Fitness
from training.evaluation.predict import Outputs
from training.evaluation.reasons import Teller
from training.runs import checkpoint
from training.scores.either import Either

LEAST = Limits(brightness=0.1, contrast=0.05, sharpness=1e-4, side_px=8, images=100, chosen="by hand")


# ---- By hand ----


def test_the_codes_of_images_by_hand() -> None:
    part = Part(at=0.0, scale=1.0, share=0.02)
    teller = Teller(Either("energy", 1.0, part, part), Fitness(LEAST), group_classes([100, 2]), "group")
    best = np.array([0.9, 0.9, 0.4, 0.4, 0.9, 0.4])
    probabilities = np.stack([best, 1 - best], axis=1).astype(np.float32)
    probabilities[4] = probabilities[4, ::-1]  # the rare class, whose threshold is 2
    energy = np.array([-1.0, 1.5, -1.0, 1.5, 1.5, -1.0], np.float32)
    total = np.maximum(energy, np.log((1 - probabilities.max(1)) / probabilities.max(1)))
    outputs = Outputs(probabilities, {"energy": energy, "energy|msp": total.astype(np.float32)})
    point = {"threshold": 9.0, "group_thresholds": {"head": -0.5, "tail": 2.0}}
    unfit = np.array([False, False, False, False, False, True])
    # .4 of two classes is .6 of the other one, so class 1 there: threshold 2
    codes = teller.codes(outputs, unfit, point)
    assert codes.tolist() == [0, 1, 0, 0, 0, 3]
    lower = {"threshold": 9.0, "group_thresholds": {"head": -0.5, "tail": -0.5}}
    assert teller.codes(outputs, unfit, lower).tolist() == [0, 1, 2, 1, 1, 3]
    told = teller.told(teller.codes(outputs, unfit, lower), outputs.predictions, np.array([0, 0, 0, 1, 1, 1]))
    assert told["all"] == {"images": 6, "unknown": 3 / 6, "unsure": 1 / 6, "unfit": 1 / 6}
    assert told["by_group"]["head"] == {"images": 3, "unknown": 1 / 3, "unsure": 1 / 3, "unfit": 0.0}
    assert told["by_predicted_group"]["head"]["images"] == 2


def test_calibration_images_that_are_unfit_take_part_of_what_may_be_refused() -> None:
    scores, unfit = np.arange(99.0), np.zeros(99, bool)
    unfit[:3] = True  # with the lowest scores: by their scores none would be refused
    images = Scored(scores, np.zeros(99, np.int64), np.zeros(99, np.int64))
    groups = group_classes([100])
    weighted = calibrate.Weighted.alike(counted(images, unfit), 1)
    limit = calibrate.references(weighted, groups, [0.95])["all"].threshold(0.95)
    assert (scores[~unfit] > limit).sum() == 1  # 4 of 99, of which 3 are unfit, and a new one is the fifth of 100
    costs = refused(images, unfit).scores
    assert (costs > limit).sum() == 4
    assert counted(images, np.zeros(99, bool)) is images


def test_the_promise_holds_for_all_refusals_together() -> None:
    """1,000 draws: limits from training images, thresholds from others, new images refused by either."""
    random, groups, shares = np.random.default_rng(0), group_classes([100]), []
    for _ in range(1000):
        calibration, new = random.normal(size=100), random.normal(size=200)
        dark, new_dark = (
            random.random(100) < 0.02,
            random.random(200) < 0.02,
        )  # as the limits have it, whatever the score
        images = Scored(calibration, np.zeros(100, np.int64), np.zeros(100, np.int64))
        weighted = calibrate.Weighted.alike(counted(images, dark), 1)
        limit = calibrate.references(weighted, groups, [0.95])["all"].threshold(0.95)
        shares.append(((new > limit) | new_dark).mean())
    assert 0.04 < np.mean(shares) <= 0.05 + 2 * np.std(shares) / 1000**0.5


# ---- Pixels ----


def test_the_measures_are_those_of_the_pixels() -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    pixels[1] = 90
    grey = pixels @ np.array([0.299, 0.587, 0.114]) / 255
    inner = grey[:, 1:-1, 1:-1]
    edges = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:] - 4 * inner
    expected = np.stack([inner.mean((1, 2)), inner.std((1, 2)), edges.var((1, 2))], axis=1)
    np.testing.assert_allclose(fitness.quality(pixels), expected, rtol=1e-3, atol=1e-5)


def test_larger_pictures_are_sampled_and_measured_nearly_alike() -> None:
    rows = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    whole = np.asarray(Image.fromarray(rows[0]).filter(ImageFilter.GaussianBlur(1)))[None]
    grey = whole[0] @ np.array([0.299, 0.587, 0.114]) / 255
    bright, contrast, _ = fitness.quality(whole)[0]
    assert bright == pytest.approx(grey.mean(), rel=0.02)
    assert contrast == pytest.approx(grey.std(), rel=0.05)


def test_pixels_that_a_resize_made_say_nothing_of_the_sharpness() -> None:
    small = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    large = small.repeat(5, axis=1).repeat(5, axis=2)
    np.testing.assert_array_equal(fitness.quality(large, spacing=5), fitness.quality(small))
    target = Input(height_px=160, width_px=160, fit="crop", crop_share=0.875, resampling="bicubic")
    assert fitness.spacing_of(small, target) == 6
    assert fitness.spacing_of(np.zeros((1, 300, 400, 3), np.uint8), target) == 1


def test_limits_are_half_of_what_a_thousandth_lies_below() -> None:
    side = 32
    levels = np.linspace(50, 250, 2000).round().astype(np.uint8)
    pixels = np.broadcast_to(levels[:, None, None, None], (2000, side, side, 3)).copy()
    pixels[:, ::2, ::2] //= 2
    found = fitness.limits(pixels, side)
    brightness = fitness.quality(pixels)[:, 0]
    assert found.brightness == pytest.approx(np.quantile(brightness, 0.001) / 2, rel=1e-3)
    assert (found.side_px, found.images) == (8, 2000)
    assert not fitness.below(found, fitness.quality(pixels), np.full(2000, side)).any()


# ---- A bundle ----


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(run, bundle) of a run on the digits whose deciding score says why."""
    run, models = tmp_path_factory.mktemp("runs") / "digits", tmp_path_factory.mktemp("models")
    trainer.train(tiny.config(method="msp", calibration_fraction=0.4, epochs=4), run)
    finished.Calibrate(run=run, score="energy|msp", device="cpu", unsure_share=0.4).cli_cmd()
    finished.Evaluate(run=run, score="energy|msp", device="cpu").cli_cmd()
    with tiny.quick_export(100):
        finished.Export(run=run, out=models, device="cpu", precision="fp32").cli_cmd()
    return run, models / "digits" / "1"


def test_the_bundle_says_how_refusals_are_told_apart(made: tuple[Path, Path]) -> None:
    run, folder = made
    manifest = bundle.read(folder)
    assert manifest.deciding_score == "energy|msp"
    assert manifest.reasons is not None
    record = json.loads((run / "calibration.json").read_text())["either"]
    assert manifest.reasons.unknown.model_dump() == record["unknown_part"]
    assert manifest.reasons.unsure.share == pytest.approx(0.4 * 0.05)
    assert f"{record['unknown_part']['at']:.6g}" in manifest.scores["energy|msp"].formula
    told = manifest.reasons.measured
    cost = manifest.operating_points["id95"].group_cost
    for shares, costed in ((told.calibration, cost.calibration), (told.test, cost.test)):
        assert shares is not None
        assert costed is not None
        total = shares.all.unknown + shares.all.unsure + shares.all.unfit
        assert total == pytest.approx(costed.id_rejected)
    assert set(told.outliers) == {"training outliers held back", "nine"}
    turned_out = outcomes.read(folder, manifest)
    assert turned_out is not None
    assert turned_out.unfit is not None
    assert turned_out.unfit[turned_out.known].mean() == pytest.approx(told.calibration.all.unfit)
    assert turned_out.unfit[~turned_out.known].mean() == pytest.approx(
        told.outliers["training outliers held back"].unfit
    )
    card = (folder / "CARD.md").read_text()
    assert "## Why it refuses" in card
    assert "| blurred | the variance of its Laplacian |" in card


def test_the_service_names_what_the_shares_count(made: tuple[Path, Path]) -> None:
    run, folder = made
    manifest = bundle.read(folder)
    engine, data = Engine(folder, manifest), loading.load(checkpoint.config_of(run), run)
    out = engine.run(data.test.images)
    assert out.quality is not None
    assert manifest.reasons is not None
    assert manifest.reasons.measured.test is not None
    verdicts: list[Verdict] = []
    for i in range(len(data.test.labels)):
        scores = {name: float(values[i]) for name, values in out.scores.items()}
        verdicts.append(decide_row(manifest, out.probabilities[i], scores, "id95", "group", out.quality[i], 16))
    told = manifest.reasons.measured.test.all
    for reason in ("unknown", "unsure", "unfit"):
        assert np.mean([v.reason == reason for v in verdicts]) == pytest.approx(getattr(told, reason))
    assert sum(v.reason is None for v in verdicts) == sum(v.decision == "accept" for v in verdicts)
    engine.close()


@pytest.mark.parametrize(
    ("picture", "what"),
    [
        (Image.new("RGB", (40, 40), (200, 30, 30)), "blank"), (Image.new("RGB", (40, 40)), "dark"),
        (Image.new("L", (3, 3), 255), "small"),
    ],
)  # fmt: skip
def test_pictures_of_nothing_are_unfit(made: tuple[Path, Path], picture: Image.Image, what: str) -> None:
    manifest = bundle.read(made[1])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    loaded = images.load(buffer.getvalue(), manifest.input, max_pixels=10**6)
    engine = Engine(made[1], manifest)
    out = engine.run(loaded.pixels[None])
    assert out.quality is not None
    scores = {name: float(values[0]) for name, values in out.scores.items()}
    verdict = decide_row(manifest, out.probabilities[0], scores, "id95", "group", out.quality[0], loaded.width_px)
    assert (verdict.decision, verdict.reason, verdict.unfit) == ("reject", "unfit", what)
    engine.close()


def test_a_score_that_says_why_is_calibrated_first(made: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match=r"calibrate the run with --score ncm\|msp"):
        finished.Evaluate(run=made[0], score="ncm|msp", device="cpu").cli_cmd()
