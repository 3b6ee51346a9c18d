"""Copies are found by their pixels, near copies by their thumbnails; noise and flat images are not."""

import numpy as np
import pytest

from training.audit import duplicates
from training.audit.duplicates import ImagePart
from training.data import thumbnails


def noise(n, *, seed=0, size=32):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def blobs(n, *, seed=0, size=32):
    """Smooth images, as photographs are: 4 x 4 patches of 40..200."""
    coarse = np.random.default_rng(seed).integers(40, 200, (n, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(size // 4, axis=1).repeat(size // 4, axis=2)


def pile(name, pixels):
    return ImagePart(name, pixels, [f"{name}/{i}" for i in range(len(pixels))])


def test_exact_copies_within_and_across_piles_are_grouped():
    a, b = noise(6), noise(5, seed=1)
    a[4], b[2], b[3] = a[1], a[1], b[0]
    groups = duplicates.exact([pile("a", a), pile("b", b)])
    assert groups == [[(0, 1), (0, 4), (1, 2)], [(1, 0), (1, 3)]]


def test_one_grey_level_in_one_pixel_is_no_exact_copy():
    a = noise(2)
    a[1] = a[0]
    a[1, 31, 31, 2] ^= 1
    assert duplicates.exact([pile("a", a)]) == []


@pytest.mark.parametrize("size", [8, 20, 32, 33, 48])
def test_thumbnails_are_block_means_less_their_mean_of_length_one(size):
    images = noise(3, size=size)
    got = thumbnails.thumbnails(images)
    edges = np.linspace(0, size, 9).round().astype(int)
    means = np.array([
        [[image[edges[r] : edges[r + 1], edges[c] : edges[c + 1]].mean(axis=(0, 1)) for c in range(8)]
         for r in range(8)]
        for image in images.astype(np.float64)
    ]).reshape(3, 192)  # fmt: skip
    means -= means.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(got, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-5)


def test_thumbnails_need_eight_pixels():
    with pytest.raises(ValueError, match="7 px"):
        thumbnails.thumbnails(noise(1, size=7))


@pytest.mark.parametrize("change", [
    lambda x: x + 20.0, lambda x: x * 1.2, lambda x: x + np.random.default_rng(3).normal(0, 3, x.shape),
], ids=["brighter", "more contrast", "noisy"])  # fmt: skip
def test_an_altered_copy_is_near_and_names_its_original(change):
    first, second = blobs(30), blobs(10, seed=1)
    second[7] = change(first[12].astype(float)).clip(0, 255).astype(np.uint8)
    (found,) = duplicates.near(pile("a", first), pile("b", second))
    assert (found.first, found.second) == (12, 7)
    assert found.thumbnail_cosine > 0.985
    assert found.full_cosine > 0.95


def test_an_exact_copy_is_not_repeated_among_the_near():
    first, second = blobs(5), blobs(5, seed=1)
    second[0] = first[3]
    assert duplicates.near(pile("a", first), pile("b", second)) == []


def test_blocks_leave_nothing_out(monkeypatch):
    monkeypatch.setattr(duplicates, "BLOCK_IMAGES", 4)
    first = blobs(11)
    second = (blobs(11)[::-1] + np.uint8(5)).copy()
    found = duplicates.near(pile("a", first), pile("b", second))
    assert sorted((n.first, n.second) for n in found) == [(i, 10 - i) for i in range(11)]


def test_alike_by_thumbnail_and_different_in_full_is_told_apart():
    first = blobs(1)
    board = np.indices((32, 32)).sum(axis=0)[..., None] % 2 * 110 - 55  # fine texture: no thumbnail shows it
    second = (first.astype(int) + board).clip(0, 255).astype(np.uint8)
    (found,) = duplicates.near(pile("a", first), pile("b", second))
    assert found.thumbnail_cosine > 0.985
    assert found.full_cosine < 0.95


def test_flat_images_are_near_to_nothing_without_a_warning():
    flat = np.full((3, 32, 32, 3), 255, np.uint8)
    flat[1] = 0
    flat[2, 0, 0, 0] = 254  # one level in one pixel is no shape
    assert duplicates.flat(thumbnails.thumbnails(flat)).all()
    assert not duplicates.flat(thumbnails.thumbnails(blobs(3))).any()
    assert duplicates.near(pile("a", flat), pile("b", flat[::-1].copy())) == []


@pytest.mark.parametrize("make", [noise, blobs])
def test_unrelated_images_are_not_near(make):
    assert duplicates.near(pile("a", make(300)), pile("b", make(300, seed=1))) == []


def test_an_empty_pile_has_no_neighbours():
    assert duplicates.near(pile("a", noise(0)), pile("b", noise(2))) == []
    assert duplicates.near(pile("a", noise(2)), pile("b", noise(0))) == []
    assert duplicates.exact([pile("a", noise(0))]) == []
