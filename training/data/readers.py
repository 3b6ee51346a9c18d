"""From files to arrays: CIFAR pickles, outlier arrays, scikit-learn's digits.

Every reader checks what it read: a DataError names the file, what is wrong with it and what to do.
"""

import pickle
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.contract.keys import content_key

Pixels = NDArray[np.uint8]  # [N, H, W, 3]
FeatureViews = NDArray[np.float32]  # [N, V, F]: of V views of an image
# Pixels; Fitted (fitted.py), made when a slice is taken; or FeatureViews where a frozen backbone has seen them
Images = Any
Labels = NDArray[np.int64]  # [N]
Keys = NDArray[np.uint64]  # [N]: a hash of each image's content


class DataError(ValueError):
    """The data cannot be used as it is; the message names the place and the remedy."""


@dataclass(frozen=True)
class ImageSet:
    """Labelled images: uint8 [N, H, W, 3], int64 [N] in 0..C-1, and the C class names.

    In the place of pixels `images` may hold what a frozen backbone says of them: float32 [N, V, F], of V views.

    `file_keys` are content keys of the files that the images were read from; without them `keys` are of the pixels.
    """

    images: Images
    labels: Labels
    classes: tuple[str, ...]
    file_keys: Keys | None = None

    def __post_init__(self) -> None:
        pixels = self.images.dtype == np.uint8 and self.images.ndim == 4 and self.images.shape[3] == 3
        if not pixels and (self.images.dtype != np.float32 or self.images.ndim != 3):
            raise DataError(f"images must be uint8 [N, H, W, 3], not {self.images.dtype} {list(self.images.shape)}")
        if len(self.images) != len(self.labels):
            raise DataError(f"{len(self.images)} images but {len(self.labels)} labels")
        if len(self.labels) and not (self.labels.min() >= 0 and self.labels.max() < len(self.classes)):
            raise DataError(
                f"labels run from {self.labels.min()} to {self.labels.max()}, but of {len(self.classes)} classes "
                f"they can be 0 to {len(self.classes) - 1}"
            )

    def take(self, index: NDArray[np.int64]) -> "ImageSet":
        keys = None if self.file_keys is None else self.file_keys[index]
        return ImageSet(self.images[index], self.labels[index], self.classes, keys)

    @cached_property
    def keys(self) -> Keys:
        return pixel_keys(self.images) if self.file_keys is None else self.file_keys

    @property
    def counts(self) -> NDArray[np.int64]:
        return np.bincount(self.labels, minlength=len(self.classes)).astype(np.int64)


def pixel_keys(pixels: Pixels) -> Keys:
    """The keys of uint8 [N, H, W, 3]."""
    return np.array([content_key(np.ascontiguousarray(image).data) for image in pixels], np.uint64)


def _unpickle(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path} is missing: --data must name a folder in CIFAR's python pickle format")
    try:
        with path.open("rb") as file:
            content = pickle.load(file, encoding="latin1")
    except Exception as error:  # a broken pickle raises nearly anything
        raise DataError(f"{path} is truncated or no pickle ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, not a dictionary: it is no CIFAR file")
    return content


def _cifar_part(path: Path, labels_key: str, classes: tuple[str, ...]) -> ImageSet:
    content = _unpickle(path)
    if missing := {"data", labels_key} - content.keys():
        raise DataError(f"{path} lacks {sorted(missing)}; it has {sorted(map(str, content))}")
    rows = np.asarray(content["data"])
    labels = np.asarray(content[labels_key])
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 3072:
        raise DataError(f"{path}: data must be uint8 [N, 3072], not {rows.dtype} {list(rows.shape)}")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{path}: {labels_key} must be a list of integers, not {labels.dtype} {list(labels.shape)}")
    pixels = np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    try:
        return ImageSet(pixels, labels.astype(np.int64), classes)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def cifar(folder: Path, *, hundred: bool) -> tuple[ImageSet, ImageSet]:
    """(train, test) of CIFAR-10 or CIFAR-100 in the python pickle format; `folder` or its usual subfolder."""
    inner = folder / ("cifar-100-python" if hundred else "cifar-10-batches-py")
    folder = inner if inner.is_dir() else folder
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: --data must name CIFAR's python files")
    meta_file, names_key = ("meta", "fine_label_names") if hundred else ("batches.meta", "label_names")
    names = _unpickle(folder / meta_file).get(names_key)
    strings = isinstance(names, list) and all(isinstance(n, str) for n in names)
    if not strings or not names or len(set(names)) < len(names):
        raise DataError(f"{folder / meta_file}: {names_key} must be a list of different names, not {names!r:.80}")
    classes = tuple(names)
    key = "fine_labels" if hundred else "labels"
    parts = ["train"] if hundred else [f"data_batch_{i}" for i in range(1, 6)]
    train = [_cifar_part(folder / part, key, classes) for part in parts]
    merged = ImageSet(np.concatenate([p.images for p in train]), np.concatenate([p.labels for p in train]), classes)
    return merged, _cifar_part(folder / ("test" if hundred else "test_batch"), key, classes)


def array(path: Path) -> Pixels:
    """uint8 [N, H, W, 3] of a .npy or .npz file. DataError where it holds something else."""
    if not path.is_file():
        raise DataError(f"{path} is missing: name a .npy or .npz array, or a folder of images")
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.lib.npyio.NpzFile):
                if len(loaded.files) != 1 and "images" not in loaded.files:
                    raise DataError(f"{path} holds {loaded.files}: name the array of images 'images'")
                loaded = loaded["images" if "images" in loaded.files else loaded.files[0]]
    except DataError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is no numpy array ({error})") from error
    if loaded.dtype != np.uint8 or loaded.ndim != 4 or loaded.shape[3] != 3 or len(loaded) == 0:
        raise DataError(f"{path} must be uint8 [N, H, W, 3] with N > 0, not {loaded.dtype} {list(loaded.shape)}")
    pixels: Pixels = loaded
    return pixels


def digits() -> tuple[ImageSet, ImageSet, Pixels, Pixels]:
    """(train, test, outliers, OOD) from scikit-learn's 1,797 scanned digits: 0-7 to learn, 8 outliers, 9 OOD. 16 px."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # 8×8 with values 0..16 → 16×16 with values 0..255
    pixels = np.round(np.asarray(bunch.images) * (255 / 16)).astype(np.uint8)
    grown = [Image.fromarray(p).resize((16, 16), Image.Resampling.BILINEAR).convert("RGB") for p in pixels]
    images = np.stack([np.asarray(g) for g in grown])
    target = np.asarray(bunch.target, np.int64)
    classes = tuple(str(d) for d in range(8))
    # every third image of a digit is for the test
    rank = np.zeros(len(target), np.int64)
    for digit in range(10):
        rank[target == digit] = np.arange((target == digit).sum())
    known, test = target < 8, rank % 3 == 2
    known &= test | (rank < 174)  # as many of each digit to learn: 116, so that any cut fits
    train_set = ImageSet(images[known & ~test], target[known & ~test], classes)
    test_set = ImageSet(images[known & test], target[known & test], classes)
    return train_set, test_set, images[target == 8], images[target == 9]
