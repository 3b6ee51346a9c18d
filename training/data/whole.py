"""Files that appear whole or not at all: written under a temporary name, then renamed."""

import glob
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

QUIET_S = 60  # a temporary file that nobody has written to for so long is of a process that was killed


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, with its suffix, which takes the place of `path` if nothing goes wrong."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def clear_killed(path: Path) -> None:
    """Remove the temporary names of `replacing` that processes left which were killed while they wrote `path`.

    Those of a process that lives stay, on another machine too as long as it writes.
    """
    for left in path.parent.glob(glob.escape(f".{path.stem}.") + "*" + glob.escape(path.suffix)):
        number = left.name[len(f".{path.stem}.") : len(left.name) - len(path.suffix)]
        if number.isdecimal() and not _lives(int(number)) and _quiet(left):
            left.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's; no number of a process
        return True
    return True


def _quiet(file: Path) -> bool:
    try:
        return time.time() - file.stat().st_mtime > QUIET_S
    except OSError:  # gone meanwhile
        return False
