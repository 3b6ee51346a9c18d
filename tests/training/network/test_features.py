"""training/network/features.py: the cache is right, resumes, and never gives the features of other images."""

import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from training.data.crops import PHOTO_AREA, cropped
from training.network.features import CHUNK_IMAGES, FeatureCache
from training.network.preprocessing import Preprocessing

SIZE = 6
PLAIN = Preprocessing(SIZE, (0, 0, 0), (1, 1, 1))


def graph(scale: float = 1.0) -> bytes:
    """Features: for each row of pixels from the left half, the mean of each channel times `scale`; a mirror differs."""
    shape: list[str | int | None] = ["N", SIZE, SIZE, 3]
    starts, ends, axes = (np.array(v, np.int64) for v in ([0], [SIZE // 2], [2]))
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Slice", ["x", "starts", "ends", "axes"], ["half"]),
        helper.make_node("ReduceMean", ["half", "over"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "scale"], ["features"]),
    ]
    constants = {"starts": starts, "ends": ends, "axes": axes, "over": np.array([1, 2], np.int64)}
    tensors = [numpy_helper.from_array(v, k) for k, v in constants.items()]
    tensors.append(numpy_helper.from_array(np.array([scale], np.float32), "scale"))
    made = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("images", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 3])], tensors,
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    content: bytes = model.SerializeToString()
    return content


class Images:
    """Pixels in memory that count how many were asked for."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self.pixels = np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
        self.asked = 0
        self.fail_at: int | None = None
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.pixels)

    def fingerprint(self) -> str:
        return hashlib.sha256(self.pixels.tobytes()).hexdigest()

    def __getitem__(self, index: slice) -> NDArray[np.uint8]:
        start, stop, _ = index.indices(len(self.pixels))
        with self.lock:
            if self.fail_at is not None and self.asked >= self.fail_at:
                raise KeyboardInterrupt
            self.asked += stop - start
        return self.pixels[start:stop]


def expected(pixels: NDArray[np.uint8]) -> NDArray[Any]:
    return pixels[:, :, : SIZE // 2].astype(np.float64).mean(axis=(1, 2))


def cache(folder: Path, **options: Any) -> FeatureCache:
    return FeatureCache(folder, options.pop("graph", graph()), PLAIN, threads=2, **options)


def test_every_image_in_its_row_with_its_mirror(tmp_path: Path) -> None:
    images = Images(3 * CHUNK_IMAGES + 5)
    found = cache(tmp_path).features("train", images)
    assert found.shape == (len(images), 2, 3)
    np.testing.assert_allclose(found[:, 0], expected(images.pixels), rtol=1e-5)
    np.testing.assert_allclose(found[:, 1], expected(images.pixels[:, :, ::-1]), rtol=1e-5)
    assert cache(tmp_path).features("test", images, views=1).shape == (len(images), 1, 3)
    assert cache(tmp_path).features("none", Images(0)).shape == (0, 2, 3)


def test_what_is_there_is_not_computed_again(tmp_path: Path) -> None:
    images = Images(70)
    one = np.array(cache(tmp_path).features("train", images))
    asked = images.asked
    np.testing.assert_array_equal(one, cache(tmp_path).features("train", images))
    assert images.asked == asked


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    images = Images(10 * CHUNK_IMAGES)
    images.fail_at = 4 * CHUNK_IMAGES
    with pytest.raises(KeyboardInterrupt):
        cache(tmp_path).features("train", images)
    images.fail_at, before = None, images.asked
    found = cache(tmp_path).features("train", images)
    np.testing.assert_allclose(found[:, 0], expected(images.pixels), rtol=1e-5)
    assert images.asked - before < len(images)  # some chunks were kept
    assert images.asked - before >= len(images) - before  # and every other one was computed


def test_a_file_that_was_cut_off_is_computed_again(tmp_path: Path) -> None:
    images = Images(70)
    one = np.array(cache(tmp_path).features("train", images))
    (path,) = tmp_path.glob("*.npy")
    for size in (path.stat().st_size - 1, 128, 50, 0):
        os.truncate(path, size)
        np.testing.assert_array_equal(one, cache(tmp_path).features("train", images))
        assert not list(tmp_path.glob("*.done"))


@pytest.mark.parametrize("what", ["images", "graph", "preprocessing", "views", "mirror"])
def test_other_inputs_never_get_these_features(tmp_path: Path, what: str) -> None:
    images = Images(40)
    cache(tmp_path).features("train", images)
    asked = images.asked
    other = cache(tmp_path)
    if what == "images":
        images = Images(40, seed=1)
        asked = 0
    elif what == "graph":
        other = cache(tmp_path, graph=graph(2.0))
    elif what == "preprocessing":
        other = FeatureCache(
            tmp_path, graph(), Preprocessing(SIZE, (0, 0, 0), (1, 1, 1), resampling="bicubic"), threads=2
        )
    elif what == "views":
        other = cache(tmp_path, extra_views=1)
    else:
        other = cache(tmp_path, mirror=False)
    found = other.features("train", images)
    assert images.asked > asked
    scale = 2.0 if what == "graph" else 1.0
    np.testing.assert_allclose(found[:, 0], scale * expected(images.pixels), rtol=1e-5)


def test_extra_views_are_the_same_each_time_and_differ_from_each_other(tmp_path: Path) -> None:
    images = Images(40)
    one = np.array(cache(tmp_path / "a", extra_views=2).features("train", images))
    two = np.array(cache(tmp_path / "b", extra_views=2).features("train", images))
    np.testing.assert_array_equal(one, two)
    assert one.shape == (40, 4, 3)
    assert not np.allclose(one[:, 2], one[:, 3])


def test_a_crop_keeps_the_size_and_shows_a_part() -> None:
    ramp = np.repeat(np.repeat(np.arange(0, 240, 8, dtype=np.uint8)[None, :, None], 30, axis=0), 3, axis=2)
    random = np.random.default_rng(0)
    parts = [cropped(ramp, random) for _ in range(20)]
    assert all(part.shape == ramp.shape and part.dtype == np.uint8 for part in parts)
    widths = [int(part.max()) - int(part.min()) for part in parts]  # 232: the whole width is seen
    assert 232 * 0.5 < np.mean(widths) < 232 * 0.95
    assert PHOTO_AREA[0] > 0
