"""The feature cache: what a frozen trunk says of every image, computed once by all cores and kept on disk.

    cache = FeatureCache(run / "features", graph, preprocessing, extra_views=2)
    train = cache.features("train", images)          # float32 [N, V, F], a memory map

A set's features lie in <name>-<key>.npy; the key is made from the trunk, its preprocessing, the views and the images,
so features of other images or of another trunk are never taken for these, and several runs may share a folder: where
two processes want the same features, one computes them and the other waits. Rows are written in chunks, each marked
when it is on disk: what a stopped run has finished, the next one does not compute again.

Views of an image: 0 the image itself, 1 its mirror, from 2 on random crops (RandomResizedCrop, half of them mirrored),
drawn from (key, image, view) alone. Who computes a chunk, a thread or a worker of a cluster, changes nothing.
"""

import fcntl
import hashlib
import json
import sys
from collections.abc import Generator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from service.contract.progress import Progress
from training.data import mapped
from training.data.processes import usable_cpus
from training.network.looks import Chunk, Floats, Looks, Run, Source
from training.network.preprocessing import Preprocessing
from training.network.session import session

CHUNK_IMAGES = 32  # written and marked together


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
    `run` None: by threads of this process.

    What is `known` already is not computed again; crops are then those of the run that they were computed for.
    """

    folder: Path
    graph: bytes
    preprocessing: Preprocessing
    extra_views: int = 0
    mirror: bool = True
    threads: int | None = None
    known: Known | None = None
    run: Run | None = None

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
        marks, shape = path.with_suffix(".done"), (len(images), count)
        if marks.is_file() or not mapped.holds(path, shape):
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.with_suffix(".json").open("a") as alone:  # the lock goes with the process that holds it
                _wait_for(alone, name)
                if marks.is_file() or not mapped.holds(path, shape):
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
        begun = marks.is_file() and marks.stat().st_size == chunks
        if not (begun and mapped.holds(path, (len(images), views))):
            marks.write_bytes(bytes(chunks))  # before the rows: a file without marks is a complete one
            path.with_suffix(".json").write_text(json.dumps(made_from, indent=1) + "\n", encoding="utf-8")
            mapped.created(path, np.float32, (len(images), views, self._size(images)))
        rows = np.lib.format.open_memmap(path, "r+")
        done = np.memmap(marks, np.uint8, "r+")
        filled = self.known.fill(images.keys, rows) if self.known else np.zeros(len(images), bool)
        bar = Progress(total=len(images), unit="image", desc=f"features of {name}", disable=None, mininterval=1,
                   initial=min(len(images), int((done != 0).sum()) * CHUNK_IMAGES))  # fmt: skip

        def kept(number: int) -> None:
            rows.flush()
            done[number] = 1
            done.flush()
            bar.update(min(CHUNK_IMAGES, len(images) - number * CHUNK_IMAGES))

        todo: list[Chunk] = []
        for number in np.flatnonzero(done == 0).tolist():
            places = np.arange(number * CHUNK_IMAGES, min((number + 1) * CHUNK_IMAGES, len(images)))
            if len(wanted := places[~filled[places]]):
                todo.append(Chunk(number, wanted))
            else:
                kept(number)
        run = self.run or partial(on_threads, self.threads or usable_cpus())
        looks = Looks(self.graph, views, self.mirror, int(key, 16))
        with bar:
            if todo:
                with closing(run(looks, images, todo)) as found:
                    for chunk, features in found:
                        rows[chunk.places] = features
                        kept(chunk.number)
        done._mmap.close()  # type: ignore[attr-defined]  # before its file goes
        marks.unlink()


def _wait_for(file: TextIO, name: str) -> None:
    """Hold `file` alone, after another process that computes the same features where there is one."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting for another process, which computes the features of {name}", file=sys.stderr)
        fcntl.flock(file, fcntl.LOCK_EX)


def on_threads(
    threads: int, looks: Looks, images: Source, chunks: list[Chunk]
) -> Generator[tuple[Chunk, Floats], None, None]:
    """Chunks as they are done, with few in flight: an interruption ends after what has begun."""
    looks = looks.opened()
    waiting = iter(chunks)
    with ThreadPoolExecutor(threads, "features") as pool:
        pending = {pool.submit(_one, looks, images, chunk) for chunk in islice(waiting, 2 * threads)}
        try:
            while pending:
                finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
                    if (chunk := next(waiting, None)) is not None:
                        pending.add(pool.submit(_one, looks, images, chunk))
        finally:
            for future in pending:
                future.cancel()


def _one(looks: Looks, images: Source, chunk: Chunk) -> tuple[Chunk, Floats]:
    return chunk, looks.features(images, chunk)
