"""Images in memory brought to a backbone's size once, and kept in a file that is mapped: they take far more room."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from service.contract.progress import Progress
from training.data.mapped import created, holds
from training.data.processes import usable_cpus
from training.data.readers import DataError, Pixels
from training.network.looks import Source

CHUNK_IMAGES = 64


def written(images: Source, folder: Path) -> Pixels:
    """uint8 [N, H, W, 3] of N > 0 `images`, in a file of `folder` written the first time. DataError without room."""
    path = folder / f"sized-{images.fingerprint()[:16]}.npy"
    shape = (len(images), *images[:1].shape[1:])
    if not holds(path, shape):
        folder.mkdir(parents=True, exist_ok=True)
        _require_room(folder, int(np.prod(shape)))
        begun = path.with_suffix(".partial.npy")
        rows = created(begun, np.uint8, shape)

        def one(start: int) -> None:
            rows[start : start + CHUNK_IMAGES] = images[start : start + CHUNK_IMAGES]

        starts = range(0, len(images), CHUNK_IMAGES)
        with ThreadPoolExecutor(usable_cpus()) as pool:
            for _ in Progress(pool.map(one, starts), total=len(starts), desc="resize", unit="batch", disable=None):
                pass
        rows.flush()
        begun.replace(path)
    mapped: Pixels = np.load(path, mmap_mode="c")
    return mapped


def _require_room(folder: Path, needed: int) -> None:
    """A mapped file that outgrows its disk ends the process without a word."""
    if (free := shutil.disk_usage(folder).free) < needed:
        raise DataError(
            f"images at the backbone's size take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {folder}: "
            "name another --out, or a smaller --image-size-px"
        )
