"""Which copy of a ledger uses an image store.

A ledger that was copied (`cp`, `pg_dump`) has the id of its original, and what the two have deleted since differs: with
one store each would delete files that the other still refers to. So who uses a store writes there, every RENEW_S, which
copy it is. Another copy is refused unless it may have come in that one's place:

    it is the same file, or the same database of a server     goes on: replicas, a file that was moved with `mv`
    on this machine, the other file is where it was           refused: this one is a copy of it
    on this machine, the other file is gone, or replaced      goes on: it was moved, or a backup was put in its place
    elsewhere, and used within ALIVE_S                        refused: it is in use
    elsewhere, and not used for so long                       goes on, and the log says whose the store was
"""

import os
import socket
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from service.ledger.database import MEMORY, POSTGRESQL, SHARED_MEMORY, Database

RENEW_S = 60.0
ALIVE_S = 300.0
BOOT = Path("/proc/sys/kernel/random/boot_id")  # another for each start of a machine; one for all containers on it
ID = "SELECT id FROM ledger"
DATABASE = "SELECT current_database(), oid FROM pg_database WHERE datname = current_database()"
SERVER = "SELECT system_identifier FROM pg_control_system()"


class User(NamedTuple):
    """One copy of a ledger."""

    ledger: str  # its id, which all copies have
    mark: str  # which copies do not have
    host: str = ""
    path: str = ""  # of a file on that host

    def may_follow(self, other: "User", age_s: float) -> bool:
        """Whether this copy may use a store that `other`, a copy of the same ledger, has used `age_s` ago."""
        if other.mark == self.mark:
            return True
        if self.path and other.host == self.host:
            return other.path == self.path or not _is_there(other)
        return abs(age_s) > ALIVE_S


def user(database: Database, where: str) -> User:
    """Of the ledger at `where`, to which `database` is a connection. Raises the driver's errors."""
    ledger = str(database.fetch(ID)[0][0])
    if where.startswith(POSTGRESQL):
        server = database.fetch(DATABASE)[0]
        with suppress(Exception):  # of the driver: not every server lets everybody ask
            server += database.fetch(SERVER)[0]
        return User(ledger, "-".join(map(str, server)))
    if where == MEMORY or where.startswith(SHARED_MEMORY):
        return User(ledger, where)
    path = Path(where).resolve()
    return User(ledger, mark_of(path), _host(), str(path))


def mark_of(path: Path) -> str:
    """What no copy of a file has, and the same after `mv` within a disk. Raises OSError where there is none."""
    found = path.stat()
    disk = os.statvfs(path).f_fsid if hasattr(os, "statvfs") else found.st_dev  # a device may change its number
    return f"{disk}-{found.st_ino}"


def _is_there(other: User) -> bool:
    """Whether a file of this machine is still that copy. One that cannot be read may be."""
    path = Path(other.path)
    if not path.is_file():
        return False
    as_it_is = f"{path.as_uri()}?mode=ro&immutable=1"  # makes no file beside it, which its own user could not open
    with suppress(sqlite3.Error, OSError), closing(sqlite3.connect(as_it_is, uri=True)) as connection:
        return bool(connection.execute(ID).fetchall() == [(other.ledger,)])
    return True


def _host() -> str:
    with suppress(OSError):
        return f"{socket.gethostname()} {BOOT.read_text().strip()}"
    return socket.gethostname()
