"""What lies in the folders is read to the end: data sets are detected and every faulty file is listed."""

import shutil

import numpy as np
import pytest
from PIL import Image

from tests.training import tiny
from tests.training.pictures import chosen, copies, part, picture, save, write_folder
from training.audit import audit, render
from training.data.readers import DataError


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path)


# ---- Files ----


def test_every_unreadable_file_is_listed_and_the_rest_counted(folder):
    whole = (folder / "train" / "ant" / "00.png").read_bytes()
    (folder / "train" / "ant" / "empty.png").write_bytes(b"")
    (folder / "train" / "bee" / "text.jpg").write_bytes(b"not an image")
    (folder / "test" / "cow" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "train" / "cow" / "notes.TXT").write_text("ignored")
    report = audit(folder)
    reasons = {u.path.rsplit("/", 1)[-1]: u.reason for u in report.unreadable}
    assert reasons.keys() == {"empty.png", "text.jpg", "cut.png"}
    assert "empty" in reasons["empty.png"]
    assert "no image" in reasons["text.jpg"]
    assert part(report, "train").counts == [12, 6, 2]
    text = " ".join(render(report).split())  # a long path breaks lines elsewhere
    assert all(u.path in text for u in report.unreadable)
    assert "left out 1 file that is no image (.txt 1)" in text


def test_sizes_formats_and_greyscale(folder):
    save(folder / "train" / "ant" / "wide.jpg", 800, size=(120, 30))
    picture(801, size=(40, 50)).convert("L").save(folder / "train" / "ant" / "grey.png")
    train = part(audit(folder), "train")
    assert train.width_px.model_dump() == {"minimum": 40, "median": 40, "maximum": 120}
    assert train.height_px.model_dump() == {"minimum": 30, "median": 32, "maximum": 50}
    assert train.aspect.model_dump() == {"minimum": 0.8, "median": 1.25, "maximum": 4}
    assert train.formats == {"PNG": 21, "JPEG": 1}
    assert train.modes == {"RGB": 21, "L": 1}
    assert train.grey == 1


def test_flat_images_are_counted(folder):
    for split in ("train", "test"):
        Image.new("RGB", (40, 32), "white").save(folder / split / "ant" / "white.png")
    report = audit(folder)
    assert (part(report, "train").flat, part(report, "test").flat) == (1, 1)
    assert copies(report).keys() == {("train", "test")}
    assert [n.images for n in report.look_alikes] == [0]


# ---- Data sets ----


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-py"])
def test_cifar_pickles_are_detected(tmp_path, inner):
    tiny.write_cifar10(tmp_path / inner)
    report = audit(tmp_path)
    assert (report.dataset, report.size_px) == ("cifar10", 32)
    assert part(report, "train").counts == [5] * 10
    assert part(report, "test").counts == [1] * 10
    assert part(report, "train").width_px.median == 32
    assert chosen(report)["method"] == "msp"
    assert report.gini == 0


def test_cifar_names_are_class_and_rank(tmp_path):
    images, _ = tiny.write_cifar10(tmp_path, per_batch=20)
    np.save(tmp_path / "junk.npy", images[[13]])
    assert copies(audit(tmp_path, outliers=tmp_path / "junk.npy")) == {
        ("train", "outliers"): [("train/cat/1", "outliers/0")]
    }


def test_a_folder_of_neither_form_says_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"train/<class>/ .* batches\.meta .* meta or cifar-100-python"):
        audit(tmp_path)


def test_bad_input_names_the_value_and_the_remedy(folder, tmp_path):
    with pytest.raises(DataError, match="nowhere is not a folder"):
        audit(tmp_path / "nowhere")
    with pytest.raises(DataError, match="'mnist' cannot be audited: name one of cifar10"):
        audit(folder, dataset="mnist")
    with pytest.raises(DataError, match=r"none\.npy is missing"):
        audit(folder, outliers=tmp_path / "none.npy")
    with pytest.raises(DataError, match="size_px 4"):
        audit(folder, size_px=4)
    for name in ("night.v1", "night.v2"):  # not two that are called "night"
        shutil.copytree(folder / "test", tmp_path / name)
    audit(folder, ood=[tmp_path / "night.v1", tmp_path / "night.v2"])
    with pytest.raises(DataError, match="two OOD sets are called 'test'"):
        audit(folder, ood=[folder / "test", folder / "train" / "ant" / ".." / ".." / "test"])


def test_cifar100_is_detected_though_its_train_is_a_file(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    for name in ("train", "test"):
        tiny.dump(tmp_path / name, {"data": tiny.cifar_rows(images), "fine_labels": [0, 0, 0, 1, 1, 2]})
    tiny.dump(tmp_path / "meta", {"fine_label_names": ["apple", "bear", "cup"]})
    report = audit(tmp_path)
    assert report.dataset == "cifar100"
    assert {pair: len(examples) for pair, examples in copies(report).items()} == {("train", "test"): 6}


def test_two_data_sets_in_one_folder_need_a_choice(folder):
    tiny.write_cifar10(folder / "cifar-10-batches-py")
    with pytest.raises(DataError, match="cifar10 and folder: choose one"):
        audit(folder)
    assert audit(folder, dataset="cifar10").dataset == "cifar10"
    assert audit(folder, dataset="folder").dataset == "folder"


def test_a_folder_without_train_is_refused_and_without_test_is_told(folder):
    (folder / "test").rename(folder / "elsewhere")
    assert [p.name for p in audit(folder).parts] == ["train"]
    assert any("no test part: on a frozen backbone figures are cross-fitted" in note for note in audit(folder).notes)
    (folder / "elsewhere").rename(folder / "test")
    (folder / "train").rename(folder / "elsewhere")
    with pytest.raises(DataError, match="train is missing: beside test/"):
        audit(folder, dataset="folder")


def test_class_folders_alone_and_lists_are_detected(folder, tmp_path):
    flat = audit(folder / "train")
    assert (flat.dataset, [p.name for p in flat.parts]) == ("folder", ["train"])
    rows = [
        f"{path.relative_to(folder)},{path.parent.name},{path.parent.parent.name}" for path in folder.rglob("*.png")
    ]
    (folder / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    listed = audit(folder / "list.csv")
    assert part(listed, "train").counts == [12, 6, 2]
    assert part(listed, "test").counts == [2, 2, 2]


def test_what_training_will_group_is_said(folder):
    for i in range(3):
        picture(700, size=(40 + i, 32)).save(folder / "train" / "ant" / f"burst{i}.png")
    (said,) = [note for note in audit(folder).notes if note.startswith("train is grouped by near duplicates")]
    assert "3 of 23 images are in 1 group of up to 3" in said
    assert any("grouped by equal content alone" in note for note in audit(folder, group_by="none").notes)


def test_no_readable_training_image_is_refused(folder):
    for path in (folder / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"can be read: .*/train/ant/.*png \(the image is empty .*, nor 19 more"):
        audit(folder)


def test_the_advised_command_reads_the_photographs_the_same_way(folder):
    report = audit(folder, group_by="folder", class_level=1)
    assert (chosen(report)["group_by"], chosen(report)["class_level"]) == ("folder", 1)
    assert report.advice.command.endswith("--group-by folder --class-level 1")
    assert "--group-by" not in audit(folder).advice.command
