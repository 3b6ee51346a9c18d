"""Photographs in folders: which files, of which class, in which part."""

import os
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from tests.training import tiny
from training.data import decode, folders, loading, scan
from training.data.photographs import read_parts
from training.data.readers import DataError


def write_class(folder, colour, count):
    """Images whose red says the class and whose green the number."""
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (9, 9), (colour, i, 0)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def tree(tmp_path):
    for part, counts in (("train", {"rare": 1, "often": 3, "also": 2}), ("test", {"rare": 1, "often": 1, "also": 1})):
        for colour, (name, count) in enumerate(counts.items()):
            write_class(tmp_path / "data" / part / name, 50 * colour, count)
    return tmp_path / "data"


def config(data, **changes):
    settings = {"dataset": "folder", "data": data, "image_size_px": 8, "imbalance": None, "calibration_fraction": 0}
    return tiny.config(**settings | changes)


def relative(listing, root):
    return [path.removeprefix(f"{root}/") for path in listing.paths]


# ---- Parts and classes ----


def test_classes_run_from_head_to_tail(tree):
    parts = folders.read_folders(tree).parts
    assert parts.keys() == {"train", "test"}
    assert parts["train"].classes == parts["test"].classes == ("often", "also", "rare")
    assert parts["train"].labels.tolist() == [1, 1, 0, 0, 0, 2]
    assert parts["train"].counts.tolist() == [3, 2, 1]
    assert relative(parts["test"], tree) == ["test/also/0.png", "test/often/0.png", "test/rare/0.png"]
    assert parts["test"].labels.tolist() == [1, 0, 2]


def test_classes_of_one_size_are_in_the_order_of_names(tmp_path):
    for name in ("b", "a"):
        write_class(tmp_path / "train" / name, 0, 2)
    assert folders.read_folders(tmp_path).parts["train"].classes == ("a", "b")


def test_val_is_a_part_of_its_own(tree):
    write_class(tree / "val" / "rare", 0, 2)
    parts = folders.read_folders(tree).parts
    assert parts["val"].counts.tolist() == [0, 0, 2]


def test_class_folders_without_train(tmp_path):
    for name, count in (("ant", 3), ("bee", 5), ("outliers", 2), ("ood", 1)):
        write_class(tmp_path / name, 0, count)
    (tmp_path / "docs").mkdir()
    found = folders.read_folders(tmp_path)
    assert found.parts.keys() == {"train"}
    assert found.parts["train"].classes == ("bee", "ant")
    assert found.notes == [f"{tmp_path}: left out 1 folder without images (docs)"]


def test_nested_folders_keep_their_path_as_taxonomy(tmp_path):
    for name in ("Fruit/Apple/Gala", "Fruit/Apple/Pink", "Fruit/Pear", "Milk"):
        write_class(tmp_path / "train" / name, 0, 2)
        write_class(tmp_path / "test" / name, 0, 1)
    write_class(tmp_path / "train" / "Milk" / "visit 2", 0, 1)  # Milk holds images itself: what is below is its too
    found = folders.read_folders(tmp_path)
    train = found.parts["train"]
    assert train.classes == ("Milk", "Fruit/Apple/Gala", "Fruit/Apple/Pink", "Fruit/Pear")
    assert train.taxonomy[1] == ("Fruit", "Apple", "Gala")
    assert train.counts.tolist() == [3, 2, 2, 2]
    assert any("3 classes are nested folders" in note and "--class-level 1" in note for note in found.notes)
    first = folders.read_folders(tmp_path, class_level=1).parts["train"]
    assert dict(zip(first.classes, first.counts.tolist(), strict=True)) == {"Fruit": 6, "Milk": 3}
    assert folders.read_folders(tmp_path, class_level=2).parts["test"].classes == ("Fruit/Apple", "Milk", "Fruit/Pear")


def test_classes_that_a_stray_image_makes_one_are_said(tmp_path):
    for name in ("Fruit/Apple", "Fruit/Pear", "Milk"):
        write_class(tmp_path / name, 0, 2)
    assert not any("holds images itself" in note for note in folders.read_folders(tmp_path).notes)
    Image.new("RGB", (9, 9)).save(tmp_path / "Fruit" / "stray.png")
    found = folders.read_folders(tmp_path)
    assert found.parts["train"].classes == ("Fruit", "Milk")
    said = "2 folders in a folder that holds images itself (Fruit/Apple, Fruit/Pear), so what is there is of the class"
    assert any(said in note for note in found.notes)
    assert not any("holds images itself" in n for n in folders.read_folders(tmp_path, class_level=1).notes)


def test_outer_blanks_are_no_part_of_a_class_in_folders_as_in_lists(tmp_path):
    """learn writes the classes of a folder into a list: it ended after the training, at classes that had changed."""
    for name in ("train/ ant", "train/bee ", "test/ant", "train/Fruit /Apple"):
        write_class(tmp_path / name, 0, 2)
    found = folders.read_folders(tmp_path).parts
    assert found["train"].classes == ("Fruit/Apple", "ant", "bee")
    assert found["test"].counts.tolist() == [0, 2, 0]


def test_class_names_are_compared_in_one_unicode_form(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write_class(tmp_path / "train" / decomposed, 0, 2)
    write_class(tmp_path / "train" / composed, 50, 1)
    write_class(tmp_path / "test" / composed, 0, 1)
    parts = folders.read_folders(tmp_path).parts
    assert parts["train"].classes == parts["test"].classes == (composed,)
    assert parts["train"].counts.tolist() == [3]


def test_hidden_folders_are_no_classes_and_files_are_found_by_content(tmp_path):
    for part in ("train", "test"):
        write_class(tmp_path / part / "ant", 0, 2)
        write_class(tmp_path / part / ".ipynb_checkpoints", 0, 1)
        (tmp_path / part / "ant" / "0.png").rename(tmp_path / part / "ant" / "0")
        (tmp_path / part / "ant" / "notes.md").write_text("words")
        (tmp_path / part / "ant" / "._1.png").write_bytes(b"resource fork")
    found = folders.read_folders(tmp_path)
    assert found.parts["train"].classes == ("ant",)
    assert [len(p.paths) for p in found.parts.values()] == [2, 2]
    assert [note.removeprefix(str(tmp_path)) for note in found.notes] == [
        note for part in ("train", "test")
        for note in (f"/{part}: left out 1 file that is no image (.md 1)", f"/{part}: left out 2 hidden items")
    ]  # fmt: skip


def test_images_outside_of_class_folders_are_counted(tree):
    Image.new("RGB", (9, 9)).save(tree / "train" / "loose.png")
    assert any("left out 1 images outside of any class folder" in note for note in folders.read_folders(tree).notes)


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_part_without_images_counts_as_missing(tree, part):
    """An empty val/ was calibrated on: it was said that the classes have too few images."""
    shutil.rmtree(tree / part, ignore_errors=True)
    (tree / part / "often").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tree / part / "loose.png")
    found = folders.read_folders(tree)
    assert part not in found.parts
    assert f"{tree / part}: no image lies in a class folder there, so it counts as missing" in found.notes


def test_no_class_folder(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="has no class folder with images"):
        folders.read_folders(tmp_path)
    with pytest.raises(DataError, match="nowhere is not a folder"):
        folders.read_folders(tmp_path / "nowhere")


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_class_that_is_not_trained_on_is_refused(tree, part):
    (tree / part / "void").mkdir()
    if part == "test":
        Image.new("RGB", (9, 9)).save(tree / part / "void" / "0.png")
    with pytest.raises(DataError, match="no training image of class void"):
        loading.load(config(tree))


@pytest.mark.parametrize("name", ["valid", "Validation", "Val", "testing"])
def test_a_part_by_another_name_is_refused(tree, name):
    write_class(tree / name / "rare", 0, 2)
    with pytest.raises(DataError, match=rf"{name} is no part by its name: rename it to (val|test), or move it away"):
        folders.read_folders(tree)


def test_parts_by_other_names_are_no_classes(tree):
    (tree / "train").rename(tree / "Train")
    (tree / "test").rename(tree / "Test")
    with pytest.raises(DataError, match="Test is no part by its name: rename it to test"):
        folders.read_folders(tree)


def test_a_class_may_be_called_training(tmp_path):
    for name in ("Training", "Match"):
        write_class(tmp_path / name, 0, 2)
    assert folders.read_folders(tmp_path).parts["train"].classes == ("Match", "Training")


def test_folders_beside_the_parts_are_named(tree):
    for name in ("extra", "outliers", "ood", ".git"):
        write_class(tree / name, 0, 1)
    assert folders.read_folders(tree).notes == [f"{tree}: left out extra beside train/: the parts are train, val, test"]


# ---- What a run gets of them ----


def test_pixels_labels_and_order(tree):
    data = loading.load(config(tree, group_by="none"))
    assert data.train.classes == ("often", "also", "rare")
    assert data.train.images[:, 0, 0, :2].tolist() == [[100, 0], [100, 1], [50, 0], [50, 1], [50, 2], [0, 0]]
    assert data.test.images[:, 4, 4, 0].tolist() == [100, 50, 0]
    assert data.flip


def test_a_class_without_test_images_is_named(tree):
    for path in (tree / "test" / "rare").iterdir():
        path.unlink()
    (tree / "test" / "rare").rmdir()
    notes = loading.load(config(tree)).notes
    assert any("no test image of 1 class, whose accuracy is not measured: rare" in note for note in notes)


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_unreadable_files_are_left_out_and_listed_or_stop(tree, content):
    path = tree / "train" / "often" / "1.png"
    path.write_bytes(path.read_bytes()[:40] if content is None else content)
    (tree / "train" / "also" / "gone.png").symlink_to(tree / "nowhere")
    data = loading.load(config(tree))
    assert data.train.counts.tolist() == [2, 2, 1]
    (said,) = [note for note in data.notes if note.startswith("left out 2 unreadable")]
    assert said.startswith("left out 2 unreadable files: ")
    assert "also/gone.png (No such file or directory)" in said
    with pytest.raises(DataError, match=r"also/gone\.png cannot be read as an image .*No such file"):
        loading.load(config(tree, unreadable="stop"))


def test_a_class_whose_files_are_all_unreadable_is_refused(tree):
    (tree / "train" / "rare" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match="no readable training image is left of class rare"):
        loading.load(config(tree))


def test_a_pipe_is_no_image_and_does_not_hang(tree):
    import os

    os.mkfifo(tree / "train" / "often" / "pipe.png")
    assert loading.load(config(tree)).train.counts.tolist() == [3, 2, 1]


# ---- Splits ----


def noise_class(folder, count, seed):
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{i:03}.png")


def test_without_a_test_part_one_is_made_and_a_run_keeps_it(tmp_path):
    for seed, (name, count) in enumerate({"ant": 60, "bee": 40, "cow": 3}.items()):
        noise_class(tmp_path / "data" / name, count, seed)
    given = config(tmp_path / "data", calibration_fraction=0.2, group_by="none")
    data = loading.load(given)
    assert data.train.counts[2] == 3  # of few images all are trained on
    assert 6 <= data.test.counts[0] <= 30
    parts = [{i.tobytes() for i in s.images} for s in (data.train, data.calibration, data.test)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 103
    assert any("no test part, so" in note for note in data.notes)
    data.choice.write(tmp_path / "run")
    assert (tmp_path / "run/split.csv").read_text().count(f",{tmp_path}/data/ant/0") == 60
    (tmp_path / "data/ant/000.png").rename(tmp_path / "data/ant/zzz.png")
    noise_class(tmp_path / "data/ant/more", 5, 99)
    again = loading.load(given.model_copy(update={"test_fraction": 0.7}), tmp_path / "run")
    for name in ("train", "calibration", "test"):
        one, two = getattr(data, name), getattr(again, name)
        assert {i.tobytes() for i in one.images} == {i.tobytes() for i in two.images}


def test_val_is_what_is_calibrated_on(tree, tmp_path):
    noise_class(tree / "val" / "often", 7, 1)
    data = loading.load(config(tree, calibration_fraction=0.5))
    assert data.calibration.counts.tolist() == [7, 0, 0]
    assert data.train.counts.tolist() == [3, 2, 1]
    data.choice.write(tmp_path / "run")
    assert loading.load(config(tree), tmp_path / "run").calibration.counts.tolist() == [7, 0, 0]


def burst(folder, scenes, of_each, seed):
    """`scenes` different pictures, each photographed `of_each` times with small shifts and noise."""
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for scene in range(scenes):
        base = Image.fromarray(draw.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(
            (80, 80), Image.Resampling.BICUBIC
        )
        for shot in range(of_each):
            x, y = draw.integers(0, 5, 2)
            pixels = np.asarray(base.crop((x, y, x + 64, y + 64))).astype(int) + draw.integers(-4, 5, (64, 64, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{shot}-{scene:02}.png")


def test_bursts_share_a_side(tmp_path):
    for seed, name in enumerate(("ant", "bee")):
        burst(tmp_path / "data" / name, scenes=12, of_each=4, seed=seed)
    given = config(tmp_path / "data", calibration_fraction=0.25)
    by_scene = photographs_by_scene(given)
    assert all(len(sides) == 1 for sides in by_scene.values())
    assert len({side for sides in by_scene.values() for side in sides}) == 3  # and every side has some
    parted = photographs_by_scene(given.model_copy(update={"group_by": "none"}))
    assert sum(len(sides) > 1 for sides in parted.values()) > 6
    pattern = photographs_by_scene(given.model_copy(update={"group_by": r"pattern:-(\d\d)\.png"}))
    assert all(len(sides) == 1 for sides in pattern.values())


def photographs_by_scene(given):
    from training.data.photographs import list_files

    files = list_files(given)
    sides = {}
    for name in ("train", "calibration", "test"):
        for path in getattr(files, name).paths:
            folder, file = path.split("/")[-2:]
            sides.setdefault((folder, file[2:4]), set()).add(name)
    return sides


def test_the_cache_of_a_run_is_used_and_renewed(tree, tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(
        scan, "_look_at", lambda path, size, real=scan._look_at: (looked.append(path), real(path, size))[1]
    )
    first = loading.load(config(tree, calibration_fraction=0.3), cache=tmp_path / "cache")
    assert len(looked) == 9
    monkeypatch.setattr(decode, "_decode", lambda *_: pytest.fail("decoded again"))
    second = loading.load(config(tree, calibration_fraction=0.3), cache=tmp_path / "cache")
    assert len(looked) == 9
    np.testing.assert_array_equal(first.train.images, second.train.images)
    Image.new("RGB", (9, 9), (1, 2, 3)).save(tree / "train" / "often" / "1.png")
    monkeypatch.undo()
    third = loading.load(config(tree, calibration_fraction=0.3), cache=tmp_path / "cache")
    assert [1, 2, 3] in third.train.images[:, 0, 0].tolist()


def test_a_file_that_is_changed_in_place_is_read_again_though_its_time_is_kept(tmp_path):
    """As exiftool -P and rsync -t do it: the same name, size and time of change, another picture."""
    file, cache = tmp_path / "one.bmp", tmp_path / "scan.npz"
    Image.new("RGB", (9, 9), (1, 2, 3)).save(file)
    first, before = scan.scan([str(file)], cache=cache), file.stat()
    Image.new("RGB", (9, 9), (3, 2, 1)).save(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = scan.scan([str(file)], cache=cache)
    assert again.keys.tolist() != first.keys.tolist()
    assert again.small[0, 0, 0].tolist() == [3, 2, 1]


def test_lists_beside_the_class_folders_are_named_and_not_read(tree):
    (tree / "labels.csv").write_bytes("Datei;Höhe;Art\nx.jpg;1,5;Reh\n".encode("cp1252"))
    (tree / "species.csv").write_text("")
    (said,) = [note for note in read_parts(tree).notes if "did not read" in note]
    assert "labels.csv, species.csv, as the folders say the classes: where a list says them, give it" in said


def test_where_no_file_can_be_read_the_reasons_are_given(tmp_path):
    rows = [f"{name}/{i}.png,{name}\n" for name in ("ant", "bee") for i in range(3)]
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(rows))  # the folder of the list is another one
    with pytest.raises(DataError, match=r"no training image can be read.*ant/0\.png \(No such file or directory\)"):
        loading.load(config(tmp_path / "list.csv"), cache=tmp_path / "cache")


def test_a_path_that_no_file_can_have_is_left_out(tree):
    (tree / "list.jsonl").write_text(
        '{"path": "train/rare/0.png", "label": "a"}\n{"path": "train/often/0.png", "label": "b"}\n'
        '{"path": "a\\u0000b.png", "label": "b"}\n'
    )
    data = loading.load(config(tree / "list.jsonl", test_fraction=0.2))
    assert len(data.train.labels) == 2
    assert any("left out 1 unreadable file" in note for note in data.notes)
