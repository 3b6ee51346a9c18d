"""Image files to pixels, lazily, by several processes: what feature extraction and every reader of files iterates.

    for batch in decode(paths, target, batch_images=64, failures=failures):
        features[batch.index] = network(batch.pixels)

Every file goes through service.contract.images.load, as an upload does, so that training and service see the same
pixels. Memory holds some batches of each process, whatever the number of files.
"""

import mmap
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.contract import images
from service.contract.bundle import Input
from service.contract.keys import content_key
from service.contract.progress import Progress
from training.data.processes import AHEAD, forks, in_processes, usable_cpus
from training.data.readers import DataError, Keys, Pixels

MAX_PIXELS = 50_000_000
FEW_FILES = 64  # for fewer, processes take longer to start than to work


class Unreadable(NamedTuple):
    """A file that is no image, or cannot be read, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Decoded:
    """Some of the files: int64 [n], which of them, and uint8 [n, H, W, 3]."""

    index: NDArray[np.int64]
    pixels: Pixels


def square(size_px: int) -> Input:
    """What a network of size_px x size_px pixels takes: the image stretched to it."""
    return Input(height_px=size_px, width_px=size_px, fit="stretch", resampling="bilinear")


def resized(pixels: Pixels, target: Input) -> Pixels:
    """uint8 [N, H, W, 3] of any size as the service would bring each image to the size of `target`."""
    size = (target.height_px, target.width_px)
    if not len(pixels):
        return np.empty((0, *size, 3), np.uint8)
    if pixels.shape[1:3] == size and target.crop_share == 1:
        return np.ascontiguousarray(pixels)
    return np.stack([images.fit(Image.fromarray(image), target) for image in pixels])


def read(path: str, key: int | None = None) -> bytes:
    """The content of a plain file: OSError for a pipe or a folder, which would never end or give nothing, and where
    the content has not this `key`."""
    file = Path(path)
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError("it is no plain file")
    content = file.read_bytes()
    if key is not None and content_key(content) != key:
        raise OSError("it is not the file that was read before")
    return content


def reason_of(error: Exception) -> str:
    """Why a file cannot be used, in words."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def processes_for(files: int, processes: int | None) -> int:
    """How many processes decode so many files: `processes` where given, else one for each CPU, one for few files."""
    return processes or (1 if files < FEW_FILES else usable_cpus())


def decode(
    paths: Sequence[str], target: Input, *, batch_images: int = 64, processes: int | None = None,
    failures: list[Unreadable] | None = None, title: str | None = None, keys: Keys | None = None,
) -> Iterator[Decoded]:  # fmt: skip
    """The images of `paths` in order, at the size of `target`, in batches of at most `batch_images`.

    With `keys`, those by which the files are known, one that has changed since cannot be read.

    A file that cannot be read is appended to `failures` and left out; without `failures` it raises DataError.
    `title` names a progress bar. `processes`: not given, one for each CPU.
    """
    count = processes_for(len(paths), processes)
    ring = Ring(target, batch_images, AHEAD * count) if count > 1 and forks() else None
    starts = range(0, len(paths), batch_images)
    files = list(zip(paths, repeat(None) if keys is None else keys.tolist(), strict=keys is not None))
    tasks = ((number, files[start : start + batch_images]) for number, start in enumerate(starts))
    results = in_processes(partial(_decode, target), tasks, count, start=partial(_use, ring))
    bar = Progress(total=len(paths), desc=title, unit="file", disable=title is None, leave=False, delay=1)
    with bar:
        for number, (start, (good, pixels, bad)) in enumerate(zip(starts, results, strict=True)):
            if bad and failures is None:
                raise DataError(f"{bad[0].path} cannot be read as an image ({bad[0].reason}): mend or remove it")
            if failures is not None:
                failures += bad
            if len(good):
                yield Decoded(start + good, ring.slot(number)[: len(good)].copy() if ring else pixels)
            bar.update(len(good) + len(bad))


class Ring:
    """Memory that processes share, one slot for each batch in flight: pixels through pipes cost a tenth of a decode."""

    def __init__(self, target: Input, batch_images: int, slots: int) -> None:
        self.shape, self.slots = (batch_images, target.height_px, target.width_px, 3), slots
        self.bytes = int(np.prod(self.shape))
        self.memory = mmap.mmap(-1, slots * self.bytes)

    def slot(self, number: int) -> Pixels:
        """uint8 [batch_images, H, W, 3] of the batch of this number."""
        flat = np.frombuffer(self.memory, np.uint8, self.bytes, number % self.slots * self.bytes)
        return flat.reshape(self.shape)


_ring: Ring | None = None  # in a process that decodes: the parent's


def _use(ring: Ring | None) -> None:
    global _ring
    _ring = ring


def _decode(
    target: Input, task: tuple[int, list[tuple[str, int | None]]]
) -> tuple[NDArray[np.int64], Pixels, list[Unreadable]]:
    """(which of the files are read, their pixels or none where the ring has them, the others)."""
    number, files = task
    good: list[int] = []
    bad: list[Unreadable] = []
    pixels = _ring.slot(number) if _ring else np.empty((len(files), target.height_px, target.width_px, 3), np.uint8)
    for i, (path, key) in enumerate(files):
        try:
            pixels[len(good)] = images.load(read(path, key), target, max_pixels=MAX_PIXELS).pixels
            good.append(i)
        except Exception as error:  # decoders raise nearly anything
            bad.append(Unreadable(path, reason_of(error)))
    return np.array(good, np.int64), pixels[:0] if _ring else pixels[: len(good)], bad


def iterate(
    source: Sequence[str] | Pixels, target: Input, *, batch_images: int = 64, processes: int | None = None,
    failures: list[Unreadable] | None = None, title: str | None = None,
) -> Iterator[Decoded]:  # fmt: skip
    """`decode` of files, or the same of an array uint8 [N, H, W, 3], whose images are fitted as an upload is."""
    if not isinstance(source, np.ndarray):
        yield from decode(
            source, target, batch_images=batch_images, processes=processes, failures=failures, title=title
        )  # fmt: skip
        return
    starts = range(0, len(source), batch_images)
    for start in Progress(starts, desc=title, unit="batch", disable=title is None, leave=False):
        part = source[start : start + batch_images]
        yield Decoded(start + np.arange(len(part)), resized(part, target))


def pixels_of(paths: Sequence[str], target: Input, *, title: str | None = None) -> Pixels:
    """uint8 [N, H, W, 3] of all of them at once. DataError for the first that cannot be read."""
    pixels = np.empty((len(paths), target.height_px, target.width_px, 3), np.uint8)
    for batch in decode(paths, target, title=title):
        pixels[batch.index] = batch.pixels
    return pixels
