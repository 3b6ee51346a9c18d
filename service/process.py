"""The process itself: its CPUs, its memory allocator, the switch interval of its threads, messages of C libraries."""

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # mallopt(3)
SWITCH_INTERVAL_S = 0.001  # a thread may hold the interpreter this long while the event loop waits; Python's is 5 ms
CGROUP = Path("/sys/fs/cgroup")


def available_cpus(cgroup: Path = CGROUP) -> int:
    """CPUs that this process may use: the smaller of its affinity and its cgroup's quota, at least 1.

    Without affinities (macOS, Windows) all CPUs count.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = float(len(affinity(0)) if affinity is not None else os.cpu_count() or 1)
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()  # cgroup 2
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()  # cgroup 1
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return max(1, int(cpus))
    if quota not in ("max", "-1"):
        cpus = min(cpus, int(quota) / int(period))
    return max(1, int(cpus))


def prepare() -> None:
    """Set up a process that serves for months: freed memory is returned, the event loop gets its turn."""
    quiet()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with suppress(OSError, AttributeError):  # only glibc has mallopt
        mallopt = ctypes.CDLL(None).mallopt
        # With an arena per thread, memory of a retired model stays scattered over all of them: after 100 swaps the
        # process had grown by a fifth, with two arenas by a twentieth.
        mallopt(M_ARENA_MAX, 2)
        mallopt(M_MMAP_THRESHOLD, 2**20)
        # Bodies are allocated and freed at the top of the heap; returned each time, their pages would fault each time.
        mallopt(M_TRIM_THRESHOLD, 2**23)


def trim_heap() -> None:
    """Return freed memory to the system (glibc only). 100 loads of a model grew the process by 10 MB with it, by 28
    without.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def quiet() -> None:
    """Keep libtiff from writing to standard error; a damaged file is reported in the answer."""
    from PIL import _imaging  # noqa: F401  # brings libtiff into the process

    with suppress(OSError, AttributeError):
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
        for library in {line.split()[-1] for line in lines if "libtiff" in line}:
            ctypes.CDLL(library).TIFFSetErrorHandler(None)
            ctypes.CDLL(library).TIFFSetWarningHandler(None)
