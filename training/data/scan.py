"""One pass over image files before anything else: which can be read, what each is known by, how it looks small.

Splits, the search for near duplicates and the audit need nothing more of an image; several processes make the pass, and
a cache keeps it, so that a file is read again only when its size or one of its times of change differ.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.contract import images
from service.contract.keys import content_key
from service.contract.progress import Progress
from training.data.decode import MAX_PIXELS, Unreadable, processes_for, read, reason_of, square
from training.data.processes import in_processes
from training.data.readers import Keys, Pixels
from training.data.whole import clear_killed, replacing

SMALL_PX = 32
CHUNK_FILES = 64


class Header(NamedTuple):
    """What a file says of itself before it is decoded; sizes in pixels, as stored."""

    width_px: int
    height_px: int
    format: str
    mode: str


@dataclass(frozen=True)
class Scan:
    """The readable ones of some files: `index` int64 [n] says which; the others are `unreadable`."""

    index: NDArray[np.int64]
    keys: Keys
    small: Pixels  # [n, SMALL_PX, SMALL_PX, 3], stretched
    headers: list[Header]
    unreadable: list[Unreadable]

    def take(self, rows: NDArray[np.int64]) -> "Scan":
        """Some of the readable files, by their place in `index`."""
        return Scan(
            self.index[rows], self.keys[rows], self.small[rows], [self.headers[i] for i in rows], self.unreadable
        )  # fmt: skip


class ScannedFile(NamedTuple):
    """One file: `bad` is why it cannot be read, with the other fields empty then."""

    key: int
    small: Pixels
    header: Header
    bad: str = ""


EMPTY = np.zeros((SMALL_PX, SMALL_PX, 3), np.uint8)


def scan(
    paths: Sequence[str], *, size_px: int = SMALL_PX, cache: Path | None = None, processes: int | None = None,
    title: str | None = None,
) -> Scan:  # fmt: skip
    """Read every file once. `cache` names a file that keeps what was found; `title` a progress bar.

    `size_px` is the side of `small`.
    """
    known = _read_cache(cache, size_px) if cache else {}
    stamps = [_stamp(path) for path in paths]
    rows = {stamp: known[stamp] for stamp in stamps if stamp in known}
    missing = [path for path, stamp in zip(paths, stamps, strict=True) if stamp not in rows]
    chunks = [(size_px, missing[i : i + CHUNK_FILES]) for i in range(0, len(missing), CHUNK_FILES)]
    fresh: list[ScannedFile] = []
    with Progress(total=len(missing), desc=title, unit="file", disable=title is None, leave=False, delay=1) as bar:
        for found in in_processes(_look, chunks, processes_for(len(missing), processes)):
            fresh += found
            bar.update(len(found))
    by_path = dict(zip(missing, fresh, strict=True))
    all_rows = [rows[stamp] if stamp in rows else by_path[path] for path, stamp in zip(paths, stamps, strict=True)]
    if cache and fresh:
        _write_cache(cache, stamps, all_rows)
    good = [i for i, row in enumerate(all_rows) if not row.bad]
    return Scan(
        np.array(good, np.int64), np.array([all_rows[i].key for i in good], np.uint64),
        np.stack([all_rows[i].small for i in good]) if good else np.empty((0, size_px, size_px, 3), np.uint8),
        [all_rows[i].header for i in good],
        [Unreadable(path, row.bad) for path, row in zip(paths, all_rows, strict=True) if row.bad],
    )  # fmt: skip


def _look(chunk: tuple[int, Sequence[str]]) -> list[ScannedFile]:
    size_px, paths = chunk
    return [_look_at(path, size_px) for path in paths]


def _look_at(path: str, size_px: int) -> ScannedFile:
    try:
        content = read(path)
        loaded = images.load(content, square(size_px), max_pixels=MAX_PIXELS)
        return ScannedFile(content_key(content), loaded.pixels, _header(content, loaded))
    except Exception as error:  # decoders raise nearly anything
        return ScannedFile(0, EMPTY, Header(0, 0, "", ""), reason_of(error) or type(error).__name__)


def _header(content: bytes, loaded: images.Loaded) -> Header:
    try:
        with Image.open(BytesIO(content)) as image:
            return Header(*image.size, str(image.format), image.mode)
    except Exception:  # a kind that Pillow alone does not open
        return Header(loaded.width_px, loaded.height_px, "other", "RGB")


# ---- The cache: one .npz ----

Stamp = tuple[str, int, int, int]  # path, bytes, times of change in ns: the one that programs set, the system's own


def _stamp(path: str) -> Stamp:
    try:
        status = os.stat(path)
        return os.path.abspath(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns
    except (OSError, ValueError):  # ValueError: a list may name a path with a NUL in it
        return os.path.abspath(path), -1, -1, -1


def _write_cache(cache: Path, stamps: Sequence[Stamp], rows: Sequence[ScannedFile]) -> None:
    if not (kept := [i for i, row in enumerate(rows) if not row.bad]):
        return  # nothing to keep: that no file could be read is for the caller to say
    cache.parent.mkdir(parents=True, exist_ok=True)
    clear_killed(cache)
    # Half of it would fill a full disk once more at each attempt. Given a name, NumPy may put another suffix behind it.
    with replacing(cache) as temporary, temporary.open("wb") as file:
        np.savez(
            file, paths=np.array([os.fsencode(stamps[i][0]) for i in kept], object).astype("S"),
            stats=np.array([stamps[i][1:] for i in kept], np.int64).reshape(-1, 3),
            keys=np.array([rows[i].key for i in kept], np.uint64), small=np.stack([rows[i].small for i in kept]),
            sizes=np.array([rows[i].header[:2] for i in kept], np.int32),
            kinds=np.array([f"{rows[i].header.format}/{rows[i].header.mode}" for i in kept]),
        )  # fmt: skip


def _read_cache(cache: Path, size_px: int) -> dict[Stamp, ScannedFile]:
    """What was kept, by stamp; nothing where the file is missing, damaged or of another size: it is made again."""
    try:
        with np.load(cache, allow_pickle=False) as kept:
            columns = [kept[name] for name in ("paths", "stats", "keys", "small", "sizes", "kinds")]
    except Exception:
        return {}
    paths, stats, keys, small, sizes, kinds = columns
    if small.shape[1:] != (size_px, size_px, 3):
        return {}
    return {
        (os.fsdecode(path), *stat): ScannedFile(key, image, Header(*size, *kind.split("/")))
        for path, stat, key, image, size, kind in zip(
            paths.tolist(), stats.tolist(), keys.tolist(), small, sizes.tolist(), kinds.tolist(), strict=True
        )
    }
