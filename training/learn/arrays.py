"""A run on arrays (CIFAR, digits) as files, so that photographs can join its images.

Each image is written once as PNG, pixel by pixel the same. A file has another content key than its pixels: features
that a frozen backbone has given of the pixels are known under both.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from service.contract.keys import content_key
from training.config import Config
from training.data.choice import Choice
from training.data.listing import Listing
from training.data.loading import load
from training.data.photographs import Files
from training.data.readers import DataError, Images, Keys, Pixels, pixel_keys
from training.data.whole import replacing

FOLDER = "array"


def as_files(config: Config, run: Path, work: Path) -> tuple[Files, Mapping[int, int]]:
    """The sides of a run as files below `work`, and the key of each file by that of its pixels.

    DataError for a run that has no frozen backbone: its network was trained on pixels of one small size.
    """
    if not config.frozen:
        raise DataError(f"{run} was trained on the pixels of {config.dataset} and keeps no features, so photographs "
                        "cannot join them: train a run with --backbone on it, or one on folders of images")  # fmt: skip
    data = load(config, run)
    keys: dict[str, Keys] = {}
    of_pixels: dict[int, int] = {}

    def listed(name: str, images: Images) -> list[str]:
        paths, keys[name] = _written(work / FOLDER, name, images)
        of_pixels.update(zip(pixel_keys(images).tolist(), keys[name].tolist(), strict=True))
        return paths

    labelled = {
        name: Listing(listed(name, images.images), images.labels, images.classes, {})
        for name, images in (("train", data.train), ("calibration", data.calibration), ("test", data.test))
    }
    outside = {
        name: Listing.unlabelled(listed(name, images))
        for name, images in (("outliers", data.outliers), ("calibration_outliers", data.calibration_outliers))
    }
    files = Files(
        labelled["train"], labelled["calibration"], labelled["test"], outside["outliers"],
        outside["calibration_outliers"], keys, Choice.read(run), unreadable=[], notes=data.notes,
    )  # fmt: skip
    return files, of_pixels


def _written(folder: Path, name: str, images: Images) -> tuple[list[str], Keys]:
    """Paths of one PNG for each image, with their content keys; those that are there are taken as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, keys = [], []
    for i, pixels in enumerate(images):
        path = (folder / f"{name}-{i:06}.png").resolve()
        paths.append(str(path))
        keys.append(content_key(path.read_bytes()) if path.is_file() else as_png(pixels, path))
    return paths, np.array(keys, np.uint64)


def as_png(pixels: Pixels, path: Path) -> int:
    """Write an image uint8 [H, W, 3] to a file, which appears whole; its content key."""
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, "PNG", compress_level=1)
    return content_key(path.read_bytes())
