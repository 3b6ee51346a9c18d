"""Readers give back exactly what was written, and name the file and the fault of what cannot be used."""

import numpy as np
import pytest
from PIL import Image

from tests.training import tiny
from training.data import decode, folders, readers
from training.data.readers import DataError, ImageSet


@pytest.fixture
def ten(tmp_path):
    """A valid CIFAR-10 folder for a test to damage."""
    tiny.write_cifar10(tmp_path)
    return tmp_path


# ---- CIFAR ----


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-py"])
def test_cifar10_comes_back_exactly(tmp_path, inner):
    images, labels = tiny.write_cifar10(tmp_path / inner, per_batch=7)
    train, test = readers.cifar(tmp_path, hundred=False)
    np.testing.assert_array_equal(train.images, images[:35])
    np.testing.assert_array_equal(train.labels, labels[:35])
    np.testing.assert_array_equal(test.images, images[35:])
    np.testing.assert_array_equal(test.labels, labels[35:])
    assert train.classes == test.classes == tuple(tiny.NAMES_10)
    assert train.counts.tolist() == [4, 4, 4, 4, 4, 3, 3, 3, 3, 3]


def test_cifar100_comes_back_exactly(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    fine = np.arange(30) * 3 % 100
    names = [f"class {i}" for i in range(100)]
    for name, part in (("train", slice(0, 20)), ("test", slice(20, 30))):
        content = {"data": tiny.cifar_rows(images[part]), "fine_labels": fine[part].tolist(), "coarse_labels": [0] * 10}
        tiny.dump(tmp_path / "cifar-100-python" / name, content)
    tiny.dump(tmp_path / "cifar-100-python" / "meta", {"fine_label_names": names, "coarse_label_names": ["all"]})
    train, test = readers.cifar(tmp_path, hundred=True)
    np.testing.assert_array_equal(train.images, images[:20])
    np.testing.assert_array_equal(train.labels, fine[:20])
    np.testing.assert_array_equal(test.images, images[20:])
    assert test.labels.tolist() == fine[20:].tolist()
    assert train.classes == tuple(names)


def test_cifar_planes_are_red_green_blue(ten):
    row = np.repeat(np.array([10, 20, 30], np.uint8), 1024)
    row[1] = 11  # the second pixel of the first row, red
    tiny.dump(ten / "test_batch", {"data": row[None], "labels": [0]})
    image = readers.cifar(ten, hundred=False)[1].images[0]
    assert image[0, 0].tolist() == [10, 20, 30]
    assert image[0, 1].tolist() == [11, 20, 30]
    assert image[1, 0].tolist() == [10, 20, 30]


def test_cifar_folder_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"nowhere is not a folder.*--data"):
        readers.cifar(tmp_path / "nowhere", hundred=False)


def test_cifar_file_is_missing(ten):
    (ten / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"data_batch_3 is missing"):
        readers.cifar(ten, hundred=False)


@pytest.mark.parametrize("kept_bytes", [0, 1, 5000])
def test_cifar_pickle_is_truncated(ten, kept_bytes):
    path = ten / "data_batch_2"
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(DataError, match=r"data_batch_2 is truncated or no pickle .*fetch it again"):
        readers.cifar(ten, hundred=False)


ROWS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], r"holds a list, not a dictionary"),
        ({"data": ROWS}, r"lacks \['labels'\]; it has \['data'\]"),
        ({"labels": [0, 1]}, r"lacks \['data'\]"),
        ({"data": ROWS[:, :3000], "labels": [0, 1]}, r"uint8 \[N, 3072\], not uint8 \[2, 3000\]"),
        ({"data": ROWS.reshape(2, 3, 32, 32), "labels": [0, 1]}, r"not uint8 \[2, 3, 32, 32\]"),
        ({"data": ROWS.astype(np.float32), "labels": [0, 1]}, r"not float32 \[2, 3072\]"),
        ({"data": ROWS, "labels": [0, 1, 2]}, r"2 images but 3 labels"),
        ({"data": ROWS, "labels": [0, 10]}, r"labels run from 0 to 10, but of 10 classes they can be 0 to 9"),
        ({"data": ROWS, "labels": [-1, 1]}, r"labels run from -1 to 1"),
        ({"data": ROWS, "labels": [0.0, 1.0]}, r"list of integers, not float64"),
        ({"data": ROWS, "labels": ["cat", "dog"]}, r"list of integers"),
        ({"data": ROWS, "labels": [[0], [1]]}, r"list of integers, not int64 \[2, 1\]"),
    ],
)
def test_cifar_part_is_wrong(ten, content, message):
    tiny.dump(ten / "data_batch_4", content)
    with pytest.raises(DataError, match=rf"data_batch_4.*{message}"):
        readers.cifar(ten, hundred=False)


@pytest.mark.parametrize(
    "names", [None, [], "cat", {"cat": 0}, ["cat", "dog", "cat"], [b"cat", b"dog"], [0, 1], [["cat"], ["dog"]]]
)
def test_cifar_names_are_in_the_wrong_form(ten, names):
    tiny.dump(ten / "batches.meta", {"label_names": names})
    with pytest.raises(DataError, match=r"batches\.meta: label_names must be a list of different names"):
        readers.cifar(ten, hundred=False)


# ---- Unlabelled images ----


@pytest.fixture
def pixels():
    return np.random.default_rng(2).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


def test_npy_and_npz_come_back_exactly(tmp_path, pixels):
    np.save(tmp_path / "a.npy", pixels)
    np.savez(tmp_path / "b.npz", anything=pixels)
    np.savez(tmp_path / "c.npz", labels=np.arange(3), images=pixels)
    for name in ("a.npy", "b.npz", "c.npz"):
        np.testing.assert_array_equal(folders.unlabelled_pixels(tmp_path / name, 8), pixels)


def test_arrays_are_resized_as_the_service_does(tmp_path, pixels):
    np.save(tmp_path / "a.npy", pixels)
    Image.fromarray(pixels[0]).save(tmp_path / "a.png")
    found = folders.unlabelled_pixels(tmp_path / "a.npy", 4)
    assert found.shape == (3, 4, 4, 3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0], decode.pixels_of([str(tmp_path / "a.png")], decode.square(4))[0])


def test_folder_of_images_in_the_order_of_names(tmp_path, pixels):
    for i, name in enumerate(("b.png", "a.PNG", "deeper/c.bmp")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels[i]).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    np.testing.assert_array_equal(folders.unlabelled_pixels(tmp_path, 8), pixels[[1, 0, 2]])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), r"not float32 \[2, 8, 8, 3\]"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"not uint8 \[2, 3, 8, 8\]"),
        (np.zeros((2, 8, 8), np.uint8), r"not uint8 \[2, 8, 8\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"with N > 0, not uint8 \[0, 8, 8, 3\]"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_array_is_wrong(tmp_path, array, message, suffix):
    path = tmp_path / f"outliers{suffix}"
    np.save(path, array) if suffix == ".npy" else np.savez(path, images=array)
    with pytest.raises(DataError, match=rf"outliers\{suffix} must be uint8 \[N, H, W, 3\].*{message}"):
        folders.unlabelled_pixels(path, 8)


def test_several_arrays_without_images(tmp_path):
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(1))
    with pytest.raises(DataError, match=r"two\.npz holds \['a', 'b'\]: name the array of images 'images'"):
        folders.unlabelled_pixels(tmp_path / "two.npz", 8)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
@pytest.mark.parametrize("content", ["text", "cut", "empty"])
def test_file_is_no_array(tmp_path, pixels, name, content):
    path = tmp_path / name
    np.save(path, pixels) if name.endswith("npy") else np.savez(path, pixels)
    whole = path.read_bytes()
    path.write_bytes({"text": b"no array at all", "cut": whole[: len(whole) // 2], "empty": b""}[content])
    with pytest.raises(DataError, match=rf"{name} is no numpy array"):
        folders.unlabelled_pixels(path, 8)


def test_pickled_array_is_not_loaded(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"a\.npy is no numpy array"):
        folders.unlabelled_pixels(tmp_path / "a.npy", 8)


def test_nothing_to_read(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.npy is missing"):
        folders.unlabelled_pixels(tmp_path / "nowhere.npy", 8)
    with pytest.raises(DataError, match=r"holds no image"):
        folders.unlabelled_pixels(tmp_path, 8)


# ---- Image sets and digits ----


def test_image_set_refuses_what_does_not_fit():
    image = np.zeros((1, 4, 4, 3), np.uint8)
    with pytest.raises(DataError, match="not int64"):
        ImageSet(image.astype(np.int64), np.array([0]), ("a",))
    with pytest.raises(DataError, match="labels run from 1 to 1, but of 1 classes they can be 0 to 0"):
        ImageSet(image, np.array([1]), ("a",))


def test_take_keeps_pairs():
    images = np.arange(4, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    part = ImageSet(images, np.array([0, 1, 0, 2]), ("a", "b", "c")).take(np.array([3, 1]))
    assert part.images[:, 0, 0, 0].tolist() == [3, 1]
    assert part.labels.tolist() == [2, 1]
    assert part.counts.tolist() == [0, 1, 1]


def test_digits():
    train, test, outliers, novel = readers.digits()
    assert train.images.shape == (928, 16, 16, 3)
    assert train.counts.tolist() == [116] * 8
    assert train.classes == test.classes == tuple("01234567")
    assert test.counts.min() >= 58
    assert len(outliers) == 174  # scikit-learn has so many eights
    assert len(novel) == 180  # and nines
    assert {s.dtype for s in (train.images, test.images, outliers, novel)} == {np.dtype(np.uint8)}
    assert train.images.max() == 255  # 0..16 grown to 0..255
    assert np.ptp(train.images.astype(int), axis=3).max() == 0  # grey


def test_digits_are_disjoint():
    parts = readers.digits()
    arrays = [parts[0].images, parts[1].images, *parts[2:]]
    seen = [{image.tobytes() for image in array} for array in arrays]
    assert sum(map(len, seen)) == len(set().union(*seen)) == 928 + len(parts[1].labels) + 174 + 180
