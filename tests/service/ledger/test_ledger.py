"""service/ledger/writer.py on SQLite and on a real PostgreSQL: nothing lost, nothing twice, no request waits."""

import asyncio
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.contract import bundle
from service.contract.decision import Verdict
from service.errors import Forbidden, InvalidParameter, NotFound, NotReady, SettingsError
from service.ledger import database as ledger_database
from service.ledger import queue, work
from service.ledger.clock import Clock
from service.ledger.database import MEMORY, Database, Sqlite, check, connect
from service.ledger.file import SQLITE_MAGIC
from service.ledger.rows import Entry, FeedbackRecord, Kind, Source, TallyKey
from service.ledger.schema import ROW_BYTES
from service.ledger.tables import Tables
from service.ledger.writer import Ledger
from service.observe.metrics import Metrics
from service.settings import Settings
from service.settings.places import ROOT
from tests.service import postgres, tiny
from tests.service.test_process import serving

LIMIT_S = 30
RED = TallyKey("id95", "group", True, "red", "accept", "")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((work, "RETRY_S"), (work, "TICK_S"), (ledger_database, "LOCK_S")):
        monkeypatch.setattr(module, name, 0.05)


class Kept:
    """A ledger beside what it has said."""

    def __init__(self, where: str, **settings: Any) -> None:
        self.metrics = Metrics()
        self.labelled: list[tuple[str, str | None, int]] = []
        opened = Ledger.open(Settings(ledger=where, **settings), self.metrics, self._on_feedback)
        assert opened is not None
        self.ledger = opened

    def _on_feedback(self, record: FeedbackRecord, change: int) -> None:
        self.labelled.append((record.truth, record.outcome, change))

    def rows(self, outcome: str) -> float:
        return float(self.metrics.ledger_rows.labels(outcome)._value.get())

    def failures(self) -> float:
        return float(self.metrics.ledger_failures._value.get())

    def __enter__(self) -> "Kept":
        return self

    def __exit__(self, *_: object) -> None:
        self.ledger.close(LIMIT_S)

    def mark(self, *rows: int, kind: Kind, label: str = "", source: Source = "review", **options: Any) -> Any:
        return asyncio.run(self.ledger.label(rows, kind=kind, label=label, source=source, **options))

    def label(self, *what: Any, **options: Any) -> FeedbackRecord:
        return asyncio.run(self.ledger.record_feedback(*what, **{"key": None} | options))


def entry(manifest: bundle.Manifest, request_id: str, position: int = 0, class_index: int = 0, **changes: Any) -> Entry:
    verdict = Verdict(class_index, -7.0, "accept", -5.5, "id95", "group", 0.5)
    scores = {"energy": -7.0, "msp": 0.25}
    return Entry(time.time(), request_id, position, manifest, scores, verdict, None, None)._replace(**changes)


def read(where: str, statement: str) -> list[tuple[Any, ...]]:
    database: Database = connect(where)
    try:
        return database.fetch(statement)
    finally:
        database.close()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_row_holds_what_was_answered(where: str, manifest: bundle.Manifest) -> None:
    rejected = Verdict(2, float("nan"), "reject", -5.25, "ood95", "global", 0.01)
    scores, now = {"energy": float("nan"), "msp": 0.5}, time.time()
    with Kept(where) as kept:
        kept.ledger.record(entry(manifest, "a", time=now, key="ci"))
        kept.ledger.record(entry(manifest, "a", 1, time=now + 1, verdict=rejected, scores=scores))
    columns = (
        "time, request_id, position, label, class_group, decision, score, threshold, p_value, operating_point, scope, "
        "scores, api_key, image"
    )
    first, second = read(where, f"SELECT {columns} FROM decisions ORDER BY row")
    common = ("a", 0, "red", "many", "accept", -7.0, -5.5, 0.5, "id95", "group", '{"energy": -7.0, "msp": 0.25}')
    assert first == (now, *common, "ci", None)
    assert second[1:6] == ("a", 1, "blue", "few", "reject")
    assert second[6:] == (None, -5.25, 0.01, "ood95", "global", '{"energy": null, "msp": 0.5}', None, None)
    assert read(where, "SELECT name, version, sha256 FROM models") == [("tiny", "1", manifest.sha256)]
    assert kept.rows("written") == 2


def test_feedback_is_idempotent_and_a_correction_is_appended(where: str, manifest: bundle.Manifest) -> None:
    with Kept(where) as kept:
        kept.ledger.record(entry(manifest, "a"))
        first = kept.label("a", 0, "green", key="ops", may_review=True)  # its row is still in the queue
        assert (first.label, first.truth, first.outcome, first.decision) == ("red", "green", "wrong", "accept")
        assert kept.label("a", 0, "green") == first
        assert kept.label("a", 0, "red").outcome == "correct"
        assert kept.label("a", 0, "red").outcome == "correct"
        assert kept.label("a", 0, "outlier").outcome == "outlier"
        assert kept.labelled == [
            ("green", "wrong", 1),
            ("green", "wrong", -1), ("red", "correct", 1),
            ("red", "correct", -1), ("outlier", "outlier", 1),
        ]  # fmt: skip
        tally = kept.ledger.tally(manifest)
        assert tally is not None
        assert +tally.images == {RED: 1, RED._replace(truth="outlier"): 1}
    assert read(where, "SELECT label, api_key FROM feedback ORDER BY row") == [
        ("green", "ops"), ("red", None), ("outlier", None)
    ]  # fmt: skip


def test_feedback_that_means_nothing_is_refused(where: str, manifest: bundle.Manifest) -> None:
    with Kept(where) as kept:
        kept.ledger.record(entry(manifest, "a"))
        with pytest.raises(NotFound, match="no image 0 of request b"):
            kept.label("b", 0, "red")
        with pytest.raises(NotFound, match="no image 1 of request a"):
            kept.label("a", 1, "red")
        with pytest.raises(
            InvalidParameter, match=r"'cat' is no class of tiny version 1.*red, green, blue, or outlier"
        ):
            kept.label("a", 0, "cat")
        assert kept.label("a", 0, "blue").outcome == "wrong"  # the refusals have spoilt nothing
    assert read(where, "SELECT count(*) FROM feedback") == [(1,)]


def test_feedback_belongs_to_the_key_that_asked_or_to_a_reviewer(where: str, manifest: bundle.Manifest) -> None:
    with Kept(where) as kept:
        kept.ledger.record(entry(manifest, "a", key="ci"))
        kept.ledger.record(entry(manifest, "b"))  # without any key
        for request_id, key in (("a", "other"), ("a", None), ("b", "other")):
            with pytest.raises(Forbidden, match=f"request {request_id} was sent with another API key"):
                kept.label(request_id, 0, "red", key=key)
        assert kept.labelled == []
        for request_id, key, may_review in (("a", "ci", False), ("b", None, False)):
            kept.label(request_id, 0, "red", key=key, may_review=may_review)
        assert kept.label("a", 0, "green", key="other", may_review=True).outcome == "wrong"
    assert read(where, "SELECT label, api_key FROM feedback ORDER BY row") == [
        ("red", "ci"), ("red", None), ("green", "other")
    ]  # fmt: skip


def test_a_clients_id_means_the_latest_answer_to_the_same_key(where: str, manifest: bundle.Manifest) -> None:
    with Kept(where) as kept:
        kept.ledger.record(entry(manifest, "1", client_id="mine", key="ci"))
        kept.ledger.record(entry(manifest, "2", client_id="mine", key="ci", class_index=2))
        kept.ledger.record(entry(manifest, "3", client_id="mine", key="other", class_index=1))
        assert kept.label("mine", 0, "blue", key="ci").outcome == "correct"
        assert kept.label("mine", 0, "green", key="other").outcome == "correct"
        assert kept.label("1", 0, "red", key="ci").outcome == "correct"
        with pytest.raises(NotFound):
            kept.label("mine", 0, "red", key="third")
        kept.ledger.record(entry(manifest, "4", client_id="1", key="other"))  # takes nobody's id over
        assert kept.label("1", 0, "blue", key="ci").label == "red"
    assert read(where, "SELECT decision_row, label FROM feedback ORDER BY row") == [
        (2, "blue"), (3, "green"), (1, "red"), (1, "blue")
    ]  # fmt: skip


def test_the_same_feedback_at_once_to_two_replicas_counts_once(where: str, manifest: bundle.Manifest) -> None:
    images = 40
    with Kept(where) as one, Kept(where) as other:
        for i in range(images):
            one.ledger.record(entry(manifest, "a", i))
        until(lambda: one.rows("written") == images)

        async def all_at_once(position: int) -> list[FeedbackRecord]:
            return await asyncio.gather(
                *(k.ledger.record_feedback("a", position, "green", key=None) for k in [one, other] * 3)
            )

        for i in range(images):  # one at a time, so that both replicas are idle and begin together
            assert len(set(asyncio.run(all_at_once(i)))) == 1
        assert one.labelled + other.labelled == [("green", "wrong", 1)] * images
        for kept in (one, other):  # each learns what the other has counted

            def both(kept: Kept = kept) -> bool:
                tally = kept.ledger.tally(manifest)
                return tally is not None and tally.images == {RED: images, RED._replace(truth="green"): images}

            until(both)
    assert read(where, "SELECT count(*) FROM feedback") == [(images,)]


def test_tallies_outlive_the_process_and_agree_with_the_rows(where: str, manifest: bundle.Manifest) -> None:
    for start in range(3):
        with Kept(where) as kept:
            for i in range(10):
                kept.ledger.record(entry(manifest, f"{start}-{i}", class_index=i % 2))
            kept.label(f"{start}-0", 0, "red")
    with Kept(where) as kept:
        until(lambda: kept.ledger.tally(manifest) is not None)
        tally = kept.ledger.tally(manifest)
    assert tally is not None
    assert tally.images == {RED: 15, RED._replace(label="green"): 15, RED._replace(truth="red"): 3}
    counted = read(where, "SELECT label, count(*) FROM decisions GROUP BY label ORDER BY label")
    assert counted == [("green", 15), ("red", 15)]


def test_retention_by_count(where: str, manifest: bundle.Manifest) -> None:
    with Kept(where, ledger_max_rows=1000) as kept:
        for i in range(3500):
            kept.ledger.record(entry(manifest, str(i)))
            if i % 500 == 0:
                kept.label(str(i), 0, "red")
        until(lambda: read(where, "SELECT min(row), count(*) FROM decisions") == [(2501, 1000)])
        with pytest.raises(NotFound):
            kept.label("2499", 0, "red")
        assert kept.label("2500", 0, "red").outcome == "correct"
        until(lambda: kept.metrics.ledger_held_rows._value.get() == 1000)
        assert kept.metrics.ledger_bytes._value.get() > 100_000
        tally = kept.ledger.tally(manifest)
    assert tally is not None
    assert tally.images == {RED: 3500, RED._replace(truth="red"): 7}
    assert read(where, "SELECT min(decision_row), max(decision_row), count(*) FROM feedback") == [(2501, 3001, 2)]


def test_retention_by_age(where: str, manifest: bundle.Manifest) -> None:
    day_s, now = 86_400, time.time()
    with Kept(where, ledger_max_age_days=7) as kept:
        for i in range(2500):
            kept.ledger.record(entry(manifest, str(i), time=now - (8 if i < 2200 else 6) * day_s))
        until(lambda: kept.rows("written") == 2500)
        until(lambda: read(where, "SELECT count(*) FROM decisions") == [(300,)])
    assert read(where, "SELECT min(time) FROM decisions") == [(pytest.approx(now - 6 * day_s),)]


def test_a_row_of_a_wrong_clock_takes_no_younger_one_with_it(where: str, manifest: bundle.Manifest) -> None:
    """A small computer without a battery is in 1970 until it has the time from the network."""
    now = time.time()
    with Kept(where, ledger_max_age_days=7) as kept:
        for i, at in enumerate([now - 9 * 86_400, now - 60, 12.0, now - 50, 13.0, now]):
            kept.ledger.record(entry(manifest, str(i), time=at))
        until(lambda: kept.rows("written") == 6)
        until(lambda: read(where, "SELECT min(row) FROM decisions") == [(2,)])
        kept.ledger.record(entry(manifest, "last", time=now))  # another look
        until(lambda: kept.rows("written") == 7)
    assert read(where, "SELECT time FROM decisions ORDER BY row") == [
        (pytest.approx(at),) for at in (now - 60, 12.0, now - 50, 13.0, now, now)
    ]


DAYS_AHEAD = [
    ([900, -9, -8, -1, 0], [-1, 0]),  # written while the clock was wrong: nothing after it ever grew old
    ([-9, 900, -8, -8, -1, 900, -9, 0], [-1, 900, -9, 0]),
    ([900, 900, -9, 0], [900, 900, -9, 0]),  # what is wrong may be the clock by which the others are old
]


@pytest.mark.parametrize(("days", "left"), DAYS_AHEAD)
def test_a_row_of_the_future_keeps_no_old_one(
    where: str, manifest: bundle.Manifest, days: list[int], left: list[int]
) -> None:
    now = time.time()
    with Kept(where, ledger_max_age_days=7) as kept:
        for i, day in enumerate(days):
            kept.ledger.record(entry(manifest, str(i), time=now + day * 86_400))
        until(lambda: kept.rows("written") == len(days))
        for i in range(3):  # another look
            kept.label(str(len(days) - 1), 0, ("red", "outlier")[i % 2])
    assert [round((at - now) / 86_400) for (at,) in read(where, "SELECT time FROM decisions ORDER BY row")] == left


@pytest.mark.parametrize(("ahead", "after", "left"), [(800, 1700, 5), (2500, 2600, 5), (2500, 2400, 2500 + 2400 + 5)])
def test_a_wrong_hour_with_many_rows_holds_up_no_deletion(
    where: str, manifest: bundle.Manifest, ahead: int, after: int, left: int
) -> None:
    """With more than 1000 rows of the future in front nothing was deleted for its age any more, for as long as the
    clock had been ahead. Where fewer are old than are of the future, it may be this clock that is wrong."""
    day_s, now = 86_400, time.time()
    database = connect(where)
    tables = Tables(database)
    times = [*[now + 900 * day_s] * ahead, *[now - 9 * day_s] * after, *[now] * 5]
    for start in range(0, len(times), 1000):
        part = list(enumerate(times[start : start + 1000], start))
        tables.write([entry(manifest, str(i), time=at) for i, at in part])
    while tables.trim(10**6, now - 7 * day_s, 10**12, now)[0]:
        pass
    assert database.fetch("SELECT count(*) FROM decisions") == [(left,)]
    database.close()


def test_a_clock_that_is_set_forward_deletes_nothing(
    where: str, manifest: bundle.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = [time.time()]
    monkeypatch.setattr(work, "Clock", lambda: Clock(lambda: wall[0], lambda: 0.0))
    with Kept(where, ledger_max_age_days=7) as kept:
        kept.ledger.record(entry(manifest, "before", time=wall[0]))
        until(lambda: kept.rows("written") == 1)
        wall[0] += 100 * 86_400
        kept.ledger.record(entry(manifest, "meanwhile", time=wall[0]))
        until(lambda: kept.rows("written") == 2)
        wall[0] -= 100 * 86_400
        kept.ledger.record(entry(manifest, "after", time=wall[0]))
        until(lambda: kept.rows("written") == 3)
    assert read(where, "SELECT request_id FROM decisions ORDER BY row") == [("before",), ("meanwhile",), ("after",)]


def test_a_clock_that_is_wrong_at_the_start_deletes_nothing(
    where: str, manifest: bundle.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it after another start, by when there are rows of the same clock."""
    wall = [time.time()]
    monkeypatch.setattr(work, "Clock", lambda: Clock(lambda: wall[0], lambda: 0.0))
    for name, ahead in (("right", 0.0), ("wrong", 700 * 86_400), ("again", 3600)):
        wall[0] += ahead
        with Kept(where, ledger_max_age_days=7) as kept:
            kept.ledger.record(entry(manifest, name, time=wall[0]))
            until(lambda kept=kept: kept.rows("written") == 1)  # type: ignore[misc]
    assert read(where, "SELECT request_id FROM decisions ORDER BY row") == [("right",), ("wrong",), ("again",)]


def test_a_file_that_is_deleted_meanwhile_is_made_anew(tmp_path: Path, manifest: bundle.Manifest) -> None:
    """SQLite went on in what nobody could open any more, and labels that were answered were gone with the process."""
    where = tmp_path / "ledger.sqlite3"
    with Kept(str(where)) as kept:
        kept.ledger.record(entry(manifest, "before"))
        until(lambda: kept.rows("written") == 1)
        where.unlink()
        kept.ledger.record(entry(manifest, "after"))
        until(lambda: kept.rows("written") == 2)
        assert kept.failures() == 1
        assert kept.label("after", 0, "red").outcome == "correct"
        until(lambda: kept.ledger.tally(manifest).images.total() == 2)  # type: ignore[union-attr]
    assert read(
        str(where), "SELECT request_id, f.label FROM decisions d JOIN feedback f ON f.decision_row = d.row"
    ) == [("after", "red")]


@pytest.mark.parametrize("linked", [False, True])
def test_a_backup_that_is_put_in_its_place_is_not_mixed_with_it(
    tmp_path: Path, manifest: bundle.Manifest, linked: bool
) -> None:
    where, backup = tmp_path / "ledger.sqlite3", tmp_path / "backup"
    if linked:
        (tmp_path / "disk").mkdir()
        where.symlink_to(tmp_path / "disk" / "a.sqlite3")
    with Kept(str(where)) as kept:
        kept.ledger.record(entry(manifest, "saved"))
        until(lambda: kept.rows("written") == 1)
        with sqlite3.connect(where) as source, sqlite3.connect(backup) as copy:
            source.backup(copy)
        for i in range(50):
            kept.ledger.record(entry(manifest, f"lost {i}"))
        until(lambda: kept.rows("written") == 51)
        backup.replace(where.resolve())
        kept.ledger.record(entry(manifest, "after"))
        until(lambda: kept.rows("written") == 52)
        with pytest.raises(NotFound):
            kept.label("lost 7", 0, "red")
    assert read(str(where), "SELECT request_id FROM decisions ORDER BY row") == [("saved",), ("after",)]
    assert read(str(where), "PRAGMA integrity_check") == [("ok",)]


def test_a_row_number_is_given_once(where: str, manifest: bundle.Manifest) -> None:
    """When all rows had gone SQLite began again at 1, which whoever had read up to 50 never saw."""
    with Kept(where, ledger_max_age_days=7) as kept:
        for i in range(50):
            kept.ledger.record(entry(manifest, str(i), time=time.time() - 8 * 86_400))
        until(lambda: kept.rows("written") == 50)
        until(lambda: read(where, "SELECT min(row), max(row) FROM decisions") == [(50, 50)])
        kept.ledger.record(entry(manifest, "new"))
        until(lambda: read(where, "SELECT row FROM decisions") == [(51,)])


def test_retention_by_bytes(where: str, manifest: bundle.Manifest) -> None:
    """300 rows of 20 kB against a limit of 1 MB: the newest 51 stay, and the file does not grow far beyond it."""
    size, limit = 20_000, 2**20
    with Kept(where, ledger_max_bytes=limit) as kept:
        for first in range(0, 300, 10):
            for i in range(first, first + 10):
                kept.ledger.record(entry(manifest, str(i), embedding=os.urandom(size), keep_probability=1.0))
            until(lambda first=first: kept.rows("written") == first + 10)  # type: ignore[misc]
        until(lambda: read(where, "SELECT bytes FROM ledger")[0][0] <= limit)
    rows, oldest = read(where, "SELECT count(*), min(row) FROM decisions")[0]
    assert (rows, oldest) == (limit // (size + ROW_BYTES), 301 - rows)
    assert read(where, "SELECT bytes FROM ledger") == [(rows * (size + ROW_BYTES),)]
    if not where.startswith("postgresql"):  # which gives the room of deleted rows to new ones after a vacuum
        assert Path(where).stat().st_size < 3 * limit


def test_a_ledger_in_memory_is_bounded(manifest: bundle.Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "MEMORY_BYTES", 2**20)
    with Kept(MEMORY) as kept:
        for i in range(200):
            kept.ledger.record(entry(manifest, str(i), embedding=bytes(50_000)))
            if i % 10 == 9:
                until(lambda i=i: kept.rows("written") == i + 1)  # type: ignore[misc]
        until(lambda: 0 < kept.metrics.ledger_bytes._value.get() < 3 * 2**20)
    assert kept.rows("dropped") == 0


@contextmanager
def locked(where: str) -> Iterator[None]:
    """Somebody else keeps everybody out."""
    if where.startswith("postgresql"):
        import psycopg

        with psycopg.connect(where) as connection:
            connection.execute("LOCK TABLE tailguard.decisions IN ACCESS EXCLUSIVE MODE")
            yield
    else:
        other = sqlite3.connect(where, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.close()


def test_a_locked_ledger_is_counted_and_its_rows_wait(where: str, manifest: bundle.Manifest) -> None:
    with Kept(where) as kept:
        kept.ledger.record(entry(manifest, "before"))
        until(lambda: kept.rows("written") == 1)
        with locked(where):
            for i in range(50):
                kept.ledger.record(entry(manifest, str(i)))
            until(lambda: kept.failures() >= 2)
            with pytest.raises(NotReady, match="cannot be written now"):
                kept.label("before", 0, "red")
            assert kept.rows("written") == 1
        until(lambda: kept.rows("written") == 51)
        assert kept.label("49", 0, "red").outcome == "correct"
        assert kept.rows("dropped") == 0
    assert read(where, "SELECT count(*) FROM decisions") == [(51,)]
    assert read(where, "SELECT count(*) FROM feedback") == [(1,)]


def test_a_full_queue_drops_and_counts(where: str, manifest: bundle.Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "QUEUE_ROWS", 5)
    kept = Kept(where)
    kept.ledger.record(entry(manifest, "before"))
    until(lambda: kept.rows("written") == 1)
    with locked(where):
        kept.ledger.record(entry(manifest, "first"))
        until(lambda: kept.failures() >= 1)
        for i in range(2000):
            kept.ledger.record(entry(manifest, str(i)))
        assert 900 <= kept.rows("dropped") <= 1996  # one less has room where "first" is still queued
        with pytest.raises(NotReady):
            kept.label("before", 0, "red")
        dropped = kept.rows("dropped")
        kept.ledger.close(0.2)
    assert kept.rows("dropped") + kept.rows("written") == 2002  # nothing vanishes uncounted
    assert kept.rows("dropped") > dropped


def test_a_full_disk_is_counted_and_its_rows_wait(
    tmp_path: Path, manifest: bundle.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = True

    class Full(Sqlite):
        def __init__(self, where: str) -> None:
            super().__init__(where)
            if full:
                self.execute("PRAGMA max_page_count = 20")

    monkeypatch.setattr(work, "connect", Full)
    path = str(tmp_path / "ledger.sqlite3")
    with Kept(path) as kept:
        for i in range(2000):
            kept.ledger.record(entry(manifest, str(i)))
        until(lambda: kept.failures() >= 1)
        assert kept.rows("written") == 0
        full = False
        until(lambda: kept.rows("written") == 2000)
    assert read(path, "SELECT count(*) FROM decisions") == [(2000,)]
    assert read(path, "SELECT images FROM tallies") == [(2000,)]


def test_a_connection_that_breaks_is_made_anew(server: Path, manifest: bundle.Manifest) -> None:
    where = postgres.new_database(server, "broken")
    with Kept(where) as kept:
        kept.ledger.record(entry(manifest, "a"))
        until(lambda: kept.rows("written") == 1)
        ended = read(
            where,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid()",
        )
        assert ended == [(True,)]
        kept.ledger.record(entry(manifest, "b"))
        until(lambda: kept.rows("written") == 2)
        assert kept.label("b", 0, "red").outcome == "correct"


def test_a_place_that_cannot_be_opened_fails_no_start(tmp_path: Path, manifest: bundle.Manifest) -> None:
    (tmp_path / "ledger").write_bytes(SQLITE_MAGIC + b"damaged" * 1000)
    kept = Kept(str(tmp_path / "ledger"))
    kept.ledger.record(entry(manifest, "a"))
    until(lambda: kept.failures() >= 1)
    kept.ledger.close(0.1)
    assert kept.rows("dropped") == 1


def test_in_memory_and_off(manifest: bundle.Manifest) -> None:
    with Kept(MEMORY) as kept:
        kept.ledger.record(entry(manifest, "a"))
        assert kept.label("a", 0, "red").outcome == "correct"
    assert Ledger.open(Settings(ledger="off"), Metrics(), kept._on_feedback) is None


def test_places_that_can_never_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="there is no folder /nowhere"):
        check("/nowhere/ledger.sqlite3")
    with pytest.raises(SettingsError, match=r"names mysql://…: give the path"):
        check("mysql://me:hunter2@host/x")
    with pytest.raises(SettingsError, match="is a folder: give the path of a file in it"):
        check(str(tmp_path))
    check(str(tmp_path / "new.sqlite3"))
    (tmp_path / "empty.sqlite3").touch()
    check(str(tmp_path / "empty.sqlite3"))
    (tmp_path / "README.md").write_text("# no database, and nothing may be written there\n")
    for other in (str(tmp_path / "README.md"), "/dev/null"):  # was an error in the log at each attempt, for ever
        with pytest.raises(SettingsError, match=f"{other} is no SQLite file"):
            check(other)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(SettingsError, match=r"pip install 'tailguard\[postgres\]'"):
        check("postgresql://me:hunter2@host/x")


def test_a_look_at_the_file_leaves_the_locks_of_its_connections(tmp_path: Path, manifest: bundle.Manifest) -> None:
    """Another process that came and went deleted the log of a ledger in use: what was written from then on was lost."""
    where = str(tmp_path / "ledger.sqlite3")
    elsewhere = f"import sqlite3; c = sqlite3.connect({where!r}); print(*c.execute('SELECT count(*) FROM decisions'))"

    def seen_elsewhere() -> str:
        return subprocess.run(
            [sys.executable, "-c", elsewhere + "; c.close()"], capture_output=True, text=True, check=True
        ).stdout.strip()

    with Kept(where) as kept:
        kept.ledger.record(entry(manifest, "a"))
        until(lambda: kept.rows("written") == 1)
        check(where)
        assert seen_elsewhere() == "(1,)"
        kept.ledger.record(entry(manifest, "b"))
        until(lambda: kept.rows("written") == 2)
        assert seen_elsewhere() == "(2,)"


@pytest.mark.parametrize("where", [" ", "OFF", "Off", ":Memory:", "ledger.sqlite3 ", "file:x?mode=memory"])
def test_no_file_is_made_of_what_means_none(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With OFF every decision was written to a file of that name, where whoever wrote it wanted no ledger."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=f"LEDGER={re.escape(repr(where))} would be a file so named"):
        check(where)


def test_a_bad_url_is_refused_without_its_password() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(SettingsError) as caught:
        check("postgresql://me:hunter2@host/x?hunter2")
    assert "hunter2" not in str(caught.value)
    shown = Settings(ledger="postgresql://me:hunter2@db:5432/ledger?sslpassword=hunter2").printable()
    assert shown["ledger"] == "postgresql://db:5432/ledger"


ENDLESS = """
import sys, time
from tests.service.ledger.test_ledger import Kept, entry
from service.contract import bundle
kept, manifest, i = Kept(sys.argv[1]), bundle.read(sys.argv[2]), 0
while True:
    for _ in range(100):
        kept.ledger.record(entry(manifest, "r", i))
        i += 1
    print(int(kept.rows("written")), flush=True)
    time.sleep(0.005)
"""


def test_kill_damages_nothing_and_takes_only_what_was_not_committed(tmp_path: Path, tiny_bundle: Path) -> None:
    path = str(tmp_path / "ledger.sqlite3")
    command = [sys.executable, "-c", ENDLESS, path, str(tiny_bundle)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        committed = next(n for line in process.stdout if (n := int(line)) > 5000)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert read(path, "PRAGMA integrity_check") == [("ok",)]
    rows, last = read(path, "SELECT count(*), max(position) FROM decisions")[0]
    assert rows >= committed
    assert last == rows - 1  # a prefix of what was recorded, without holes
    assert read(path, "SELECT sum(images) FROM tallies") == [(rows,)]


def test_term_loses_no_row(where: str, tiny_bundle: Path) -> None:
    answered = 0
    with serving(BUNDLE=str(tiny_bundle), LEDGER=where) as (process, port):
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S) as client:
            files = [("files", ("a.png", tiny.photo(), "image/png"))] * 20
            for _ in range(5):
                answered += len(client.post("/classify/batch", files=files).raise_for_status().json()["results"])
        process.send_signal(signal.SIGTERM)  # within a fifth of a second of the last answer
        assert process.wait(LIMIT_S) == 0
    assert answered == 100
    assert read(where, "SELECT count(*), count(DISTINCT position) FROM decisions") == [(100, 20)]
    if not where.startswith("postgresql"):
        assert os.listdir(Path(where).parent) == ["ledger.sqlite3"]  # the write-ahead log is in the file
