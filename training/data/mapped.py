"""Arrays in files that are mapped into memory: begun with room for all of them, and taken for whole only when they are.

array = created(path, np.uint8, (1000, 32, 32, 3))
holds(path, (1000, 32, 32, 3))            # whether it is there to its end
"""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

UNABLE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)  # of file systems that take no room ahead


def created(path: Path, kind: DTypeLike, shape: tuple[int, ...]) -> "np.memmap[Any, Any]":
    """A new array of zeros, to be written to. OSError where the disk has no room for all of it; no file is left then.

    A mapped file that outgrows its disk would end the process without a word.
    """
    try:
        made = np.lib.format.open_memmap(path, "w+", kind, shape)
        _take_room(path)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    return made


def _take_room(path: Path) -> None:
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        if error.errno not in UNABLE:
            raise


def holds(path: Path, begins: tuple[int, ...]) -> bool:
    """Whether `path` is an array whose shape begins so, and has all its bytes: a copy may have been cut off."""
    try:
        found = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return bool(found.shape[: len(begins)] == begins)
