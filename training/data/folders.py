"""Folders of image files: which files they hold, of which class, and their pixels and content keys."""

import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from service.contract import files
from service.contract import images as service_images
from service.contract.bundle import Input
from training.data.readers import DataError, ImageSet, Keys, Pixels, array, content_key, pixel_keys

MAX_PIXELS = 50_000_000


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
    total = files.ImageFiles([], Counter(), 0, [])
    for inner in sorted(folder.iterdir()):
        if files.is_hidden(inner.name):
            total = total + files.ImageFiles([], Counter(), 1, [])
        elif inner.is_dir():
            found = files.find(inner)
            total = total + found
            classes.setdefault(unicodedata.normalize("NFC", inner.name), []).extend(map(Path, found.paths))
    if notes is not None:
        notes += total.notes(folder)
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
    loaded = array(path)
    keys = pixel_keys(loaded)
    if loaded.shape[1:3] == (size_px, size_px):
        return Unlabelled(np.ascontiguousarray(loaded), keys)
    resize = [Image.fromarray(i).resize((size_px, size_px), Image.Resampling.BILINEAR) for i in loaded]
    return Unlabelled(np.stack([np.asarray(i) for i in resize]), keys)
