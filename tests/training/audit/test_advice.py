"""What calibration can support, by hand, and the rules behind the advice."""

import shlex

import numpy as np
import pytest

from service.contract.calibration.groups import group_classes
from tests.training.pictures import chosen, save, write_folder
from training.audit import advice, audit, render, timing
from training.config import Config
from training.layout import span
from training.methods import methods


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path)


# ---- What calibration can support ----


@pytest.mark.parametrize(("level", "images"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99)])
def test_images_needed_and_the_level_they_give_agree(level, images):
    assert advice.images_needed(level) == images
    assert advice.highest_level(images) == pytest.approx(level)


def test_no_images_support_nothing():
    assert advice.highest_level(0) == 0


def test_calibration_support_by_hand():
    counts = np.array([1000, 100, 40, 4])
    found = advice.support(counts, group_classes(counts), outliers=250, fraction=0.1)  # held out: 100, 10, 4, 0
    rows = {g: (s.classes, s.train_images, s.calibration_images, s.supported) for g, s in found.groups.items()}
    assert rows == {"head": (1, 1000, 100, True), "middle": (2, 140, 14, False), "tail": (1, 4, 0, False)}
    assert [s.promise for s in found.groups.values()] == pytest.approx([0.05, 1 / 15, 1])
    assert found.classes_by_level == {"80%": 3, "90%": 2, "95%": 1, "99%": 1}
    assert found.outliers == 25


@pytest.mark.parametrize(("few", "fraction"), [(200, 0.1), (100, 0.2), (70, 0.3), (20, 0.1)])
def test_the_calibration_fraction_is_the_smallest_that_helps(few, fraction):
    counts = np.array([1000, 500, few])
    found, reason = advice.calibration_fraction(counts, group_classes(counts))
    assert found == fraction
    assert ("up to 33% of tail may be refused" in reason) == (few == 20)


# ---- Advice ----


@pytest.mark.parametrize(("tail", "outliers", "method"), [
    (True, True, advice.BEST_FROZEN), (True, False, advice.OUTLIER_FREE), (False, True, "oe"), (False, False, "msp"),
])  # fmt: skip
def test_the_method_follows_tail_and_outliers(folder, tail, outliers, method):
    if outliers:
        save(folder / "outliers" / "0.png", 600)
    if not tail:
        for i in range(2, 6):
            save(folder / "train" / "cow" / f"{i}.png", 650 + i)
    assert chosen(audit(folder))["method"] == method


def advised(counts, **changes):
    given = {
        "dataset": "folder", "data": "DATA", "imbalance": None, "outliers": "OUT", "median_side_px": 32,
        "frozen": False, "validated": False, "counts": np.array(counts), "groups": group_classes(counts),
    }  # fmt: skip
    return {s.name: s.value for s in advice.advise(**given | changes).settings}


@pytest.mark.parametrize(("side", "size"), [(20, 32), (32, 32), (47, 32), (48, 48), (63, 48), (640, 64)])
def test_the_image_size_enlarges_no_more_than_half(side, size):
    assert advised([500, 20], median_side_px=side)["image_size_px"] == size
    assert "image_size_px" not in advised([500, 20], median_side_px=side, dataset="cifar10")


@pytest.mark.parametrize(("side", "size"), [(32, 160), (159, 160), (160, 224), (3000, 224)])
def test_a_pretrained_backbone_is_advised_at_the_size_that_suits(side, size):
    found = advised([500, 20], median_side_px=side, frozen=True)
    assert (found["backbone"], found["image_size_px"], "epochs" in found) == ("lite0", size, False)
    assert found["method"] == advice.BEST_FROZEN
    assert advised([500, 20], outliers=None, frozen=True)["method"] == advice.OUTLIER_FREE


def test_photographs_are_advised_a_pretrained_backbone_and_digits_are_not(folder):
    report = audit(folder)
    assert (report.advice.name, [a.name for a in report.alternatives]) == ("frozen", ["scratch"])
    assert "or all steps at once" in render(report)
    report = audit(None, dataset="digits", imbalance=10)
    assert (report.advice.name, report.alternatives) == ("scratch", [])
    assert chosen(report)["method"] == advice.BEST  # they bring outliers
    # 116 · 10^(-c/7), rounded down, for c from 0 to 7; every third image of a digit is for the test
    assert {p.name: p.images for p in report.parts} == {"train": 382, "test": 478, "outliers": 174, "ood/nine": 180}


def test_the_line_of_all_steps_names_what_was_looked_at(folder):
    """It named the folder alone: pasted, it trained without the outliers, in other groups, and measured nothing."""
    data = folder.rename(folder.parent / "my shelf")
    for name in ("outliers", "ood/sea", "ood/sky"):
        save(data / name / "0.png", 600 + len(name))
    report = audit(data, class_level=1, group_by="folder")
    text = render(report).partition("or all steps at once, to a bundle that can be served:\n")[2].partition("\n\n")[0]
    words = shlex.split(text.replace("\\\n", " "))
    assert words[words.index("fit") + 1] == str(data)
    given = dict(zip(words[words.index("fit") + 2 :: 2], words[words.index("fit") + 3 :: 2], strict=True))
    assert (given["--outliers"], given["--group-by"], given["--class-level"]) == (str(data / "outliers"), "folder", "1")
    assert [w for w in words if w.startswith(str(data / "ood"))] == [str(data / "ood/sea"), str(data / "ood/sky")]


def test_what_outliers_would_add_and_what_they_do_not_promise(folder):
    assert any(note.startswith("no outliers: everything works") for note in audit(folder).notes)
    save(folder / "outliers" / "0.png", 600)
    notes = audit(folder).notes
    assert any("--score auto" in note for note in notes)
    assert not any(note.startswith("no outliers") for note in notes)
    assert any(
        note.startswith("1 class without an image to calibrate on (cow; of 1 to 4 images none") for note in notes
    )


# ---- Time ----


def test_the_time_of_a_frozen_backbone_is_the_sum_of_its_parts(monkeypatch):
    monkeypatch.setattr(timing, "view_seconds", lambda *_: 0.01)
    monkeypatch.setattr(timing, "file_seconds", lambda *_: 0.002)
    monkeypatch.setattr(timing, "step_seconds", lambda *_: 0.05)
    work = timing.Work(train=900, outliers=100, others=500, classes=3, files=["a.jpg"])
    config = Config(dataset="folder", backbone="lite0", method="msp", batch_images=64, epochs=40)
    found = timing.frozen_estimate(config, work, b"", 8, 32)
    assert found.seconds == pytest.approx(1500 * 0.002 + 2500 * 0.01 + 40 * 14 * 0.05)
    assert found.made_of[1] == "2500 views of images through the backbone at 10.0 ms"


def test_the_time_from_scratch_grows_with_batch_and_steps(monkeypatch):
    seen = []
    monkeypatch.setattr(timing, "step_seconds", lambda config, *_: seen.append(config.batch_images) or 0.5)
    work = timing.Work(train=640, outliers=0, others=0, classes=3, files=[])
    found = timing.estimate(scratch_advice(method="msp", batch_images=64, epochs=3), work)
    assert seen == [4]  # a step of 4 images was measured, 16 times as many are taken
    assert found.seconds == pytest.approx(3 * 10 * 0.5 * 16)
    longer = timing.estimate(scratch_advice(method="crt", batch_images=64, epochs=3, stage2_epochs=2), work)
    assert longer.seconds == pytest.approx(found.seconds + 2 * 640 * 0.5 * 16 / 64 / 2)  # one view instead of two


def scratch_advice(**settings):
    rows = [advice.Setting(name=k, value=v, reason="") for k, v in {"dataset": "digits", **settings}.items()]
    return advice.Advice(name="scratch", settings=rows, command="")


def test_steps_are_really_measured(monkeypatch):
    monkeypatch.setattr(timing, "ENOUGH_SECONDS", 0.05)
    report = audit(None, dataset="digits", imbalance=10, measure=True)
    estimate = report.advice.estimate
    assert estimate is not None
    assert estimate.seconds > 1
    text = render(report)
    assert f"about {span(estimate.seconds)} from scratch:" in text
    assert "steps of 32 images" in text


@pytest.mark.parametrize(("seconds", "words"), [
    (0.2, "1 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (129_600, "1.5 days"),
])  # fmt: skip
def test_a_span_of_time_in_words(seconds, words):
    assert span(seconds) == words


@pytest.mark.parametrize(("counts", "batch", "epochs"), [
    ([11_000, 200], 256, 246),  # 10,080 remain: 39 steps, 246 of which make 9,594
    ([300, 20], 32, 400),  # 288 remain: 9 steps, epochs at their limit
    ([100_000, 11_112], 256, 30),  # 390 steps, epochs at their least
])  # fmt: skip
def test_batch_and_epochs_follow_the_images_that_remain(counts, batch, epochs):
    found = advised(counts)
    assert (found["batch_images"], found["epochs"]) == (batch, epochs)


def test_the_command_is_one_that_train_takes(folder):
    save(folder / "out liers" / "0.png", 600)
    report = audit(folder, outliers=folder / "out liers")
    words = shlex.split(report.advice.command)
    assert words[:4] == ["python", "-m", "training", "train"]
    given = {k.removeprefix("--").replace("-", "_"): v for k, v in zip(words[4::2], words[5::2], strict=True)}
    config = Config(**given)
    assert config.data == folder
    assert config.outliers == folder / "out liers"
    methods.resolve(config)
    printed = render(report).split("python -m training", 1)[1].split("\n\n")[0]
    assert shlex.split("python -m training" + printed.replace("\\\n", " ")) == words
