"""Which bundle was last made of a run, noted in its folder.

exporting.json       is there while the bundle is written: where and with which graph
exported.json        takes its place when the bundle is whole

A process that is killed between the two leaves a whole bundle, and a note by which it is known again.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.contract.bundle import BundleError, read
from training.runs.files import EXPORTED_FILE, EXPORTING_FILE, Json, write_json


@contextmanager
def noting(run: Path, target: Path, graph: bytes) -> Iterator[None]:
    """Meanwhile the bundle `target` with this `graph` is made of the run in the folder `run`."""
    begun = run / EXPORTING_FILE
    said = {"bundle": str(target.resolve()), "graph_sha256": hashlib.sha256(graph).hexdigest()}
    write_json(begun, said)
    try:
        yield
    except BaseException:
        begun.unlink(missing_ok=True)
        raise
    _done(run, said)


def last(run: Path) -> Path | None:
    """The folder of the bundle that was last made of `run`, which may be gone since; None where none was made."""
    begun, note = run / EXPORTING_FILE, run / EXPORTED_FILE
    if begun.is_file() and _is_there(**(said := json.loads(begun.read_text()))):
        _done(run, said)
    return Path(json.loads(note.read_text())["bundle"]) if note.is_file() else None


def _done(run: Path, said: Json) -> None:
    """The bundle is whole. Another process that exports the same run may have taken the first note away."""
    write_json(run / EXPORTED_FILE, said)
    (run / EXPORTING_FILE).unlink(missing_ok=True)


def _is_there(bundle: str, graph_sha256: str) -> bool:
    try:
        return read(bundle).sha256 == graph_sha256
    except BundleError:
        return False
