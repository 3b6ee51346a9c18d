"""The feature cache: what a frozen trunk says of every image, computed once by all cores and kept on disk.

    cache = FeatureCache(run / "features", graph, preprocessing, extra_views=2)
    train = cache.features("train", images)          # float32 [N, V, F], a memory map

A set's features lie in <name>-<key>.npy; the key is made from the trunk, its preprocessing, the views and the images,
so features of other images or of another trunk are never taken for these, and several runs may share a folder: where
two processes want the same features, one computes them and the other waits. Rows are written in chunks, each marked
when it is on disk: what a stopped run has finished, the next one does not compute again.

Views of an image: 0 the image itself, 1 its mirror, from 2 on random crops (RandomResizedCrop, half of them mirrored),
drawn from (key, image, view) alone.
"""

import fcntl
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from training.data.augment import PHOTO_AREA, PHOTO_RATIO
from training.data.processes import usable_cpus
from training.network.onnx_graph import session
from training.network.preprocessing import Preprocessing

CHUNK_IMAGES = 32  # written and marked together
Floats = NDArray[np.float32]


class Source(Protocol):
    """N images at the size that the trunk takes. Slices are taken by several threads at once.

    `keys` uint64 [N] are those of their contents, asked for where features are known already.
    """

    @property
    def keys(self) -> NDArray[np.uint64]: ...

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """Changes with the images, their order and how they are brought to size."""
        ...

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        """uint8 [n, H, W, 3] of a slice; where there are `known` features, of places too."""
        ...


@dataclass(frozen=True)
class Known:
    """Features that the same trunk has given already: content key of an image → its row [V, F], of V or more views."""

    rows: Mapping[int, Floats]

    def fill(self, keys: NDArray[np.uint64], into: Floats) -> NDArray[np.bool_]:
        """Write the rows of these images `into` [N, V, F] where all V views are known; which ones were."""
        found = np.zeros(len(keys), bool)
        for i, key in enumerate(keys.tolist()):
            row = self.rows.get(key)
            if row is not None and row.shape[0] >= into.shape[1]:
                into[i], found[i] = row[: into.shape[1]], True
        return found


@dataclass(frozen=True)
class FeatureCache:
    """`graph` is ONNX, images uint8 [N, H, W, 3] → features [N, F]; `threads` None: one for each core.

    What is `known` already is not computed again; crops are then those of the run that they were computed for.
    """

    folder: Path
    graph: bytes
    preprocessing: Preprocessing
    extra_views: int = 0
    mirror: bool = True
    threads: int | None = None
    known: Known | None = None

    @property
    def views(self) -> int:
        """V: the image, its mirror, and the crops."""
        return 1 + self.mirror + self.extra_views

    def features(self, name: str, images: Source, *, views: int | None = None) -> Floats:
        """float32 [N, V, F] of `images`, computed as far as they are not in the cache. Read only.

        `views` 1: the images alone, as for test sets. Raises OSError where the folder cannot be written.
        """
        count = views or self.views
        made_from = {
            "graph_sha256": hashlib.sha256(self.graph).hexdigest(),
            "preprocessing": asdict(self.preprocessing),
            "views": count,
            "mirror": self.mirror,
            "images": len(images),
            "images_fingerprint": images.fingerprint(),
        }
        key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
        path = self.folder / f"{name}-{key}.npy"
        if len(images) == 0:
            return np.empty((0, count, self._size(images)), np.float32)
        marks = path.with_suffix(".done")
        if not path.is_file() or marks.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.with_suffix(".json").open("a") as alone:  # the lock goes with the process that holds it
                _wait_for(alone, name)
                if not path.is_file() or marks.is_file():
                    self._compute(path, marks, images, count, key, made_from, name)
        found: Floats = np.load(path, mmap_mode="c")  # torch takes no read-only array; nothing is written back
        return found

    def _size(self, images: Source) -> int:
        side = self.preprocessing.size_px
        return int(session(self.graph).run(None, {"images": np.zeros((1, side, side, 3), np.uint8)})[0].shape[1])

    def _compute(
        self, path: Path, marks: Path, images: Source, views: int, key: str, made_from: dict[str, Any], name: str
    ) -> None:
        """Fill the rows whose chunk is not marked; the marks go when all of them are."""
        chunks = -(-len(images) // CHUNK_IMAGES)
        if not (path.is_file() and marks.is_file() and marks.stat().st_size == chunks):
            marks.write_bytes(bytes(chunks))  # before the rows: a file without marks is a complete one
            shape = (len(images), views, self._size(images))
            np.lib.format.open_memmap(path, "w+", np.float32, shape).flush()
            path.with_suffix(".json").write_text(json.dumps(made_from, indent=1) + "\n", encoding="utf-8")
        rows = np.lib.format.open_memmap(path, "r+")
        done = np.memmap(marks, np.uint8, "r+")
        filled = self.known.fill(images.keys, rows) if self.known else np.zeros(len(images), bool)
        opened, seed = session(self.graph), int(key, 16)  # one thread: the pool below has one for each core

        def one(chunk: int) -> int:
            whole = slice(chunk * CHUNK_IMAGES, min((chunk + 1) * CHUNK_IMAGES, len(images)))
            places = np.arange(whole.start, whole.stop)[~filled[whole]]
            if not len(places):
                return chunk
            pixels = images[whole if len(places) == whole.stop - whole.start else places]
            for view in range(views):
                seen = self._view(pixels, view, seed, places)
                rows[places, view] = opened.run(None, {"images": seen})[0]
            return chunk

        todo = np.flatnonzero(done == 0).tolist()
        bar = tqdm(
            total=len(images), initial=min(len(images), (chunks - len(todo)) * CHUNK_IMAGES), unit="image",
            desc=f"features of {name}", disable=None, mininterval=1,
        )  # fmt: skip
        with bar, ThreadPoolExecutor(self.threads or usable_cpus(), "features") as pool:
            for chunk in _as_done(pool, one, todo):
                rows.flush()
                done[chunk] = 1
                done.flush()
                bar.update(min(CHUNK_IMAGES, len(images) - chunk * CHUNK_IMAGES))
        done._mmap.close()  # type: ignore[attr-defined]  # before its file goes
        marks.unlink()

    def _view(self, pixels: NDArray[np.uint8], view: int, seed: int, places: NDArray[np.int64]) -> NDArray[np.uint8]:
        if view == 0:
            return pixels
        if view == 1 and self.mirror:
            return np.ascontiguousarray(pixels[:, :, ::-1])
        at = list(zip(places.tolist(), pixels, strict=True))
        rows = [(i, cropped(image, np.random.default_rng([seed, i, view]))) for i, image in at]
        return np.stack([row[:, ::-1] if self.mirror and (i + view) % 2 else row for i, row in rows])


def _wait_for(file: TextIO, name: str) -> None:
    """Hold `file` alone, after another process that computes the same features where there is one."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting for another process, which computes the features of {name}", file=sys.stderr)
        fcntl.flock(file, fcntl.LOCK_EX)


def cropped(image: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """A random part of an image [H, W, 3], PHOTO_AREA of its area, at its own size (Szegedy et al. 2015)."""
    height, width = image.shape[:2]
    area = height * width * random.uniform(*PHOTO_AREA)
    ratio = np.exp(random.uniform(*np.log(PHOTO_RATIO)))
    wide, high = min(width, np.sqrt(area * ratio)), min(height, np.sqrt(area / ratio))
    left, top = random.uniform(0, width - wide), random.uniform(0, height - high)
    part = Image.fromarray(image).resize(
        (width, height), Image.Resampling.BILINEAR, (left, top, left + wide, top + high)
    )
    return np.asarray(part)


def _as_done(pool: ThreadPoolExecutor, work: Any, items: list[int]) -> Iterator[int]:
    """Results as they come, with few in flight: an interruption ends after what has begun, and keeps it."""
    waiting = iter(items)
    pending: set[Future[int]] = {pool.submit(work, item) for item in islice(waiting, 2 * pool._max_workers)}
    try:
        while pending:
            finished, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()
                if (item := next(waiting, None)) is not None:
                    pending.add(pool.submit(work, item))
    finally:
        for future in pending:
            future.cancel()
