"""Photographs at the size of a network, decoded once: in memory, or in a file of the run that is mapped into it."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from training.data import mapped
from training.data.decode import decode, square
from training.data.readers import Keys, Pixels

STEP_IMAGES = 64  # between two notes of how far the file is


def pixel_array(paths: Sequence[str], keys: Keys, size_px: int, cache: Path | None) -> Pixels:
    """uint8 [N, size_px, size_px, 3] of the files, whose content keys are `keys`. DataError where one cannot be read,
    or has changed since it had its key.

    With a `cache` folder they are written to a file there and mapped, so that memory holds what is in use; a file that
    was begun is gone on with.
    """
    title = f"decode at {size_px} px"
    if cache is None or not len(paths):
        pixels = np.empty((len(paths), size_px, size_px, 3), np.uint8)
        for batch in decode(paths, square(size_px), title=title, keys=keys):
            pixels[batch.index] = batch.pixels
        return pixels
    name = hashlib.blake2b(keys.tobytes(), digest_size=8).hexdigest()
    whole, begun = cache / f"pixels-{size_px}-{name}.npy", cache / f"pixels-{size_px}-{name}.partial.npy"
    if not mapped.holds(whole, (len(paths), size_px, size_px, 3)):
        _fill(paths, keys, size_px, begun, title)
        begun.replace(whole)
        begun.with_suffix(".done").unlink(missing_ok=True)
    found: Pixels = np.load(whole, mmap_mode="c")
    return found


def _fill(paths: Sequence[str], keys: Keys, size_px: int, begun: Path, title: str) -> None:
    """Write the images that `begun` does not hold yet, in order."""
    shape = (len(paths), size_px, size_px, 3)
    progress = begun.with_suffix(".done")  # a text file: how many images are written
    start = int(progress.read_text() or 0) if mapped.holds(begun, shape) and progress.exists() else 0
    begun.parent.mkdir(parents=True, exist_ok=True)
    file = np.lib.format.open_memmap(begun, "r+") if start else mapped.created(begun, np.uint8, shape)
    fresh = decode(paths[start:], square(size_px), batch_images=STEP_IMAGES, title=title, keys=keys[start:])
    for batch in fresh:
        file[start + batch.index] = batch.pixels
        file.flush()
        noted = progress.with_suffix(f".{os.getpid()}")
        noted.write_text(str(start + int(batch.index[-1]) + 1))
        noted.replace(progress)  # an empty note of a process killed while it wrote is no number
