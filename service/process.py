"""What is set once for a whole process, in the interpreter and in the C libraries below it."""

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # mallopt(3)
SWITCH_INTERVAL_S = 0.001  # Python's own 5 ms is how long a thread may keep the event loop waiting


def prepare() -> None:
    """For a process that serves for months: memory that is given back, and an event loop that gets its turn."""
    quiet()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with suppress(OSError, AttributeError):  # another C library has other habits
        mallopt = ctypes.CDLL(None).mallopt
        # One arena for every thread keeps what a retired model held scattered over all of them: after 100 swaps the
        # process had grown by a fifth, with two arenas by a twentieth.
        mallopt(M_ARENA_MAX, 2)
        mallopt(M_MMAP_THRESHOLD, 2**20)
        # Bodies come and go at the top of the heap: given back each time, their pages would be faulted in each time.
        mallopt(M_TRIM_THRESHOLD, 2**23)


def quiet() -> None:
    """Keep libtiff from writing to standard error: what it says of a damaged file, the answer says."""
    from PIL import _imaging  # noqa: F401  # brings libtiff into the process

    with suppress(OSError, AttributeError):
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
        for library in {line.split()[-1] for line in lines if "libtiff" in line}:
            ctypes.CDLL(library).TIFFSetErrorHandler(None)
            ctypes.CDLL(library).TIFFSetWarningHandler(None)
