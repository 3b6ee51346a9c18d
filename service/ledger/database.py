"""The two databases that can hold the ledger, behind one interface: SQLite, and PostgreSQL through psycopg.

Statements are written once, with `?` for values, and with {id}, {blob} and {newest} where the two must differ. A
connection is used by one thread. Errors are those of the driver.
"""

import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from service.errors import SettingsError
from service.ledger.file import OpenFile, may_be_sqlite
from service.settings import PREFIX

MEMORY = ":memory:"
SHARED_MEMORY = "file:tailguard-"  # begins the name of a ledger in memory that a second connection can read
LOCK_S = 1.0  # how long a transaction waits for another to end, where it is tried again
PATIENT_LOCK_S = 8.0  # where it is not, and somebody waits for it
CONNECT_S = 5
STATEMENT_S = 10
POSTGRESQL_SCHEMA = "tailguard"  # other applications may have tables in the same database
ADVISORY_LOCK = 0x7A11_60A2D  # any number that no other application takes for an advisory lock
POSTGRESQL = ("postgresql://", "postgres://")


class Database(Protocol):
    """One connection."""

    words: dict[str, str]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. Transactions of everybody who writes to this ledger run one after another."""
        yield

    def execute(self, statement: str, values: Sequence[Any] = ()) -> None: ...

    def execute_many(self, statement: str, rows: Sequence[Sequence[Any]]) -> None: ...

    def fetch(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]: ...

    def has_table(self, name: str) -> bool: ...

    def size_bytes(self, tables: Sequence[str]) -> int: ...

    def close(self) -> None: ...


class Sqlite:
    """A file, or the memory of this process. Readers and the writer do not wait for each other (WAL).

    synchronous=NORMAL: a killed process loses nothing that was committed; a power cut may take back the last commits,
    and never damages the file (https://sqlite.org/pragma.html#pragma_synchronous).
    """

    def __init__(self, where: str, read_only: bool = False, lock_s: float = LOCK_S) -> None:
        self.words = {"id": "INTEGER PRIMARY KEY", "blob": "BLOB", "newest": ""}  # its indexes end with the row anyway
        in_memory = where == MEMORY or where.startswith(SHARED_MEMORY)
        self._path = None if in_memory else Path(where).absolute()
        self._file: OpenFile | None = None
        if read_only and not in_memory:
            where = Path(where).absolute().as_uri() + "?mode=ro"
        self._connection = sqlite3.connect(
            where, timeout=lock_s, isolation_level=None, uri=where.startswith("file:"), check_same_thread=not read_only
        )
        try:
            if read_only:
                self._connection.execute("PRAGMA query_only=1")
                self._connection.execute("PRAGMA read_uncommitted=1")  # in memory: readers and the writer do not wait
            else:
                self._write_ahead()
                self._connection.execute("PRAGMA synchronous=NORMAL")
                self._connection.execute("PRAGMA secure_delete=ON")  # what is forgotten does not stay in free pages
            self.has_table("ledger")  # from here on the file and its log are open
            self._file = None if self._path is None else OpenFile(self._path)
        except sqlite3.Error:
            self._connection.close()
            raise

    def _write_ahead(self) -> None:
        """SQLite does not wait when another connection changes the mode of a new file at the same moment: so we do."""
        deadline = time.monotonic() + LOCK_S
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._require_file()
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # a full disk has ended it already
                self._connection.execute("ROLLBACK")
            raise

    def execute(self, statement: str, values: Sequence[Any] = ()) -> None:
        self._connection.execute(statement, values)

    def execute_many(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        self._connection.executemany(statement, rows)

    def fetch(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        self._require_file()
        return self._connection.execute(statement, values).fetchall()

    def _require_file(self) -> None:
        if self._file is not None:
            self._file.require()

    def has_table(self, name: str) -> bool:
        return bool(self.fetch("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (name,)))

    def size_bytes(self, tables: Sequence[str]) -> int:
        """Of the file and its write-ahead log. Deleted rows leave room inside for new ones."""
        if self._path is None:
            return int(self.fetch("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")[0][0])
        files = (self._path, self._path.with_name(self._path.name + "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        self._connection.close()


class Postgres:
    """A server that several replicas may share. An advisory lock orders transactions, which SQLite does by itself.

    Every wait has a limit, so that a server that hangs costs one failed attempt.
    """

    def __init__(self, where: str, read_only: bool = False, lock_s: float = LOCK_S) -> None:
        import psycopg

        self.words = {"id": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY", "blob": "BYTEA", "newest": ", row"}
        self._connection = psycopg.connect(
            where,
            autocommit=True,
            connect_timeout=CONNECT_S,
            application_name="tailguard",
            tcp_user_timeout=STATEMENT_S * 1000,
        )
        try:
            for limit, seconds in (
                ("lock_timeout", lock_s),
                ("statement_timeout", STATEMENT_S),
                ("idle_in_transaction_session_timeout", STATEMENT_S),
            ):
                self.execute(f"SET {limit} = {int(seconds * 1000)}")
            if read_only:
                self.execute("SET default_transaction_read_only = on")
            elif not self.fetch("SELECT 1 FROM pg_namespace WHERE nspname = ?", (POSTGRESQL_SCHEMA,)):
                with self._connection.transaction():
                    self.execute("SELECT pg_advisory_xact_lock(?)", (ADVISORY_LOCK,))
                    self.execute(f"CREATE SCHEMA IF NOT EXISTS {POSTGRESQL_SCHEMA}")
            self.execute(f"SET search_path = {POSTGRESQL_SCHEMA}")
        except psycopg.Error:
            self._connection.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._connection.transaction():
            self.execute("SELECT pg_advisory_xact_lock(?)", (ADVISORY_LOCK,))
            yield

    def execute(self, statement: str, values: Sequence[Any] = ()) -> None:
        self._connection.execute(_percent(statement), values)

    def execute_many(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        with self._connection.cursor() as cursor:
            cursor.executemany(_percent(statement), rows)

    def fetch(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(_percent(statement), values).fetchall()

    def has_table(self, name: str) -> bool:
        return self.fetch("SELECT to_regclass(?::text)", (f"{POSTGRESQL_SCHEMA}.{name}",))[0][0] is not None

    def size_bytes(self, tables: Sequence[str]) -> int:
        """Of the tables with their indexes and images."""
        rows = self.fetch(
            "SELECT sum(pg_total_relation_size(name::regclass)) FROM unnest(?::text[]) AS name", (list(tables),)
        )
        return int(rows[0][0])

    def close(self) -> None:
        self._connection.close()


def _percent(statement: str) -> bytes:
    return statement.replace("?", "%s").encode()


def check(where: str, option: str = f"{PREFIX}LEDGER") -> None:
    """Raise SettingsError, one line without any password, when `where` can never work. Called before the port opens.

    `option` is where it was named. A database that is unreachable, locked or full at this moment is no error here: the
    service starts and tries again.
    """
    if where == MEMORY:
        return
    if not where.startswith(POSTGRESQL):
        if where != where.strip() or where.startswith("file:") or where.lower() in (MEMORY, "off"):
            raise SettingsError(f"{option}={where!r} would be a file so named: write {MEMORY}, off or a path")
        if "://" in where:
            scheme = where.partition("://")[0]
            raise SettingsError(f"{option} names {scheme}://…: give the path of a file or a postgresql:// URL")
        if not (folder := Path(where).absolute().parent).is_dir():
            raise SettingsError(f"{option}={where}: there is no folder {folder}: make it, or name another")
        if Path(where).is_dir():
            raise SettingsError(f"{option}={where} is a folder: give the path of a file in it")
        if Path(where).exists() and not may_be_sqlite(Path(where)):
            raise SettingsError(f"{option}={where} is no SQLite file: name one, or a file that is yet to be made")
        return
    try:
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict
    except ImportError as error:
        raise SettingsError(
            f"{option} names PostgreSQL and psycopg is not installed: pip install 'tailguard[postgres]'"
        ) from error
    try:
        conninfo_to_dict(where)
    except ProgrammingError:  # its message may repeat the password
        raise SettingsError(f"{option} is not a postgresql:// URL that libpq can read") from None


def connect(where: str, *, read_only: bool = False, lock_s: float = LOCK_S) -> Database:
    """A connection to the ledger at `where`: a path, ":memory:", a name by `shared_memory` or a postgresql:// URL.

    One that is read-only makes nothing and changes nothing, and may be used by any thread, one at a time.
    """
    return (Postgres if where.startswith(POSTGRESQL) else Sqlite)(where, read_only, lock_s)


def shared_memory() -> str:
    """A new name for a ledger in the memory of this process. It lasts while a connection to it is open."""
    return f"{SHARED_MEMORY}{uuid.uuid4().hex}?mode=memory&cache=shared"
