"""Runs in TensorBoard: a folder of events for each, `tensorboard --logdir DIR` shows them side by side.

The folder of a run appears when it is whole, with a digest beside the events by which it is known again.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from training.places import require_writable
from training.tracking.record import Record

DIGEST_FILE = "tailguard.digest"


def require(folder: Path, runs: Path) -> None:
    """ValueError where TensorBoard is not installed, or `folder` cannot be written to or is that of the `runs`."""
    _writer()
    if folder.resolve() == runs.resolve():
        raise ValueError(f"--tensorboard {folder} is where the runs themselves are kept: name another folder")
    require_writable(folder, "--tensorboard")


def send(record: Record, folder: Path) -> str:
    """Write the run to `folder`/<its name>, unless it is there; in words what was done.

    Raises ValueError where something else lies there, which is never replaced.
    """
    place = folder / record.name
    digest = place / DIGEST_FILE
    if place.exists() and not digest.is_file():
        raise ValueError(f"--tensorboard {folder}: {place} is there and was not written for TensorBoard by this "
                         "program: name another folder")  # fmt: skip
    if digest.is_file() and digest.read_text() == record.digest:
        return "there already"
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{record.name}.", dir=folder))
    try:
        _write(record, partial)
        (partial / DIGEST_FILE).write_text(record.digest)
        partial.chmod(0o755)
        if replaced := place.exists():
            shutil.rmtree(place)
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return "replaced" if replaced else "sent"


def _write(record: Record, folder: Path) -> None:
    from torch.utils.tensorboard.summary import hparams

    with _writer()(str(folder)) as writer:
        for point in record.series:
            writer.add_scalar(point.name, point.value, point.step)
        for name, value in record.figures.items():
            writer.add_scalar(name, value, record.steps)
        for title, said in (("settings", record.params), ("provenance", record.tags)):
            writer.add_text(title, f"```json\n{json.dumps(said, indent=1)}\n```")
        shown = hparams(record.params, record.figures)  # type: ignore[no-untyped-call]
        for summary in shown:  # the tab HPARAMS, in the same file
            writer.file_writer.add_summary(summary)
        for path in record.files:
            shutil.copyfile(path, folder / path.name)


def _writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(f"--tensorboard needs TensorBoard ({error}): pip install 'tailguard[tensorboard]'") from error
    return SummaryWriter
