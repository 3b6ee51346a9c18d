"""Groups that no split parts: near duplicates, copies, folders, patterns and columns."""

import numpy as np
import pytest
from PIL import Image

from training.data import grouping
from training.data.grouping import group, units
from training.data.listing import Listing
from training.data.readers import DataError


def keys(n, seed=0):
    return np.random.default_rng(seed).integers(0, 2**64, n, dtype=np.uint64)


def listing(labels, paths=None, **columns):
    labels = np.asarray(labels, np.int64)
    paths = paths or [f"{i}.png" for i in range(len(labels))]
    return Listing(paths, labels, tuple(map(str, range(labels.max(initial=0) + 1))), columns)


def pictures(n, seed=0):
    """Smooth pictures [n, 32, 32, 3] that have nothing in common."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((32, 32), Image.Resampling.BICUBIC)) for c in coarse])


def shots(scenes, of_each, seed=0):
    """Each picture several times with noise: uint8 [scenes · of_each, 32, 32, 3], scene by scene."""
    base = np.repeat(pictures(scenes, seed), of_each, axis=0).astype(int)
    return (base + np.random.default_rng(seed + 1).integers(-5, 6, base.shape)).clip(0, 255).astype(np.uint8)


def same_partition(one, two):
    return np.array_equal(one[:, None] == one[None], np.asarray(two)[:, None] == np.asarray(two)[None])


def test_near_duplicates_of_a_class_are_one_group():
    found = group(listing([0] * 40), "near", keys(40), shots(10, 4))
    assert same_partition(found.groups, np.repeat(np.arange(10), 4))
    assert found.note() == (
        "grouped by near duplicates: 40 of 40 images are in 10 groups of up to 4, which no split parts"
    )


def test_near_duplicates_of_two_classes_are_not_joined_but_copies_are():
    images = shots(1, 4)
    of_pairs = keys(2).repeat(2)  # images 0 and 1 are copies, and 2 and 3
    alone = group(listing([0, 0, 1, 1]), "near", keys(4), images).groups
    assert same_partition(alone, [0, 0, 1, 1])
    assert same_partition(group(listing([0, 1, 0, 1]), "none", of_pairs, images).groups, [0, 0, 1, 1])


def test_where_all_images_look_alike_they_are_not_one_group():
    """A microscope's grey field with a small thing somewhere: the loosest bounds link all of them."""
    draw = np.random.default_rng(0)
    images = np.full((60, 32, 32, 3), 200, np.uint8)
    for image in images:
        y, x = draw.integers(4, 24, 2)
        image[y : y + 5, x : x + 5] = draw.integers(0, 120)
    assert np.bincount(group(listing([0] * 60), "near", keys(60), images).groups).max() <= 30


def test_blocks_leave_no_pair_out(monkeypatch):
    whole = group(listing([0] * 40), "near", keys(40), shots(10, 4)).groups
    monkeypatch.setattr(grouping, "BLOCK_IMAGES", 7)
    np.testing.assert_array_equal(group(listing([0] * 40), "near", keys(40), shots(10, 4)).groups, whole)


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("folder", [0, 0, 1, 2]),
        (r"pattern:_(\d+)_", [0, 1, 0, 2]),
        ("pattern:nothing", [0, 1, 2, 3]),
        ("column:visit", [0, 1, 1, 2]),
        ("none", [0, 1, 2, 3]),
    ],
)
def test_groups_that_are_given(by, expected):
    files = listing([0, 0, 0, 1], ["a/x_1_.png", "a/x_2_.png", "b/y_1_.png", "c/z.png"], visit=["1", "2", "2", ""])
    assert same_partition(group(files, by, keys(4), pictures(4)).groups, expected)


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("column:day", r"no column 'day'; columns are visit"),
        ("pattern:(", r"no regular expression"),
        ("visit", r"--group-by visit: use near, none, folder, column:NAME or pattern:REGEX"),
        ("pattern:", r"use near"),
        ("near:5", r"use near"),
    ],
)
def test_rules_that_do_not_fit(by, message):
    with pytest.raises(DataError, match=message):
        group(listing([0], visit=["1"]), by, keys(1), pictures(1))


def test_units_follow_from_contents_alone():
    content, groups = keys(6), np.array([0, 0, 1, 2, 2, 2])
    found = units(groups, content)
    assert same_partition(found.astype(np.int64), groups)
    order = np.array([5, 3, 0, 2, 1, 4])
    np.testing.assert_array_equal(units(groups[order] + 4, content[order]), found[order])


def test_units_of_large_groups_are_held_back_no_more_often():
    content = keys(40_000)
    groups = np.repeat(np.arange(2000), 20)
    assert (units(groups, content).astype(float) / 2.0**64 < 0.1).mean() == pytest.approx(0.1, abs=0.03)


def test_a_folder_is_one_however_it_is_spelled(tmp_path, monkeypatch):
    """Its images were on both sides of a split; those of the working folder, which has no name, stood alone."""
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    monkeypatch.chdir(tmp_path)
    paths = ["a/1.png", "./a/2.png", f"{tmp_path}/a/3.png", "link/4.png", "5.png", "./6.png"]
    found = group(listing([0] * 6, paths), "folder", keys(6), pictures(6)).groups
    assert same_partition(found, [0, 0, 0, 0, 1, 1])
