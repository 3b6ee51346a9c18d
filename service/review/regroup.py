"""A new grouping in a process of its own, at low priority, while requests are answered.

regrouping = Regrouping()
regrouping.start(rows, embedding)
...
if (done := regrouping.done()) is not None: rows, cluster = done
"""

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from service.contract.lines import one_line
from service.process import available_cpus

PROGRAM = Path(__file__).with_name("clustering.py")
LIMIT_S = 300.0
MISSING = "images are not grouped: pip install 'tailguard[review]'"

log = structlog.get_logger()


def missing() -> str | None:
    """What to install so that images can be grouped; None when it is there."""
    return None if find_spec("sklearn") is not None else MISSING


def clusters(embedding: NDArray[np.floating], limit_s: float = LIMIT_S) -> NDArray[np.int32]:
    """The cluster of each of [N, D], -1 for one that is alone, made by another process. Raises RuntimeError."""
    given = io.BytesIO()
    np.save(given, embedding)
    threads = str(max(1, available_cpus() // 2))
    environ = os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    try:
        done = subprocess.run(  # -P: the folder of the program is no place to import from
            [sys.executable, "-P", str(PROGRAM)], input=given.getvalue(), capture_output=True, timeout=limit_s,
            env=environ, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"images were not grouped: {error}") from error
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
        raise RuntimeError(f"images were not grouped: exit status {done.returncode}: {last[0]}")
    found: NDArray[np.int32] = np.load(io.BytesIO(done.stdout), allow_pickle=False)
    return found


class Regrouping:
    """At most one grouping at a time, in a thread that waits for its process."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._result: list[tuple[Sequence[int], NDArray[np.int32]]] | None = None
        self.failed = False
        self.seconds = 0.0  # that the last one took
        self.ended = -np.inf  # when it ended, as time.monotonic() has it

    @property
    def running(self) -> bool:
        return self._thread is not None

    def start(self, parts: Sequence[tuple[Sequence[int], NDArray[np.floating]]]) -> None:
        """Begin with some rows and their embeddings [n, D]; parts are grouped apart."""
        assert self._thread is None
        self._thread = threading.Thread(target=self._work, args=(parts,), name="regrouping", daemon=True)
        self._thread.start()

    def done(self) -> list[tuple[Sequence[int], NDArray[np.int32]]] | None:
        """The rows of each part with their clusters, once; None while there is nothing."""
        if self._thread is None or self._thread.is_alive():
            return None
        self._thread = None
        result, self._result = self._result, None
        return result

    def _work(self, parts: Sequence[tuple[Sequence[int], NDArray[np.floating]]]) -> None:
        started = time.monotonic()
        try:
            self._result = [(rows, clusters(embedding)) for rows, embedding in parts]
            self.failed = False
        except (RuntimeError, ValueError) as error:
            self.failed = True
            log.error("images were not grouped", error=one_line(error))
        self.ended = time.monotonic()
        self.seconds = self.ended - started
