"""From files to arrays: CIFAR pickles, class folders, outlier arrays, scikit-learn's digits.

Every reader checks what it read: a DataError names the file, what is wrong with it and what to do.
"""

import hashlib
import pickle
import unicodedata
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.contract import files, images as service_images
from service.contract.bundle import Input

Pixels = NDArray[np.uint8]  # [N, H, W, 3]
Labels = NDArray[np.int64]  # [N]
Keys = NDArray[np.uint64]  # [N]: a hash of each image's content
MAX_PIXELS = 50_000_000


class DataError(ValueError):
    """The data cannot be used as it is; the message names the place and the remedy."""


@dataclass(frozen=True)
class ImageSet:
    """Labelled images: uint8 [N, H, W, 3], int64 [N] in 0..C-1, and the C class names.

    `file_keys` are content keys of the files that the images were read from; without them `keys` are of the pixels.
    """

    images: Pixels
    labels: Labels
    classes: tuple[str, ...]
    file_keys: Keys | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[3] != 3:
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


def content_key(content: bytes) -> int:
    """64 bits of a hash: evenly spread, the same on every machine, so that an image is known by it."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


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


def image_files(folder: Path, notes: list[str] | None = None) -> list[Path]:
    """Every image file below `folder` in the order of names (service.contract.files); what is left out into `notes`."""
    found = files.find(folder)
    if notes is not None:
        notes += found.notes(folder)
    return [Path(path) for path in found.paths]


def read_files(paths: list[Path], size_px: int) -> Pixels:
    """Decode files exactly as the service does: uint8 [N, size_px, size_px, 3]."""
    shape = Input(height_px=size_px, width_px=size_px, fit="stretch", resampling="bilinear")
    out = np.empty((len(paths), size_px, size_px, 3), np.uint8)
    for i, path in enumerate(paths):
        try:
            out[i] = service_images.load(path.read_bytes(), shape, max_pixels=MAX_PIXELS).pixels
        except Exception as error:
            raise DataError(f"{path} cannot be read as an image ({error}): mend or remove it") from error
    return out


def file_keys(paths: list[Path]) -> Keys:
    """The content keys of files that can be read."""
    return np.array([content_key(path.read_bytes()) for path in paths], np.uint64)


def class_files(folder: Path, notes: list[str] | None = None) -> dict[str, list[Path]]:
    """The image files of each class folder in `folder`, by class name in Unicode's form NFC; hidden folders are none.

    Two folders whose names differ in their Unicode form alone are one class.
    """
    classes: dict[str, list[Path]] = {}
    for inner in sorted(folder.iterdir()):
        if inner.is_dir() and not files.is_hidden(inner.name):
            classes.setdefault(unicodedata.normalize("NFC", inner.name), []).extend(image_files(inner, notes))
    return classes


def class_folders(folder: Path, size_px: int, notes: list[str] | None = None) -> tuple[ImageSet, ImageSet]:
    """(train, test) of DIR/train/<class>/* and DIR/test/<class>/*; classes from the most frequent to the rarest."""
    parts: dict[str, dict[str, list[Path]]] = {}
    for part in ("train", "test"):
        if not (folder / part).is_dir():
            raise DataError(f"{folder / part} is missing: a folder data set has train/<class>/ and test/<class>/")
        parts[part] = class_files(folder / part, notes)
        if empty := [name for name, paths in parts[part].items() if not paths]:
            raise DataError(f"{folder / part}: no image in class {', '.join(empty)}: add some or remove the folder")
    if parts["train"].keys() != parts["test"].keys():
        differ = sorted(parts["train"].keys() ^ parts["test"].keys())
        raise DataError(f"{folder}: train and test have different classes ({', '.join(differ[:5])})")
    classes = tuple(sorted(parts["train"], key=lambda c: (-len(parts["train"][c]), c)))
    sets = []
    for part in ("train", "test"):
        labelled = [(path, label) for label, name in enumerate(classes) for path in parts[part][name]]
        paths = [path for path, _ in labelled]
        pixels = read_files(paths, size_px)
        sets.append(ImageSet(pixels, np.array([y for _, y in labelled], np.int64), classes, file_keys(paths)))
    return sets[0], sets[1]


class Unlabelled(NamedTuple):
    """Images without labels: uint8 [N, H, W, 3] and their content keys [N]."""

    pixels: Pixels
    keys: Keys


def unlabelled(path: Path, size_px: int, notes: list[str] | None = None) -> Unlabelled:
    """A .npy or .npz uint8 [N, H, W, 3], or a folder of images; resized to size_px as the service does."""
    if path.is_dir():
        paths = image_files(path, notes)
        if not paths:
            raise DataError(f"{path} holds no image: name a folder of images, or a .npy or .npz array")
        return Unlabelled(read_files(paths, size_px), file_keys(paths))
    loaded = _array(path)
    keys = pixel_keys(loaded)
    if loaded.shape[1:3] == (size_px, size_px):
        return Unlabelled(np.ascontiguousarray(loaded), keys)
    resize = [Image.fromarray(i).resize((size_px, size_px), Image.Resampling.BILINEAR) for i in loaded]
    return Unlabelled(np.stack([np.asarray(i) for i in resize]), keys)


def _array(path: Path) -> Pixels:
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
