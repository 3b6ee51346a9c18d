"""The deployments that a ledger's database holds, in their order; the last one is what its replicas serve.

They hold for replicas that were started with the same TAILGUARD_BUNDLE. So a setting that is changed wins over what was
deployed before, and services with different bundles may share a database. A ledger in memory, or none, keeps them for
the life of the process.
"""

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from service.bundles.addresses import named
from service.contract.bundle import Manifest
from service.contract.decision import Scope
from service.ledger import schema
from service.ledger.database import MEMORY, PATIENT_LOCK_S, POSTGRESQL, Database, connect
from service.ledger.rows import ModelKey
from service.settings.places import Source

OFF = "off"
Action = Literal["swap", "promote", "back"]
COLUMNS = "row, time, action, path, name, version, sha256, api_key, note"
SELECT = f"SELECT {COLUMNS} FROM deployments WHERE setting = ? ORDER BY row"
LAST = f"SELECT {COLUMNS} FROM deployments WHERE setting = ? ORDER BY row DESC LIMIT 1"
INSERT = """INSERT INTO deployments (time, action, path, name, version, sha256, api_key, note, setting)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""


class Deployment(NamedTuple):
    """A bundle that was put in force; `path` is absolute, or an address; `api_key` the name of whose key it was."""

    row: int
    time: float
    action: Action
    path: str
    name: str
    version: str
    sha256: str
    api_key: str | None
    note: str | None  # JSON: the operating point and scope that were asked for with it, and the model that it replaced

    @property
    def model(self) -> ModelKey:
        return ModelKey(self.name, self.version, self.sha256)

    @property
    def replaced(self) -> ModelKey | None:
        """The model that was in force before; None where that was not written down yet."""
        before = json.loads(self.note).get("replaced") if self.note else None
        return None if before is None else ModelKey(*before)

    @property
    def decides_by(self) -> tuple[str | None, Scope | None]:
        """The operating point and scope that were asked for; None: as the deployment has chosen, or the bundle's."""
        asked = json.loads(self.note) if self.note else {}
        return asked.get("operating_point"), asked.get("scope")


class Deployments:
    """Called from any thread; raises the driver's errors where the database cannot be read or written."""

    def __init__(self, where: str, setting: Source) -> None:
        self._where, self._setting = where, str(setting)
        self.shared = where not in (MEMORY, OFF)
        self._own: list[Deployment] = []
        self._reading: Database | None = None
        self._lock = threading.Lock()

    def history(self) -> list[Deployment]:
        """All of them, the oldest first."""
        return [Deployment(*row) for row in self._fetch(SELECT)] if self.shared else list(self._own)

    def last(self) -> Deployment | None:
        """The one in force; None where the setting is."""
        if not self.shared:
            return self._own[-1] if self._own else None
        rows = self._fetch(LAST)
        return Deployment(*rows[0]) if rows else None

    def append(
        self, action: Action, source: Source, manifest: Manifest, key: str | None, asked: dict[str, Any]
    ) -> Deployment:
        """Write one down, committed when this returns: from then on it is in force wherever the database is read."""
        given = {name: value for name, value in asked.items() if value is not None}
        note = json.dumps(given) if given else None
        identity = (manifest.name, manifest.version, manifest.sha256)
        made = Deployment(len(self._own) + 1, time.time(), action, named(source), *identity, key, note)
        if not self.shared:
            self._own.append(made)
            return made
        database = connect(self._where, lock_s=PATIENT_LOCK_S)
        try:
            schema.prepare(database)
            with database.transaction():
                database.execute(INSERT, (*made[1:], self._setting))
                return Deployment(*database.fetch(LAST, (self._setting,))[0])
        finally:
            database.close()

    def close(self) -> None:
        with self._lock:
            self._drop()

    def _fetch(self, statement: str) -> Sequence[tuple[Any, ...]]:
        with self._lock:
            if self._reading is None:
                if not self._where.startswith(POSTGRESQL) and not Path(self._where).exists():
                    return []  # a ledger that is yet to be made
                self._reading = connect(self._where, read_only=True)
            try:
                if not self._reading.has_table("deployments"):
                    return []  # one of an earlier schema
                return self._reading.fetch(statement, (self._setting,))
            except BaseException:
                self._drop()
                raise

    def _drop(self) -> None:
        if self._reading is not None:
            self._reading.close()
            self._reading = None


class Served(NamedTuple):
    """A bundle that was in force; `model` is None where it was not written down."""

    path: str
    model: ModelKey | None


def of_setting(history: Sequence[Deployment], setting: Source) -> Served:
    """What was in force before anything was deployed."""
    return Served(named(setting), history[0].replaced if history else None)


def stack(history: Sequence[Deployment], setting: Source) -> list[Served]:
    """The bundles that lie one upon the other: the setting first, the one in force last.

    A deployment lies upon the one it replaced; `back` takes off what lies above the one that it returned to.
    """
    found = [of_setting(history, setting)]
    for one in history:
        paths = [served.path for served in found]
        if one.action == "back" and one.path in paths:
            del found[len(paths) - 1 - paths[::-1].index(one.path) :]
        elif paths[-1] == one.path:
            del found[-1]
        found.append(Served(one.path, one.model))
    return found
