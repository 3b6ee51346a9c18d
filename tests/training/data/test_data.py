"""The long-tail cut, the calibration split, and batches that any step can be resumed from."""

import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training import tiny
from tests.training.pictures import save
from training.config import Config
from training.data import loading, readers
from training.data.batches import Batches
from training.data.choice import Choice, Part
from training.data.readers import DataError, ImageSet
from training.data.splits import calibration_split, held_back, long_tail_counts, long_tail_cut, tail_classes

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


def keys(n, seed=0):
    return np.random.default_rng(seed).integers(0, 2**64, n, dtype=np.uint64)


def test_split_is_disjoint_and_keeps_pairs():
    rest, calibration = calibration_split(numbered(LABELS), 0.1)
    assert sorted(numbers(rest.images) + numbers(calibration.images)) == list(range(len(LABELS)))
    for part in (rest, calibration):
        np.testing.assert_array_equal(part.labels, LABELS[numbers(part.images)])


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.95])
@pytest.mark.parametrize("seed", range(20))
def test_bounds_of_every_class(fraction, seed):
    held = held_back(keys(len(LABELS), seed), LABELS, fraction)
    counts, held_counts = np.bincount(LABELS), np.bincount(LABELS[held], minlength=6)
    assert (held_counts[4:] == 0).all()  # classes of fewer than 5 images
    assert (held_counts[:4] >= 1).all()
    assert (held_counts[:4] <= (1 + fraction) / 2 * counts[:4]).all()
    assert (held_counts < counts).all()  # every class is trained on, at a share of .95 as well


def test_share_of_many_images_is_the_fraction():
    assert held_back(keys(20_000), np.arange(20_000) % 4, 0.15).mean() == pytest.approx(0.15, abs=0.01)


def test_order_and_additions_move_nothing():
    before, labels = keys(1000), np.arange(1000) % 7
    held = held_back(before, labels, 0.1)
    shuffled = np.random.default_rng(5).permutation(1000)
    np.testing.assert_array_equal(held_back(before[shuffled], labels[shuffled], 0.1), held[shuffled])
    more, more_labels = np.append(before, keys(300, 1)), np.append(labels, np.arange(300) % 7)
    np.testing.assert_array_equal(held_back(more, more_labels, 0.1)[:1000], held)
    np.testing.assert_array_equal(held_back(before[:700], labels[:700], 0.1), held[:700])
    np.testing.assert_array_equal(held_back(more, None, 0.1)[:1000], held_back(before, None, 0.1))


def test_copies_share_a_side_under_two_labels_as_well():
    twice = np.repeat(keys(300), 2)
    held = held_back(twice, np.tile([0, 1], 300), 0.3)
    np.testing.assert_array_equal(held[::2], held[1::2])


@pytest.mark.parametrize("seed", range(30))
def test_units_are_never_parted(seed):
    draw = np.random.default_rng(seed)
    of = draw.integers(0, 12, 60)
    labels = np.sort(draw.integers(0, 3, 60))  # units reach across classes
    held = held_back(keys(12, seed)[of], labels, 0.2)
    assert all(len(set(held[of == unit])) == 1 for unit in set(of.tolist()))
    assert (np.bincount(labels[~held], minlength=3) > 0).all()


def test_a_class_that_is_one_unit_is_trained_on():
    units = np.repeat(keys(2), [10, 10])
    assert not held_back(units, np.repeat([0, 1], 10), 0.9999).any()


def test_split_is_by_the_keys_of_the_files_where_there_are_any():
    images = numbered([0] * 200)
    files = ImageSet(images.images, images.labels, images.classes, keys(200))
    expected = np.flatnonzero(held_back(keys(200), images.labels, 0.2)).tolist()
    assert numbers(calibration_split(files, 0.2)[1].images) == expected
    assert numbers(calibration_split(images, 0.2)[1].images) != expected


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
    assert 10 <= len(found.calibration_outliers) <= 25
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
    assert 1 <= len(found.calibration_outliers) <= 5
    together = np.concatenate([found.outliers, found.calibration_outliers])
    assert {i.tobytes() for i in together} == {i.tobytes() for i in outliers}
    assert found.flip
    assert (found.size_px, found.padding_px) == (32, 4)


@pytest.fixture
def photographs(tmp_path):
    """Class folders of 40 and 30 different images, 50 outliers; the settings that read them."""
    draw = np.random.default_rng(3)
    for part, n in (("data/train/ant", 40), ("data/train/bee", 30), ("data/test/ant", 2), ("data/test/bee", 2),
                    ("junk", 50)):  # fmt: skip
        (tmp_path / part).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(draw.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(tmp_path / part / f"{i:02}.png")
    return tiny.config(
        dataset="folder", data=tmp_path / "data", outliers=tmp_path / "junk", image_size_px=8, imbalance=None,
        calibration_fraction=0.3,
    )  # fmt: skip


def contents(images):
    return {image.tobytes() for image in np.asarray(images)}


def test_adding_and_renaming_files_moves_no_other_image(photographs, tmp_path):
    before = loading.load(photographs)
    (tmp_path / "data/train/ant/00.png").rename(tmp_path / "data/train/ant/zz.png")
    for part in ("data/train/ant", "junk"):
        Image.new("RGB", (9, 9), "red").save(tmp_path / part / "05a.png")
    after = loading.load(photographs)
    for kept, held in (("train", "calibration"),):
        assert not contents(getattr(before, held).images) & contents(getattr(after, kept).images)
        assert not contents(getattr(before, kept).images) & contents(getattr(after, held).images)
    assert contents(before.calibration_outliers) <= contents(after.calibration_outliers)
    assert contents(before.outliers) <= contents(after.outliers)


def test_a_run_keeps_its_choice_and_leaves_new_images_out(photographs, tmp_path):
    before = loading.load(photographs)
    before.choice.write(tmp_path / "run")
    (tmp_path / "data/train/bee/03.png").rename(tmp_path / "data/train/bee/00a.png")
    Image.new("RGB", (9, 9), "red").save(tmp_path / "data/train/ant/new.png")
    Image.new("RGB", (9, 9), "red").save(tmp_path / "junk/new.png")
    after = loading.load(photographs.model_copy(update={"calibration_fraction": 0.9}), tmp_path / "run")
    for name in ("train", "calibration"):
        one, two = getattr(before, name), getattr(after, name)
        assert contents(one.images) == contents(two.images)
        assert one.counts.tolist() == two.counts.tolist()
    assert contents(before.outliers) == contents(after.outliers)
    assert contents(before.calibration_outliers) == contents(after.calibration_outliers)
    assert "1 images and 1 outliers have come since the run began: they are left out" in after.notes


def test_a_run_whose_images_are_gone_is_refused(photographs, tmp_path):
    found = loading.load(photographs)
    found.choice.write(tmp_path / "run")
    gone = next(tmp_path.glob("data/train/ant/*.png"))
    content = gone.read_bytes()
    gone.unlink()
    with pytest.raises(DataError, match=r"1 of \d+ images that the run has as (train|calibration) are no longer"):
        loading.load(photographs, tmp_path / "run")
    gone.write_bytes(content)
    assert loading.load(photographs, tmp_path / "run").train.counts.tolist() == found.train.counts.tolist()


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_class_that_came_since_a_run_began_is_named(photographs, tmp_path, part):
    """It was said that no readable training image is left of it."""
    loading.load(photographs).choice.write(tmp_path / "run")
    shutil.copytree(tmp_path / "data/test/ant", tmp_path / "data" / part / "cat")
    if part == "test":
        shutil.copytree(tmp_path / "data/test/ant", tmp_path / "data/train/cat")
    with pytest.raises(DataError, match="run knows no class cat, which has come or was renamed since it began"):
        loading.load(photographs, tmp_path / "run")


def test_choice_comes_back_and_damage_is_named(tmp_path):
    found = loading.load(tiny.config(calibration_fraction=0.1))
    found.choice.write(tmp_path)
    read = Choice.read(tmp_path)
    for name, part in found.choice.parts.items():
        np.testing.assert_array_equal(read.parts[name].keys, part.keys)
    assert read.parts["train"].classes == [found.train.classes[y] for y in found.train.labels]
    with pytest.raises(DataError, match=r"split\.csv is missing, .* train it again"):
        Choice.read(tmp_path / "elsewhere")
    (tmp_path / "split.csv").write_text("part,class,key\ntrain,a,not hexadecimal\n")
    with pytest.raises(DataError, match=r"split\.csv is damaged"):
        Choice.read(tmp_path)


def test_copies_of_an_image_count_as_often_as_when_the_run_began(tmp_path):
    images = numbered(np.zeros(20, np.int64))
    twice = images.take(np.repeat(np.arange(20), 2))
    choice = Choice({"train": Part(images.keys, []), "calibration": Part(keys(0), [])})
    places, new = choice.find(twice.keys, "train", "calibration")
    assert (len(places[0]), len(places[1]), new) == (20, 0, 20)


def test_load_without_a_folder():
    with pytest.raises(DataError, match="--dataset cifar10 needs --data DIR"):
        loading.load(tiny.config(dataset="cifar10"))


def test_load_names_an_empty_class(tmp_path):
    images, labels = tiny.write_cifar10(tmp_path)
    tiny.dump(tmp_path / "test_batch", {"data": tiny.cifar_rows(images[:9]), "labels": labels[:9].tolist()})
    with pytest.raises(DataError, match="no test image of class truck"):
        loading.load(tiny.config(dataset="cifar10", data=tmp_path, imbalance=None))


def test_a_folder_with_a_dot_in_its_name_is_called_by_all_of_it(tmp_path):
    """ "night.v1" and "night.v2" were both called "night", as if the rest were a suffix."""
    for name in ("night.v1", "night.v2"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name / "a.png")
    np.save(tmp_path / "night.npy", np.zeros((1, 8, 8, 3), np.uint8))
    paths = [tmp_path / name for name in ("night.v1", "night.v2", "night.npy")]
    assert list(loading.ood_sets(paths, 8)) == ["night.v1", "night.v2", "night"]


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


def test_images_that_are_mapped_from_a_file_are_drawn_alike_and_stay_there(tmp_path):
    images = numbered(np.arange(50) % 7)
    np.save(tmp_path / "pixels.npy", images.images)
    mapped = ImageSet(np.load(tmp_path / "pixels.npy", mmap_mode="c"), images.labels, images.classes)
    source = Batches(mapped, numbered([0] * 40).images, 8, seed=0, stage=1, device=CPU)
    assert source.images.data_ptr() == mapped.images.ctypes.data
    assert drawn(source, 0) == drawn(batches(), 0)


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


@pytest.mark.parametrize(
    ("name", "message"), [("outlier", "how feedback names an image of no class"), (" ", "is called ' '")]
)
def test_class_names_that_mean_something_else_are_refused(tmp_path, name, message):
    for part in ("train", "test"):
        for label in (name, "cat"):
            for i in range(3):
                save(tmp_path / part / label / f"{i}.png", 10 * i + len(label))
    with pytest.raises(DataError, match=message):
        loading.load(Config(dataset="folder", data=tmp_path))
