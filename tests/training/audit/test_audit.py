"""The audit of hand-made data sets: every number that it reports can be counted by hand here."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.training.pictures import chosen, copies, copy, part, picture, save, write_folder
from training.audit import audit, gini, plot, render
from training.data.readers import DataError


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path)


def alike(report):
    return {(n.first, n.second): n for n in report.look_alikes}


# ---- Counts ----


def test_counts_ratio_gini_and_groups(folder):
    report = audit(folder)
    assert [(c.name, c.group, c.train) for c in report.classes] == [
        ("ant", "head", 12), ("bee", "tail", 6), ("cow", "tail", 2),  # 12 is five times 2 and more, 6 is not
    ]  # fmt: skip
    assert {p.name: (p.images, p.counts, p.missing) for p in report.parts} == {
        "train": (20, [12, 6, 2], []), "test": (6, [2, 2, 2], []),
    }  # fmt: skip
    assert report.imbalance_ratio == 6
    assert report.gini == pytest.approx(1 / 3)  # pairs differ by 6, 10 and 4: 2·20 / 9 over 2·20/3
    assert (report.copies, report.conflicts, report.unreadable) == ([], [], [])
    assert [n.images for n in report.look_alikes] == [0]


@pytest.mark.parametrize(("counts", "value"), [
    ([5, 5, 5, 5], 0), ([7], 0), ([3, 1], 0.25), ([0, 0, 0, 8], 0.75), ([2, 12, 6], 1 / 3),
])  # fmt: skip
def test_gini_by_hand(counts, value):
    assert gini(np.array(counts)) == pytest.approx(value)


def test_gini_of_nothing_is_refused():
    with pytest.raises(ValueError, match="all zero"):
        gini(np.array([0, 0]))


def test_classes_missing_from_a_split_are_named(folder):
    (folder / "train" / "dog").mkdir()
    save(folder / "test" / "dog" / "0.png", 900)
    save(folder / "train" / "elk" / "0.png", 901)
    report = audit(folder)
    assert part(report, "train").missing == ["dog"]
    assert part(report, "test").missing == ["elk"]
    assert any(note.startswith("train has no image of dog") for note in report.notes)


def test_the_parts_beside_train_and_test_are_found(folder):
    save(folder / "val" / "ant" / "0.png", 500)
    save(folder / "outliers" / "0.png", 501)
    save(folder / "ood" / "cats" / "0.png", 502)
    np.save(folder / "extra.npy", np.zeros((2, 32, 32, 3), np.uint8))
    report = audit(folder)
    assert [p.name for p in report.parts] == ["train", "val", "test", "outliers", "ood/cats"]
    assert part(report, "val").missing == ["bee", "cow"]
    assert part(report, "outliers").counts is None
    assert [p.name for p in audit(folder, ood=[folder / "extra.npy"]).parts][-1] == "ood/extra"


def test_validation_images_are_what_calibration_rests_on(folder):
    """A fraction of the training images was advised, with what it would hold; `train` takes none where there is val."""
    for i in range(20):
        save(folder / "val" / "ant" / f"{i}.png", 500 + i)
    save(folder / "val" / "cow" / "0.png", 600)
    report = audit(folder)
    assert {c.name: (c.train, c.calibration) for c in report.classes} == {
        "ant": (12, 20), "bee": (6, 0), "cow": (2, 1)}  # fmt: skip
    assert sum(s.calibration_images for s in report.support.groups.values()) == 21
    assert "calibration_fraction" not in chosen(report)
    assert "on the images of val" in render(report)
    assert "at a fraction" not in render(report)
    assert any("(bee; no validation image)" in note for note in report.notes)
    save(folder / "outliers" / "0.png", 601)
    assert chosen(audit(folder))["calibration_fraction"] == 0.1
    assert "of the outliers: there are validation images" in render(audit(folder))


def test_imbalance_cuts_as_training_does(folder):
    report = audit(folder, imbalance=12)
    assert part(report, "train").counts == [12, 3, 1]
    assert chosen(report)["imbalance"] == 12
    with pytest.raises(DataError, match=r"imbalance 1\.5 asks for"):
        audit(folder, imbalance=1.5)


# ---- Duplicates ----


def test_copies_within_a_part_across_parts_and_with_other_labels(folder):
    ant = folder / "train" / "ant" / "00.png"
    copy(ant, folder / "train" / "ant" / "again.png")
    copy(folder / "train" / "bee" / "01.png", folder / "test" / "bee" / "same.png")
    copy(folder / "test" / "cow" / "00.png", folder / "test" / "ant" / "wrong.png")
    copy(folder / "train" / "cow" / "00.png", folder / "outliers" / "cow.png")
    report = audit(folder)
    assert copies(report) == {
        ("train", "train"): [("train/ant/00.png", "train/ant/again.png")],
        ("train", "test"): [("train/bee/01.png", "test/bee/same.png")],
        ("test", "test"): [("test/ant/wrong.png", "test/cow/00.png")],
        ("train", "outliers"): [("train/cow/00.png", "outliers/cow.png")],
    }
    (conflict,) = report.conflicts
    assert conflict.labels == ["ant", "cow"]
    assert conflict.images == ["test/ant/wrong.png", "test/cow/00.png"]
    assert {n.images for n in report.look_alikes} == {0}
    notes = "\n".join(report.notes)
    for told in ("train and test have images in common", "train and outliers have", "different labels"):
        assert told in notes


def test_the_same_pixels_in_another_format_are_a_copy(folder):
    Image.open(folder / "train" / "ant" / "03.png").save(folder / "test" / "ant" / "x.bmp")
    assert copies(audit(folder)) == {("train", "test"): [("train/ant/03.png", "test/ant/x.bmp")]}


def test_a_brightened_copy_is_a_near_duplicate(folder):
    original = Image.open(folder / "train" / "bee" / "02.png")
    original.point(lambda v: v + 9).save(folder / "test" / "cow" / "bright.png")
    copy(folder / "test" / "cow" / "bright.png", folder / "val" / "cow" / "bright.png")
    found = alike(audit(folder))
    for other in ("test", "val"):
        near = found["train", other]
        assert (near.images, near.alike_in_full) == (1, 1)
        assert (near.pairs[0].first, near.pairs[0].second) == ("train/bee/02.png", f"{other}/cow/bright.png")
        assert near.pairs[0].thumbnail_cosine > 0.985


def test_outliers_are_compared_with_test_and_ood(folder, tmp_path_factory):
    junk = tmp_path_factory.mktemp("junk")
    base = np.stack([np.asarray(picture(i, size=(32, 32))) for i in (700, 701, 702)])
    np.save(junk / "outliers.npy", base)
    np.save(junk / "novel.npy", np.stack([base[1] + np.uint8(7), np.asarray(picture(703, size=(32, 32)))]))
    Image.fromarray(base[2] + np.uint8(7)).save(folder / "test" / "ant" / "known.png")
    found = alike(audit(folder, outliers=junk / "outliers.npy", ood=[junk / "novel.npy"]))
    assert [(p.first, p.second) for p in found["outliers", "ood/novel"].pairs] == [("outliers/1", "ood/novel/0")]
    assert [(p.first, p.second) for p in found["outliers", "test"].pairs] == [("outliers/2", "test/ant/known.png")]


# ---- Output ----


def test_the_report_is_json_and_text_and_a_picture(folder, tmp_path):
    report = audit(folder)
    assert type(report).model_validate_json(json.dumps(report.model_dump(mode="json"))) == report
    text = render(report)
    for told in ("imbalance ratio 6.0", "Gini 0.333", "mahalanobis", "NEAR DUPLICATES", "mirrors images"):
        assert told in text
    plot(report, tmp_path / "tail.png")
    with Image.open(tmp_path / "tail.png") as image:
        assert image.size == (900, 520)


def test_many_classes_are_cut_short_in_the_text(tmp_path):
    for c in range(30):
        for i in range(2 if c else 4):
            save(tmp_path / "train" / f"c{c:02}" / f"{i}.png", 1000 + 10 * c + i)
        save(tmp_path / "test" / f"c{c:02}" / "0.png", 2000 + c)
    report = audit(tmp_path)
    assert "... 18 more" in render(report)
    plot(report, tmp_path / "tail.png")
