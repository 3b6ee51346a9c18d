"""The rows of an unfinished run, beside its output: JSON lines, appended, under a header of the settings used.

A KILL leaves whole lines and at most one partial line, which is dropped. Rows are looked up by path, so files may be
added or removed between two runs. A row holds for the file as it was: one that was written, replaced, found or given
its permissions in between is scored again, and so is one that a disk or network did not give. Of an address in a list
nobody knows whether it was replaced, so its row stays; a listing of the place tells it.
"""

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from service.score import remote
from service.score.errors import UNREADABLE, ScoreError
from service.score.rows import ResultRow

ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))  # ASCII: surrogate escapes pass through it
HEADER, FORMAT = "tailguard-score", 2
STATE = "file_state"  # of a line, beside the columns of the row

State = remote.State


def state_of(path: str) -> State:
    """[bytes, time of the last change, ns] of a file, which nobody can set back; None of no file. As `remote.state` of
    an address."""
    if remote.is_remote(path):
        return remote.state(path)
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_ctime_ns]


class Journal:
    """Opens or creates the journal at `path` and locks it until closed.

    `header` is everything that changes a row. Raises ScoreError when another process has the lock, or when the journal
    was begun with another header.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path = path
        self._appended = False
        self._file = open(path, "a+b")  # noqa: SIM115  # closed by __exit__
        try:
            self._lock()
            self._lines: dict[str, tuple[int, State]] = {}  # path of an image → where its line begins, its state then
            self._begin((ENCODER.encode({HEADER: FORMAT, **header}) + "\n").encode("ascii"))
            self._reader = path.open("rb")
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and not self._lines and not self._appended:
            self.remove()  # without a row there is nothing to go on from
        self._file.close()
        self._reader.close()

    def __contains__(self, path: str) -> bool:
        """Whether there was a row of `path` when the journal was opened, of the file as it is now."""
        return path in self._lines and self._lines[path][1] == state_of(path)

    def append(self, rows: Iterable[ResultRow], states: Iterable[State]) -> None:
        """Append `rows`, of files that had these `states` before they were read; when this returns, they survive a KILL
        of the process."""
        lines = (ENCODER.encode({**row, STATE: state}) + "\n" for row, state in zip(rows, states, strict=True))
        self._file.write("".join(lines).encode("ascii"))
        self._file.flush()
        self._appended = True

    def row(self, path: str) -> ResultRow:
        """The row of `path` when the journal was opened. Raises KeyError when there was none."""
        self._reader.seek(self._lines[path][0])
        row: ResultRow = json.loads(self._reader.readline())
        del row[STATE]
        return row

    def remove(self) -> None:
        """Delete the journal, once the output is complete."""
        self.path.unlink(missing_ok=True)  # by another process, which saw the output

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it when the process dies
        except OSError as error:
            raise ScoreError(f"another process is writing {self.path}: wait for it, or choose another --out") from error

    def _begin(self, header: bytes) -> None:
        """Check the header, index the rows, cut off a partial last line."""
        self._file.seek(0)
        first = self._file.readline()
        if header.startswith(first) and first != header:  # new, or killed within its header
            self._file.truncate(0)
            self._file.write(header)
            self._file.flush()
            return
        if first != header:
            raise ScoreError(_other(self.path, first, header))
        end = len(header)
        for line in self._file:
            if (row := _whole(line)) is None:
                break
            if row.get("error") != UNREADABLE:
                self._lines[row["path"]] = end, row[STATE]
            end += len(line)
        self._file.truncate(end)  # opened for appending: what comes next is written behind this


def _whole(line: bytes) -> dict[str, Any] | None:
    """The row in a whole line of the journal, else None."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("path"), str) and STATE in row else None


def _other(path: Path, first: bytes, header: bytes) -> str:
    try:
        before, now = json.loads(first), json.loads(header)
        key = next(k for k in now if before[HEADER] and before.get(k) != now[k])
    except (ValueError, TypeError, KeyError, StopIteration):
        return f"{path} is no journal of this command: remove it, or choose another --out"
    remedy = "give the same to go on, remove it to start over, or choose another --out"
    if key != "columns":
        return f"{path} was begun with {key} {before.get(key)}, now it is {now[key]}: {remedy}"
    sides = (("with", before[key], now[key]), ("without", now[key], before[key]))
    differ = [(word, [name for name in one if name not in other]) for word, one, other in sides]
    said = (
        " and ".join(f"{word} the columns {_few(names)}" for word, names in differ if names)
        or "with the columns in another order"
    )
    return f"{path} was begun {said}: {remedy}"


def _few(names: list[str]) -> str:
    """The first of them: there may be a column for each class."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
