"""The table of kept files: which are on their way to the store, there, or to be deleted because no row refers to them.

A file is deleted from the store only while its row says 'leaving', and none is stored under a key that is leaving: so
what one replica deletes is never what another has just stored. Whoever dies in between leaves a row that says what was
to be done, and any replica does it after a while.
"""

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

from service.ledger.database import Database
from service.ledger.rows import StoreNews

CHUNK_KEYS = 1000
LEFT_S = 60.0  # after which a deletion that nobody has reported is tried again
LOST_S = 600.0  # after which a file that is still on its way is looked for
ARRIVE = """INSERT INTO images (image_key, bytes, time, state) VALUES (?, ?, ?, 'arriving') ON CONFLICT (image_key)
    DO UPDATE SET time = excluded.time WHERE images.state <> 'leaving' RETURNING state"""
LEAVE = """UPDATE images SET state = 'leaving', time = ? WHERE image_key = ? AND state <> 'leaving'
    AND NOT EXISTS (SELECT 1 FROM decisions d WHERE d.image_key = images.image_key) RETURNING image_key"""
UNLINK = "UPDATE decisions SET image_key = NULL WHERE image_key = ?"
OLDEST = "SELECT image_key, bytes FROM images WHERE state = 'kept' AND time < ? AND {which} ORDER BY time LIMIT ?"
LABELLED = """EXISTS (SELECT 1 FROM decisions d JOIN feedback f ON f.decision_row = d.row
    WHERE d.image_key = images.image_key)"""
STALE = "SELECT image_key FROM images WHERE state = ? AND (time < ? OR time > ?) LIMIT ?"  # or by a wrong clock
# Where one that came earlier is younger, the time is of a clock that was wrong:
IN_ORDER = """NOT EXISTS (SELECT 1 FROM decisions d WHERE d.image_key = images.image_key
    AND d.row > (SELECT min(row) FROM decisions WHERE time >= ?))"""


class Stale(NamedTuple):
    """Keys of files that somebody did not finish storing or deleting."""

    arriving: list[str]
    leaving: list[str]


class KeptImages:
    """Each call stands in a transaction of the caller's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def arrive(self, key: str, size: int, now: float) -> str | None:
        """Note that a file comes: 'arriving' if it is to be stored, 'kept' if it is there, None if it cannot be now."""
        states = self._database.fetch(ARRIVE, (key, size, now))
        return str(states[0][0]) if states else None

    def hear(self, news: StoreNews) -> list[str]:
        """Note what the store has done; the keys of files that it holds and no row wants, to be deleted."""
        unwanted = []
        for key, size in news.stored:
            changed = self._database.fetch(
                "UPDATE images SET state = 'kept', bytes = ? WHERE image_key = ? AND state <> 'leaving' RETURNING 1",
                (size, key),
            )
            if not changed:  # forgotten while it was on its way
                unwanted.append(key)
        for key in news.failed:
            gone = "DELETE FROM images WHERE image_key = ? AND state = 'arriving' RETURNING 1"
            if self._database.fetch(gone, (key,)):
                self._database.execute(UNLINK, (key,))
        for key in news.deleted:
            self._database.execute("DELETE FROM images WHERE image_key = ? AND state = 'leaving'", (key,))
        return unwanted

    def release(self, keys: Sequence[str]) -> list[str]:
        """Those of `keys` to which no row refers any more, from now on leaving."""
        now = time.time()
        return [row[0] for key in dict.fromkeys(keys) for row in self._database.fetch(LEAVE, (now, key))]

    def trim(self, max_bytes: int, before: float) -> list[str]:
        """Have some of the files from `before` that time leave, and of the oldest while there are too many bytes; those
        with a label last, since a model may learn from them. Their rows lose them."""
        leaving = dict(self._oldest(IN_ORDER, before, before))
        excess = self.size_bytes() - max_bytes - sum(leaving.values())
        for which in (f"NOT {LABELLED}", LABELLED):
            found = self._oldest(which, math.inf) if excess > 0 else []
            for key, size in found:
                if excess > 0 and key not in leaving:
                    leaving[key] = size
                    excess -= size
            if len(found) == CHUNK_KEYS:
                break  # there are more of this kind
        for key in leaving:
            self._database.execute(UNLINK, (key,))
        return self.release([*leaving])

    def _oldest(self, which: str, before: float, *values: float) -> list[tuple[str, int]]:
        found = self._database.fetch(OLDEST.format(which=which), (before, *values, CHUNK_KEYS))
        return [(str(key), int(size)) for key, size in found]

    def stale(self) -> Stale:
        """What is left to do of others, or of this process before it was killed; asked again only after a while."""
        now = time.time()
        found = []
        for state, patience_s in (("arriving", LOST_S), ("leaving", LEFT_S)):
            keys = [
                row[0] for row in self._database.fetch(STALE, (state, now - patience_s, now + patience_s, CHUNK_KEYS))
            ]
            for key in keys:
                self._database.execute("UPDATE images SET time = ? WHERE image_key = ?", (now, key))
            found.append(keys)
        return Stale(*found)

    def size_bytes(self) -> int:
        """Of all files, with their thumbnails."""
        return int(self._database.fetch("SELECT COALESCE(sum(bytes), 0) FROM images WHERE state <> 'leaving'")[0][0])
