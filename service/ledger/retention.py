"""Which rows are deleted, the oldest first: those beyond a number, an age or so many bytes."""

from itertools import accumulate

from service.ledger import schema
from service.ledger.clock import DAY_S
from service.ledger.database import Database
from service.ledger.images import KeptImages

CHUNK_ROWS = 1000  # per transaction, so that nobody waits long for one to end
ENDS = "SELECT (SELECT min(row) FROM decisions), (SELECT max(row) FROM decisions)"  # each from an end of the index
SIZES = """SELECT row, COALESCE(length(image), 0) + COALESCE(length(embedding), 0) FROM decisions
    WHERE row <= ? ORDER BY row"""
NEWEST = """SELECT max(time) FROM (SELECT time FROM decisions WHERE time < ? ORDER BY row DESC LIMIT 1000) AS latest"""
TIMES = "SELECT row, time FROM decisions WHERE row <= ? ORDER BY row LIMIT ?"
AT = "SELECT row, time FROM decisions WHERE row >= ? ORDER BY row LIMIT 1"
ADD_BYTES = "UPDATE ledger SET bytes = bytes + ?"


def trim(
    database: Database, images: KeptImages, max_rows: int, before: float, max_bytes: int, now: float
) -> tuple[int, list[str]]:
    """Delete, with feedback, at most CHUNK_ROWS of the oldest rows beyond a limit, never the newest; how many,
    and the keys of the files to which no row refers any more.

    Rows go in the order in which they came: one from `before` that time stays while one that came earlier is
    younger, as it has its time from a clock that was wrong; so has one from after `now`, which goes with the old ones
    around it. `max_bytes` counts schema.ROW_BYTES a row and its embedding, and images that earlier versions kept in the
    rows: the database gives the room of deleted rows to new ones.
    """
    oldest, newest = database.fetch(ENDS)[0]
    if oldest is None:
        return 0, []
    end = min(oldest + CHUNK_ROWS, newest) - 1  # the newest stays: SQLite would give its number again
    last = max(min(end, newest - max_rows), _last_aged(database, before, now + DAY_S, end, newest))
    excess = database.fetch("SELECT bytes FROM ledger")[0][0] - max_bytes
    if excess > 0:
        last = max(last, _last_of(database, excess, end))
    if last < oldest:
        return 0, []
    with database.transaction():
        keys = database.fetch("SELECT image_key FROM decisions WHERE row <= ? AND image_key IS NOT NULL", (last,))
        freed = sum(schema.ROW_BYTES + size for _, size in database.fetch(SIZES, (last,)))
        for table in ("feedback", "review_groups"):
            database.execute(f"DELETE FROM {table} WHERE decision_row <= ?", (last,))
        database.execute("DELETE FROM decisions WHERE row <= ?", (last,))
        database.execute(ADD_BYTES, (-freed,))
        leaving = images.release([row[0] for row in keys])
    return int(last - oldest + 1), leaving


def newest(database: Database, before: float) -> float | None:
    """The newest time before that one, of the rows that came last; None where there is none."""
    found: float | None = database.fetch(NEWEST, (before,))[0][0]
    return found


def _last_aged(database: Database, before: float, ahead: float, end: int, newest: int) -> int:
    """The last of the oldest rows, up to `end`, from `before` that time, before the first that is younger; 0: none.

    Rows from after `ahead` are left out of account while the old ones are more: else it is `ahead` that is wrong.
    """
    last = old = later = 0
    first = database.fetch(TIMES, (end, 1))
    if first and before <= first[0][1] <= ahead:
        return 0  # as nearly always
    for row, time in database.fetch(TIMES, (end, CHUNK_ROWS)):
        if before <= time <= ahead:
            break
        old, later = old + (time < before), later + (time > ahead)
        if time < before and old > later:
            last = int(row)
    if not last and first and first[0][1] > ahead:
        last = min(end, _last_ahead(database, int(first[0][0]), newest, before, ahead))
    return last


def _last_ahead(database: Database, first: int, newest: int, before: float, ahead: float) -> int:
    """The last of the rows from after `ahead` with which the ledger begins, where more of those that follow are from
    `before` that time; 0 where they are not. A wrong hour may have written thousands."""

    def times(row: int) -> list[float]:
        """That of the row, or of the next one there is."""
        return [time for _, time in database.fetch(AT, (row,))]

    low, high = first, newest
    if max(times(newest)) > ahead:
        return 0
    while high - low > 1:  # row `low` is from after `ahead`, row `high` is not
        middle = (low + high) // 2
        low, high = (middle, high) if max(times(middle)) > ahead else (low, middle)
    follow = [*times(high), *times(2 * high - first)]
    return high - 1 if len(follow) == 2 and max(follow) < before else 0


def _last_of(database: Database, excess: int, end: int) -> int:
    """The last of the oldest rows, up to `end`, that together take `excess` bytes."""
    rows = database.fetch(SIZES, (end,))
    taken = accumulate(schema.ROW_BYTES + size for _, size in rows)
    return next((row for (row, _), total in zip(rows, taken, strict=True) if total >= excess), end)
