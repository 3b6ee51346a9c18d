"""`score --on ray`: Ray Data runs the batches on the actors of a cluster; all else is as on one machine.

Each actor holds the session of one core. The driver cuts the batches, keeps the journal and writes the output, so rows,
their order, their last bits and the resuming are those of a run without Ray. A batch whose worker is lost is run again.
Files are read where a worker runs: their sizes are compared with those that the driver sees.
"""

import json
import os
import socket
import tempfile
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

from service.contract import cluster
from service.contract.bundle import MANIFEST_FILE, Manifest
from service.process import available_cpus
from service.score import remote
from service.score.errors import ScoreError
from service.score.journal import ENCODER
from service.score.rows import ResultRow, Scorer

EXTRAS = "cpu,ray"
Files = dict[str, bytes]


class Scoring:
    """An actor: a bundle, written where it runs, and its session."""

    def __init__(self, files: Any, make: Callable[[Path], Scorer]) -> None:
        import ray

        self._folder = tempfile.TemporaryDirectory(prefix="tailguard-")
        content: Files = ray.get(files)
        for name, data in content.items():
            path = Path(self._folder.name) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self._scorer = make(Path(self._folder.name))

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        """The rows of a batch of paths, and the sizes of its files; as JSON, which keeps names that are no UTF-8."""
        paths: list[str] = json.loads(row["paths"])
        return {
            "rows": ENCODER.encode(self._scorer.score(paths)),
            "sizes": json.dumps([size_bytes(path) for path in paths]),
            "node": socket.gethostname(),
        }


def in_order(
    folder: Path, manifest: Manifest, make: Callable[[Path], Scorer], workers: int | None, batches: Iterable[list[str]]
) -> Generator[list[ResultRow], None, None]:
    """The rows of each batch in order, by `workers` actors of one core, or as many as the cluster has cores.

    The cluster is that of RAY_ADDRESS, or one of this machine that ends with this. `make` makes the scorer of the
    bundle, which was verified, wherever its folder is; it is pickled. Raises ClusterError where the cluster cannot be
    had, or a worker fails for good, and ScoreError where one sees other files than this machine.
    """
    batches = list(batches)
    if not batches:
        return
    with cluster.joined(workers or available_cpus(), EXTRAS) as ray:
        files = ray.put(_content(folder, manifest))
        items = [{"paths": json.dumps([_absolute(path) for path in batch])} for batch in batches]
        with cluster.planned(ray, items, Scoring, (files, make), workers) as rows:
            for batch, row in zip(batches, rows, strict=True):
                require_same(batch, json.loads(row["sizes"]), row["node"])
                yield [found | {"path": path} for path, found in zip(batch, json.loads(row["rows"]), strict=True)]


def require_same(paths: list[str], sizes: list[int | None], node: str) -> None:
    """ScoreError where a worker, on `node`, saw another file than this machine sees, or none."""
    for path, size in zip(paths, sizes, strict=True):
        here = size_bytes(path)
        if here is not None and here != size:
            there = "no such file" if size is None else f"one of {size} bytes"
            raise ScoreError(
                f"{path} has {here} bytes here, and {node}, a node of the cluster, sees {there}: put the same files at "
                "the same paths on every node, or in an object store (s3://…), and give the same command again"
            )


def size_bytes(path: str) -> int | None:
    """Of a file; None where there is none at that path, or where it is an address."""
    try:
        return None if remote.is_remote(path) else os.stat(path).st_size
    except (OSError, ValueError):
        return None


def _absolute(path: str) -> str:
    """As a worker, which has another working folder, finds it."""
    return path if remote.is_remote(path) else os.path.abspath(path)


def _content(folder: Path, manifest: Manifest) -> Files:
    names = [*manifest.files, MANIFEST_FILE]
    return {name: (folder / name).read_bytes() for name in names}
