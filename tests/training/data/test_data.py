"""The long-tail cut, the calibration split, and batches that any step can be resumed from."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.training import tiny
from training.data import loading, readers
from training.data.batches import Batches
from training.data.readers import DataError, ImageSet
from training.data.splits import calibration_split, long_tail_counts, long_tail_cut, tail_classes

CPU = torch.device("cpu")


def numbered(labels):
    """Images that carry their own number in red and green."""
    labels = np.asarray(labels, np.int64)
    n = np.arange(len(labels))
    images = np.zeros((len(labels), 4, 4, 3), np.uint8)
    images[..., 0], images[..., 1] = (n % 256)[:, None, None], (n // 256)[:, None, None]
    return ImageSet(images, labels, tuple(map(str, range(labels.max(initial=0) + 1))))


def numbers(images):
    """The numbers of `numbered` images."""
    first = np.asarray(images)[:, 0, 0].astype(int)
    return (first[:, 0] + 256 * first[:, 1]).tolist()


# ---- The long-tail cut ----


def test_counts_of_cifar10():
    assert long_tail_counts(10, 5000, 100) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


def test_counts_of_cifar100():
    counts = long_tail_counts(100, 500, 100)
    assert (sum(counts), counts[0], counts[-1]) == (10847, 500, 5)


@pytest.mark.parametrize(("num_classes", "largest"), [(10, 5000), (100, 500), (1, 7)])
def test_counts_of_imbalance_one(num_classes, largest):
    assert long_tail_counts(num_classes, largest, 1) == [largest] * num_classes


@pytest.mark.parametrize("imbalance", [2, 10, 50, 100, 256])
def test_counts_fall_to_the_ratio(imbalance):
    counts = long_tail_counts(12, 5120, imbalance)
    assert all(a > b for a, b in pairwise(counts))
    assert counts[-1] == 5120 // imbalance


@pytest.mark.parametrize(("num_classes", "largest", "imbalance"), [(0, 10, 2), (10, 0, 2), (10, 10, 0.5)])
def test_counts_of_nonsense(num_classes, largest, imbalance):
    with pytest.raises(ValueError, match=f"not {num_classes}, {largest}, {imbalance}"):
        long_tail_counts(num_classes, largest, imbalance)


def test_cut_keeps_the_first_of_each_class_in_order():
    labels = np.tile([2, 0, 1], 8)  # 8 of each
    kept = long_tail_cut(numbered(labels), 4)
    assert kept.counts.tolist() == [8, 4, 2]
    first = [i for i in range(24) if labels[i] == 0 or (labels[i] == 1 and i < 12) or (labels[i] == 2 and i < 6)]
    assert numbers(kept.images) == first
    np.testing.assert_array_equal(kept.labels, labels[first])


def test_cut_of_too_few_images():
    with pytest.raises(DataError, match="asks for 4 images of class '1', which has 3"):
        long_tail_cut(numbered([0] * 8 + [1] * 3 + [2] * 8), 4)


def test_cut_that_empties_a_class():
    with pytest.raises(DataError, match="imbalance 100 leaves class '1' without an image: use a smaller one"):
        long_tail_cut(numbered([0] * 10 + [1] * 10), 100)


# ---- The calibration split ----

LABELS = np.repeat(np.arange(6), [100, 40, 10, 5, 4, 1])


def test_split_is_stratified_and_disjoint():
    rest, calibration = calibration_split(numbered(LABELS), 0.1)
    assert calibration.counts.tolist() == [10, 4, 1, 1, 0, 0]
    assert sorted(numbers(rest.images) + numbers(calibration.images)) == list(range(len(LABELS)))
    for part in (rest, calibration):
        np.testing.assert_array_equal(part.labels, LABELS[numbers(part.images)])


def test_split_leaves_every_class_an_image():
    rest, calibration = calibration_split(numbered(LABELS), 0.9)
    assert rest.counts.tolist() == [10, 4, 1, 1, 1, 1]  # round(.9·5) = 4 (half to even), and never the last one
    assert calibration.counts.min() == 0


def test_split_is_drawn_at_random_within_a_class():
    chosen = numbers(calibration_split(numbered(LABELS), 0.1)[1].images)[:10]
    assert chosen not in (list(range(10)), list(range(90, 100)))


def test_no_split():
    rest, calibration = calibration_split(numbered(LABELS), 0)
    assert len(calibration.labels) == 0
    assert numbers(rest.images) == list(range(len(LABELS)))


def test_split_is_one_for_all_seeds():
    one, two = (loading.load(tiny.config(seed=seed)) for seed in (0, 7))
    np.testing.assert_array_equal(one.calibration.images, two.calibration.images)
    np.testing.assert_array_equal(one.calibration_outliers, two.calibration_outliers)


# ---- Loading ----


def test_load_digits():
    found = loading.load(tiny.config(calibration_fraction=0.1))
    assert (found.train.counts + found.calibration.counts).tolist() == long_tail_counts(8, 116, 10)
    assert len(found.outliers) + len(found.calibration_outliers) == 174
    assert len(found.calibration_outliers) == 17
    assert list(found.ood) == ["nine"]
    assert not found.flip  # a mirrored digit is another one
    parts = (
        found.train.images,
        found.calibration.images,
        found.test.images,
        found.outliers,
        found.calibration_outliers,
    )
    seen = [{i.tobytes() for i in part} for part in parts]
    assert len(set().union(*seen)) == sum(map(len, seen))


def test_load_cifar_with_outliers(tmp_path):
    tiny.write_cifar10(tmp_path / "data", per_batch=40)
    outliers = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "junk.npy", outliers)
    given = {"dataset": "cifar10", "data": tmp_path / "data", "outliers": tmp_path / "junk.npy", "imbalance": 2}
    found = loading.load(tiny.config(**given, calibration_fraction=0.2))
    assert (found.train.counts + found.calibration.counts).tolist() == long_tail_counts(10, 20, 2)
    assert len(found.calibration_outliers) == 2
    together = np.concatenate([found.outliers, found.calibration_outliers])
    assert {i.tobytes() for i in together} == {i.tobytes() for i in outliers}
    assert found.flip
    assert (found.size_px, found.padding_px) == (32, 4)


def test_load_without_a_folder():
    with pytest.raises(DataError, match="--dataset cifar10 needs --data DIR"):
        loading.load(tiny.config(dataset="cifar10"))


def test_load_names_an_empty_class(tmp_path):
    images, labels = tiny.write_cifar10(tmp_path)
    tiny.dump(tmp_path / "test_batch", {"data": tiny.cifar_rows(images[:9]), "labels": labels[:9].tolist()})
    with pytest.raises(DataError, match="no test image of class truck"):
        loading.load(tiny.config(dataset="cifar10", data=tmp_path, imbalance=None))


def test_ood_sets_of_a_folder_of_arrays(tmp_path):
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    np.save(tmp_path / "b.npy", pixels)
    np.savez(tmp_path / "a.npz", images=pixels + 1)
    found = loading.ood_sets([tmp_path], 8)
    assert list(found) == ["a", "b"]
    np.testing.assert_array_equal(found["a"], pixels + 1)
    with pytest.raises(DataError, match="two OOD sets are called 'b'"):
        loading.ood_sets([tmp_path, tmp_path / "b.npy"], 8)


# ---- Batches ----


def batches(images=50, outliers=40, batch_images=8, seed=0, stage=1):
    pool = None if outliers is None else numbered([0] * outliers).images
    return Batches(numbered(np.arange(images) % 7), pool, batch_images, seed=seed, stage=stage, device=CPU)


def drawn(source, epoch, first_step=0):
    """What each step of an epoch sees: image numbers, labels, outlier numbers, and a draw of its generator."""
    return [
        (numbers(b.images), b.labels.tolist(), numbers(b.outliers), torch.rand(4, generator=b.generator).tolist())
        for b in source.epoch(epoch, first_step)
    ]


def test_batches_depend_on_seed_stage_and_epoch_alone():
    source = batches()
    first = drawn(source, 3)
    drawn(source, 0)
    assert drawn(source, 3) == drawn(batches(), 3) == first
    for other in (drawn(source, 4), drawn(batches(seed=1), 3), drawn(batches(stage=2), 3)):
        for column in (0, 2, 3):
            assert [step[column] for step in other] != [step[column] for step in first]


def test_each_step_has_a_generator_of_its_own():
    views = [step[3] for step in drawn(batches(), 0) + drawn(batches(), 1)]
    assert len({tuple(v) for v in views}) == len(views) == 12


def test_images_come_once_an_epoch():
    steps = drawn(batches(), 0)
    assert len(steps) == 6  # 50 images, the last 2 are left out
    seen = [i for step in steps for i in step[0]]
    assert len(seen) == len(set(seen)) == 48
    assert [label for step in steps for label in step[1]] == [i % 7 for i in seen]
    others = drawn(batches(outliers=60), 0)
    assert len({i for step in others for i in step[2]}) == 48


@pytest.mark.parametrize("first_step", [1, 3, 5, 6])
def test_resuming_gives_the_identical_tail(first_step):
    assert drawn(batches(), 2, first_step) == drawn(batches(), 2)[first_step:]


def test_few_outliers_come_round_again():
    steps = drawn(batches(outliers=10), 0)
    seen = [i for step in steps for i in step[2]]
    assert [len(step[2]) for step in steps] == [8] * 6
    rounds = [seen[i : i + 10] for i in range(0, 48, 10)]
    assert all(sorted(r) == list(range(10)) for r in rounds[:-1])
    assert len({tuple(r) for r in rounds[:-1]}) == 4  # each time in another order


def test_fewer_outliers_than_a_batch():
    assert [sorted(step[2]) for step in drawn(batches(outliers=3), 0)] == [[0, 1, 2]] * 6


@pytest.mark.parametrize("outliers", [None, 0])
def test_batches_without_outliers(outliers):
    found = list(batches(outliers=outliers).epoch(0))
    assert len(found) == 6
    assert all(b.outliers.shape == (0, 4, 4, 3) for b in found)


def test_too_few_images_for_a_batch():
    with pytest.raises(DataError, match="7 training images do not fill a batch of 8: lower it"):
        batches(images=7)


# ---- The tail ----


def test_tail_of_sorted_counts():
    assert tail_classes(np.array(long_tail_counts(10, 5000, 100)), 0.4).tolist() == [False] * 6 + [True] * 4
    assert np.flatnonzero(tail_classes(np.array(long_tail_counts(100, 500, 100)), 0.4)).tolist() == list(range(60, 100))


def test_tail_of_unsorted_counts():
    assert tail_classes(np.array([3, 100, 7, 50, 1]), 0.4).tolist() == [True, False, False, False, True]


def test_tail_among_equals_is_the_last():
    assert tail_classes(np.array([5, 5, 5, 5]), 0.5).tolist() == [False, False, True, True]


def test_whole_tail():
    assert tail_classes(np.array([5, 4, 3]), 1.0).all()


def test_reader_error_is_a_value_error():
    assert issubclass(readers.DataError, ValueError)  # the commands turn these into one line
