"""The file of an SQLite ledger: whether it is one, and whether it is still the one that was opened.

SQLite writes on into a file that was deleted, or in whose place a backup was put, and what it says it has committed is
gone with the process. The write-ahead log that is left beside a backup is not its own, and would be played into it.
"""

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

SQLITE_MAGIC = b"SQLite format 3\0"  # begins every file of SQLite that holds anything
BESIDE = ("-wal", "-shm")  # there while a connection is open


def may_be_sqlite(path: Path) -> bool:
    """Whether SQLite may take it for its own. One that cannot be read now, or is damaged, is given its chance.

    Only SQLite may open a file that it can read: where anything else of a process closes it, POSIX takes away the locks
    that connections of this process hold on it. The next connection of another process then takes itself for the last
    one, and deletes the log into which this process goes on writing.
    """
    if not path.is_file():
        return False
    as_it_is = f"{path.absolute().as_uri()}?mode=ro&immutable=1"  # makes no file beside it
    try:
        with closing(sqlite3.connect(as_it_is, uri=True)) as connection:
            connection.execute("PRAGMA schema_version").fetchall()
        return True
    except sqlite3.Error as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_NOTADB:
            return True
    try:
        with path.open("rb") as file:
            return file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC
    except OSError:
        return True


class OpenFile:
    """Made of a path once a connection has read from it."""

    def __init__(self, path: Path) -> None:
        real = path.resolve()  # SQLite follows links, and has its log beside the file
        self._path, self._beside = path, [real.with_name(real.name + end) for end in BESIDE]
        self._was, *self._were = map(_identity, (path, *self._beside))

    def require(self) -> None:
        """Raise sqlite3.OperationalError where the file is another by now, without the log of the old one beside it."""
        if _identity(self._path) == self._was:
            return
        for path, was in zip(self._beside, self._were, strict=True):
            if was is not None and _identity(path) == was:
                with suppress(OSError):
                    path.unlink()
        raise sqlite3.OperationalError(f"{self._path} was deleted or replaced while it was open")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
