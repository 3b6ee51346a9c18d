"""Images that are two things at once: refused where a folder says so, named where their content does."""

import shutil

import pytest
from PIL import Image

from tests.training import tiny
from training.data import decode, loading, photographs
from training.data.readers import DataError


@pytest.fixture
def data(tmp_path):
    for c, name in enumerate(("ant", "bee", "junk")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (9, 9), (90 * c, 40 * i, 0)).save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


def config(data, **changes):
    settings = {"dataset": "folder", "data": data, "imbalance": None, "calibration_fraction": 0.2, "test_fraction": 0.2}
    return tiny.config(**settings | changes)


def notes(data, **changes):
    return [note for note in photographs.list_files(config(data, **changes)).notes if "images" in note]


def test_a_folder_of_outliers_is_no_class(data, tmp_path):
    (tmp_path / "link").symlink_to(data / "junk")
    for outliers in (data / "junk", data, tmp_path, tmp_path / "link", data / "bee" / ".." / "junk"):
        with pytest.raises(DataError, match=r"--outliers .* holds images of the class '\w+', as .*png: move"):
            notes(data, outliers=outliers)
    (data / "junk").rename(data / "outliers")
    assert not any("outliers are images" in note for note in notes(data, outliers=data / "outliers"))


def test_outliers_that_are_copies_of_a_class_are_named(data, tmp_path):
    (data / "junk").rename(tmp_path / "junk")
    shutil.copy(data / "ant" / "1.png", tmp_path / "junk" / "another name.png")
    found = notes(data, outliers=tmp_path / "junk")
    assert [note for note in found if "1 outliers are images of a class too" in note]


def test_test_images_that_are_learned_from_and_two_labels_are_named(data):
    rows = [f"{name}/{i}.png,{name},train\n" for name in ("ant", "bee") for i in range(6)]
    path = data / "list.csv"
    path.write_text("path,label,split\n" + "".join(rows) + "junk/0.png,bee,test\n")
    assert not any("two labels" in note or "test images" in note for note in notes(path))
    path.write_text("path,label,split\n" + "".join(rows) + "ant/0.png,ant,test\nant/1.png,bee,train\n")
    found = " ".join(notes(path))
    assert "1 test images are among those that are learned from" in found
    assert "1 images have two labels" in found
    assert "ant/1.png as 'ant' and 'bee'" in found or "ant/1.png as 'bee' and 'ant'" in found


@pytest.mark.parametrize("by", ["column:visit", r"pattern:(v\d+)"])
def test_groups_in_two_parts_are_named(data, by):
    rows = [
        f"{name}/{i}.png,{name},{'test' if i == 5 else 'train'},v{i}\n" for name in ("ant", "bee") for i in range(6)
    ]
    for visit in range(6):
        (data / f"v{visit}").symlink_to(data)
    rows = [f"v{row[-2]}/{row}" for row in rows]
    path = data / "list.csv"
    path.write_text("path,label,split,visit\n" + "".join(rows))
    assert not any("leave each" in note for note in photographs.list_files(config(path, group_by=by)).notes)
    path.write_text("path,label,split,visit\n" + "".join(rows) + "v0/junk/0.png,bee,test,v0\njunk/1.png,bee,test,\n")
    [said] = [note for note in photographs.list_files(config(path, group_by=by)).notes if "leave each" in note]
    assert f"1 group of {by} in train and in test (v0), so figures are better than the truth" in said


def test_an_ood_set_that_the_run_has_is_named(data, tmp_path):
    (data / "junk").rename(tmp_path / "junk")
    given = tiny.config(dataset="folder", data=data, imbalance=None, outliers=tmp_path / "junk", test_fraction=0.2)
    target = decode.square(8)
    run = loading.load(given, target=target)
    assert run.notes == loading.with_ood_sets(run, [], given, tmp_path, target).notes
    (tmp_path / "strange").mkdir()
    Image.new("RGB", (9, 9), (1, 2, 3)).save(tmp_path / "strange" / "0.png")
    shutil.copy(data / "ant" / "0.png", tmp_path / "strange" / "1.png")
    sets = [tmp_path / "junk", tmp_path / "strange"]
    more = loading.with_ood_sets(run, sets, given, tmp_path, target).notes[len(run.notes) :]
    assert [note.split(": ")[:2] for note in more] == [
        ["OOD set junk", "6 of 6 images are outliers of the run, so figures on them are better than the truth"],
        ["OOD set strange", "1 of 2 images are of a class of the run, and should be accepted"],
    ]
