"""Kept files and the rows that refer to them, on both databases: stored once, deleted when nothing refers to them."""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from service.contract import bundle
from service.errors import Forbidden, NotFound
from service.ledger import images, keeper, work
from service.ledger.database import MEMORY, connect
from service.ledger.files import Folder
from service.ledger.rows import StoreNews
from service.ledger.store import key_of, store_at
from service.ledger.users import User
from service.observe.metrics import Metrics
from service.settings.places import ROOT
from tests.service import s3, tiny
from tests.service.ledger.test_ledger import Kept, entry, read, until

RED, BLUE = tiny.photo((220, 30, 30)), tiny.photo((10, 20, 200))
OF_THE_STORE = ("ledger", "user")
KEPT: dict[str, Any] = {"keep_probability": 1.0, "embedding": bytes(8)}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RETRY_S", "TICK_S"):
        monkeypatch.setattr(work, name, 0.05)
    monkeypatch.setattr(images, "LEFT_S", 0.3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "images"


def files(folder: Path) -> list[str]:
    """Keys of the files, with `.jpg` for thumbnails."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name not in OF_THE_STORE)


def keeping(where: str, folder: Path, **settings: Any) -> Kept:
    kept = Kept(where, **{"keep": "all", "store": str(folder)} | settings)
    until(lambda: _has_tables(where))
    return kept


def _has_tables(where: str) -> bool:
    database = connect(where)
    try:
        return database.has_table("images")
    finally:
        database.close()


def count(kept: Kept, outcome: str) -> float:
    return float(kept.metrics.store_images.labels(outcome)._value.get())


def forget(kept: Kept, request_id: str, **options: Any) -> int:
    return asyncio.run(kept.ledger.forget(request_id, **{"key": None} | options))


def states(where: str) -> list[Any]:
    return [row[0] for row in read(where, "SELECT state FROM images ORDER BY state")]


def test_the_same_file_a_thousand_times_is_stored_once(where: str, folder: Path, manifest: bundle.Manifest) -> None:
    with keeping(where, folder) as kept:
        for i in range(1000):
            kept.ledger.record(entry(manifest, "a", i, image=RED, **KEPT))
        kept.ledger.record(entry(manifest, "b", image=BLUE, **KEPT))
        kept.ledger.record(entry(manifest, "c"))
        until(lambda: count(kept, "kept") == 1001 and states(where) == ["kept", "kept"])
        red, blue = key_of(RED), key_of(BLUE)
        assert files(folder) == sorted([red, f"{red}.jpg", blue, f"{blue}.jpg"])
        stored = store_at(str(folder))
        assert (stored.get(red), stored.get(blue)) == (RED, BLUE)
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name not in OF_THE_STORE]
        assert read(where, "SELECT sum(bytes) FROM images") == [(sum(sizes),)]
        until(lambda: kept.metrics.store_bytes._value.get() == sum(sizes))
    keys = read(where, "SELECT image_key, count(*) FROM decisions GROUP BY image_key ORDER BY count(*) DESC")
    assert keys == [(red, 1000), *sorted([(blue, 1), (None, 1)], key=lambda row: keys.index(row))]


def test_forgetting_deletes_what_nothing_else_refers_to(where: str, folder: Path, manifest: bundle.Manifest) -> None:
    with keeping(where, folder) as kept:
        for request_id, image in (("a", RED), ("b", RED), ("b", BLUE)):
            position = 1 if image == BLUE else 0
            kept.ledger.record(entry(manifest, request_id, position, key="ci", image=image, **KEPT))
        kept.label("a", 0, "red", key="ci")
        until(lambda: states(where) == ["kept", "kept"])
        with pytest.raises(Forbidden, match="request b was sent with another API key"):
            forget(kept, "b", key="other")
        with pytest.raises(NotFound, match="no image of request z: nothing of it is kept"):
            forget(kept, "z")
        assert [forget(kept, "b", key="ci") for _ in range(2)] == [2, 2]  # again is no error
        until(lambda: states(where) == ["kept"])
        assert files(folder) == [key_of(RED), f"{key_of(RED)}.jpg"]  # request a still has it
        assert forget(kept, "a", key="other", may_review=True) == 1
        until(lambda: states(where) == [])
        assert files(folder) == []
        tally = kept.ledger.tally(manifest)
        assert tally is not None
        assert sum(tally.images.values()) == 3  # the images stay counted, their labels do not
        assert kept.labelled == [("red", "correct", 1), ("red", "correct", -1)]
        kept.label("a", 0, "red", key="ci")  # whoever has sent it may still say what it showed, and it counts once
        kept.label("a", 0, "red", key="ci")
        tally = kept.ledger.tally(manifest)
        assert tally is not None
        assert [n for key, n in tally.images.items() if key.truth] == [1]
    assert read(where, "SELECT count(*) FROM decisions") == [(3,)]
    left = "SELECT count(image_key), count(embedding), sum(sampled), count(keep_probability) FROM decisions"
    assert read(where, left) == [(0, 0, 0, 0)]
    assert read(where, "SELECT count(*) FROM feedback") == [(1,)]
    assert read(where, "SELECT bytes FROM ledger") == [(3 * 512,)]


def test_nothing_of_what_was_forgotten_stays_in_the_file(
    tmp_path: Path, folder: Path, manifest: bundle.Manifest
) -> None:
    """SQLite leaves what was deleted where it lay until the room is used again, unless it is told otherwise."""
    where, part = tmp_path / "ledger.sqlite3", bytes(range(1, 251))
    with keeping(str(where), folder) as kept:
        kept.ledger.record(entry(manifest, "a", image=RED, **KEPT | {"embedding": part * 40}))
        until(lambda: states(str(where)) == ["kept"])
    assert part in where.read_bytes()
    with keeping(str(where), folder) as kept:
        assert forget(kept, "a") == 1
    assert part not in where.read_bytes()


def test_what_is_still_queued_is_forgotten(where: str, folder: Path, manifest: bundle.Manifest) -> None:
    with keeping(where, folder) as kept:
        for _ in range(20):
            kept.ledger.record(entry(manifest, "a", image=RED, client_id="mine", **KEPT))
            assert forget(kept, "a") > 0
        kept.ledger.record(entry(manifest, "b", image=BLUE, client_id="mine", **KEPT))
        assert forget(kept, "mine") == 21  # by the id that the client gave, all of them
        until(lambda: states(where) == [] and files(folder) == [])
    assert read(where, "SELECT count(image_key) FROM decisions") == [(0,)]


def test_retention_of_rows_deletes_their_files(where: str, folder: Path, manifest: bundle.Manifest) -> None:
    with keeping(where, folder, ledger_max_rows=10) as kept:
        kept.ledger.record(entry(manifest, "a", image=BLUE, **KEPT))
        until(lambda: states(where) == ["kept"])
        for i in range(20):
            kept.ledger.record(entry(manifest, str(i), image=RED, **KEPT))
        until(lambda: read(where, "SELECT count(*) FROM decisions") == [(10,)] and states(where) == ["kept"])
        until(lambda: files(folder) == [key_of(RED), f"{key_of(RED)}.jpg"])


def picture(i: int) -> bytes:
    return tiny.photo((i % 256, i // 256, 7))


def test_a_store_over_its_limit_drops_the_oldest(where: str, folder: Path, manifest: bundle.Manifest) -> None:
    limit = 10_000
    with keeping(where, folder, store_max_bytes=limit) as kept:
        for i in range(40):
            kept.ledger.record(entry(manifest, "a", i, image=picture(i), **KEPT))
            if i % 8 == 7:
                until(lambda i=i: count(kept, "kept") == i + 1)  # type: ignore[misc]
        until(lambda: set(states(where)) == {"kept"} and read(where, "SELECT sum(bytes) FROM images")[0][0] <= limit)
        held = [row[0] for row in read(where, "SELECT image_key FROM decisions ORDER BY row")]
        newest = [key_of(picture(i)) for i in range(40) if held[i] is not None]
        assert held == [None] * (40 - len(newest)) + newest
        assert 5 <= len(newest) <= 20
        until(lambda: files(folder) == sorted([*newest, *(f"{key}.jpg" for key in newest)]))
    assert read(where, "SELECT count(keep_probability) FROM decisions") == [(40,)]


def test_a_store_over_its_limit_drops_what_has_a_label_last(
    where: str, folder: Path, manifest: bundle.Manifest
) -> None:
    with keeping(where, folder) as kept:
        for i in range(12):
            kept.ledger.record(entry(manifest, "a", i, image=picture(i), **KEPT))
            until(lambda i=i: count(kept, "kept") == i + 1)  # type: ignore[misc]
        asyncio.run(kept.ledger.label([1, 2, 3], kind="outlier", label="", source="review"))
        size = read(where, "SELECT sum(bytes) FROM images")[0][0]

    def held() -> list[int]:
        return [row for (row,) in read(where, "SELECT row FROM decisions WHERE image_key IS NOT NULL ORDER BY row")]

    with keeping(where, folder, store_max_bytes=size // 2):
        until(lambda: 4 <= len(held()) <= 6)
        assert held() == [1, 2, 3, *range(13 - len(held()) + 3, 13)]  # the oldest of the others are gone
    with keeping(where, folder, store_max_bytes=size // 6):
        until(lambda: 1 <= len(held()) <= 2)
        assert set(held()) < {1, 2, 3}
        assert 1 not in held()


def test_old_files_go(where: str, folder: Path, manifest: bundle.Manifest) -> None:
    with keeping(where, folder, store_max_age_days=1) as kept:
        for i, image in enumerate((RED, BLUE)):
            kept.ledger.record(entry(manifest, "a", i, image=image, **KEPT))
        until(lambda: states(where) == ["kept", "kept"])
        database = connect(where)
        aged = "UPDATE images SET time = ? WHERE image_key = ?"
        database.execute(aged, (time.time() - 2 * 86_400, key_of(RED)))
        database.close()
        until(lambda: files(folder) == [key_of(BLUE), f"{key_of(BLUE)}.jpg"])
        until(lambda: read(where, "SELECT image_key FROM decisions ORDER BY row") == [(None,), (key_of(BLUE),)])


def test_a_file_of_1970_is_no_older_than_what_came_before_it(
    where: str, folder: Path, manifest: bundle.Manifest
) -> None:
    """A small computer without a battery lost what it had kept before it had the time from the network."""
    with keeping(where, folder, store_max_age_days=1) as kept:
        for i, image in enumerate((RED, BLUE)):
            kept.ledger.record(entry(manifest, "a", i, image=image, **KEPT))
        until(lambda: states(where) == ["kept", "kept"])
        database = connect(where)
        database.execute("UPDATE images SET time = 12.5 WHERE image_key = ?", (key_of(BLUE),))
        until(lambda: kept.rows("written") == 2)
        for i in range(3):  # looks at what is old
            kept.label("a", 0, ("red", "outlier")[i % 2])
            time.sleep(2 * work.TICK_S)
        assert states(where) == ["kept", "kept"]
        database.execute("UPDATE decisions SET time = time - 2 * 86400 WHERE position = 0")  # and then it is
        database.close()
        kept.label("a", 1, "red")
        until(lambda: files(folder) == [key_of(RED), f"{key_of(RED)}.jpg"])


def test_a_store_that_fails_costs_images_and_nothing_else(
    where: str, folder: Path, manifest: bundle.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with keeping(where, folder) as kept, capture_logs() as logs:
        with monkeypatch.context() as broken:
            broken.setattr(Folder, "write", full)
            for i in range(10):
                kept.ledger.record(entry(manifest, "a", i, image=picture(i), **KEPT))
            assert kept.label("a", 0, "red").outcome == "correct"
            until(lambda: count(kept, "failed") == 10 and states(where) == [])
        kept.ledger.record(entry(manifest, "b", image=RED, **KEPT))
        until(lambda: states(where) == ["kept"])
        assert (kept.rows("written"), kept.rows("dropped"), count(kept, "kept")) == (11, 0, 1)
    events = [log["event"] for log in logs if "image store" in log["event"]]
    assert events == ["the image store fails, images are not kept", "the image store works again"]
    assert read(where, "SELECT request_id FROM decisions WHERE image_key IS NOT NULL") == [("b",)]
    assert files(folder) == [key_of(RED), f"{key_of(RED)}.jpg"]


def test_a_store_with_room_for_small_files_alone_says_so_once(
    where: str, folder: Path, manifest: bundle.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk that was nearly full every second image was a line of the log, which may lie on the same disk."""
    write, large = Folder.write, b"large" * 1000

    def nearly_full(self: Folder, name: str, data: bytes) -> None:
        if data.endswith(large):
            raise OSError(28, "No space left on device")
        write(self, name, data)

    monkeypatch.setattr(Folder, "write", nearly_full)
    with keeping(where, folder) as kept, capture_logs() as logs:
        for i in range(10):
            image = picture(i) + (large if i % 2 else b"")
            kept.ledger.record(entry(manifest, "a", i, image=image, **KEPT))
        until(lambda: (count(kept, "failed"), count(kept, "kept")) == (5, 5))
    events = [log["event"] for log in logs if "image store" in log["event"]]
    assert events == ["the image store fails, images are not kept", "the image store works again"]


def test_a_deletion_that_fails_is_done_later(
    where: str, folder: Path, manifest: bundle.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with keeping(where, folder) as kept:
        kept.ledger.record(entry(manifest, "a", image=RED, **KEPT))
        until(lambda: states(where) == ["kept"])
        with monkeypatch.context() as broken:
            broken.setattr(Folder, "delete", denied)
            forget(kept, "a")
            until(lambda: states(where) == ["leaving"])
            kept.ledger.record(entry(manifest, "b", image=RED, **KEPT))  # none is stored under a key that is leaving
            until(lambda: count(kept, "dropped") == 1)
        until(lambda: states(where) == [])
        assert files(folder) == []
        kept.ledger.record(entry(manifest, "c", image=RED, **KEPT))
        until(lambda: states(where) == ["kept"])
    assert read(where, "SELECT request_id FROM decisions WHERE image_key IS NOT NULL") == [("c",)]


@pytest.mark.parametrize("state", ["arriving", "leaving"])
def test_what_is_to_be_done_does_not_wait_for_a_clock_that_was_ahead(
    where: str, folder: Path, manifest: bundle.Manifest, state: str
) -> None:
    """A file to be forgotten stayed for as long as the clock had been ahead when it could not be deleted."""
    with keeping(where, folder) as kept:
        kept.ledger.record(entry(manifest, "a", image=RED, **KEPT))
        until(lambda: states(where) == ["kept"])
    database = connect(where)
    if state == "leaving":
        database.execute("UPDATE decisions SET image_key = NULL")
    database.execute("UPDATE images SET state = ?, time = ?", (state, time.time() + 86_400 * 365))
    database.close()
    with keeping(where, folder):
        until(lambda: states(where) == ([] if state == "leaving" else ["kept"]))
    assert files(folder) == ([] if state == "leaving" else [key_of(RED), f"{key_of(RED)}.jpg"])


def test_a_look_that_fails_half_way_does_not_end_the_keeper(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file could be read and its thumbnail not: the thread ended, and no image was kept until the next start."""
    told: list[StoreNews] = []
    read_file, key = Folder.read, key_of(RED)

    def without_thumbnails(self: Folder, name: str) -> bytes | None:
        if name.endswith(".jpg"):
            raise OSError(5, "Input/output error")
        return read_file(self, name)

    kept = keeper.Keeper(store_at(str(folder)), Metrics(), 1000, told.append)
    kept.serve(User("l", "here"))
    kept.put(key, RED, known=False)
    until(lambda: told)
    with monkeypatch.context() as broken:
        broken.setattr(Folder, "read", without_thumbnails)
        kept.look_for([key])
        kept.put(key_of(BLUE), BLUE, known=False)
        until(lambda: len(told) == 2)
    kept.look_for([key])
    until(lambda: len(told) == 3)
    kept.close(1)
    assert [news.stored[0][0] for news in told] == [key, key_of(BLUE), key]


def test_a_store_that_was_deleted_is_filled_again(where: str, folder: Path, manifest: bundle.Manifest) -> None:
    with keeping(where, folder) as kept:
        kept.ledger.record(entry(manifest, "a", image=RED, **KEPT))
        until(lambda: states(where) == ["kept"])
        shutil.rmtree(folder)
        kept.ledger.record(entry(manifest, "b", image=BLUE, **KEPT))
        until(lambda: states(where) == ["kept", "kept"])
        assert files(folder) == [key_of(BLUE), f"{key_of(BLUE)}.jpg"]
        reader = kept.ledger.reader()
        assert reader.image(key_of(RED)) is reader.thumbnail(key_of(RED)) is None
        reader.close()
        kept.ledger.record(entry(manifest, "again", image=RED, **KEPT))  # it was counted as kept, and was not there
        until(lambda: len(files(folder)) == 4)
        shutil.rmtree(folder)
    with keeping(where, folder) as kept:
        kept.ledger.record(entry(manifest, "c", image=RED, **KEPT))
        until(lambda: len(files(folder)) == 2)
        assert forget(kept, "a") == 1  # a row whose file was gone
    assert count(kept, "failed") == 0


def test_a_store_of_another_ledger_is_left_alone(tmp_path: Path, folder: Path, manifest: bundle.Manifest) -> None:
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    with keeping(one, folder) as kept:
        kept.ledger.record(entry(manifest, "a", image=RED, **KEPT))
        until(lambda: states(one) == ["kept"])
    with keeping(other, folder) as kept, capture_logs() as logs:
        kept.ledger.record(entry(manifest, "a", image=RED, **KEPT))
        until(lambda: count(kept, "failed") == 1 and states(other) == [])
        forget(kept, "a")
    assert "holds the images of another ledger" in next(log["error"] for log in logs if "error" in log)
    assert files(folder) == [key_of(RED), f"{key_of(RED)}.jpg"]


def test_a_copy_of_a_ledger_deletes_nothing_of_its_original(
    tmp_path: Path, folder: Path, manifest: bundle.Manifest
) -> None:
    """Both have one id, so the copy was let in, and its retention deleted the files of rows that the original holds."""
    one, copy = tmp_path / "one", tmp_path / "copy"
    with keeping(str(one), folder) as kept:
        for request_id, image in (("a", RED), ("b", BLUE)):
            kept.ledger.record(entry(manifest, request_id, image=image, **KEPT))
        until(lambda: states(str(one)) == ["kept", "kept"])
    shutil.copy(one, copy)
    with keeping(str(copy), folder) as kept, capture_logs() as logs:
        forget(kept, "a")
        until(lambda: any("error" in log for log in logs))
        kept.ledger.record(entry(manifest, "c", image=tiny.photo((1, 2, 3)), **KEPT))
        until(lambda: count(kept, "failed") == 1)
    said = next(log["error"] for log in logs if "error" in log)
    assert f"is used by another copy of this ledger, {one}, as of" in said
    assert len(files(folder)) == 4
    with keeping(str(copy), tmp_path / "of-the-copy") as kept:  # the remedy
        kept.ledger.record(entry(manifest, "c", image=BLUE, **KEPT))
        until(lambda: len(files(tmp_path / "of-the-copy")) == 2)


@pytest.mark.parametrize("how", ["moved", "restored", "with its store"])
def test_a_ledger_that_was_moved_keeps_its_store(
    tmp_path: Path, folder: Path, manifest: bundle.Manifest, how: str
) -> None:
    one, now = tmp_path / "one", tmp_path / "now"
    with keeping(str(one), folder) as kept:
        kept.ledger.record(entry(manifest, "a", image=RED, **KEPT))
        until(lambda: states(str(one)) == ["kept"])
    shutil.copy(one, now)  # another file, as on another disk
    if how == "moved":
        one.unlink()
    elif how == "restored":
        now = now.replace(one)
    else:
        folder = Path(shutil.copytree(folder, tmp_path / "images-now"))
    with keeping(str(now), folder) as kept:
        assert forget(kept, "a") == 1
        until(lambda: files(folder) == [] and states(str(now)) == [])
    assert len(files(tmp_path / "images")) == (2 if how == "with its store" else 0)


def test_a_copy_of_a_database_deletes_nothing_of_its_original(
    server: Path, folder: Path, manifest: bundle.Manifest
) -> None:
    from tests.service import postgres

    one = postgres.new_database(server, "original")
    with keeping(one, folder) as kept:
        kept.ledger.record(entry(manifest, "a", image=RED, **KEPT))
        until(lambda: states(one) == ["kept"])
    copy = postgres.new_database(server, "copied", template="original")
    with keeping(copy, folder) as kept, capture_logs() as logs:
        forget(kept, "a")
        until(lambda: any("another copy of this ledger" in str(log.get("error")) for log in logs))
    assert len(files(folder)) == 2


def test_a_store_in_use_says_so_while_nothing_comes(
    tmp_path: Path, folder: Path, manifest: bundle.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy elsewhere would else take a quiet service's store."""
    monkeypatch.setattr(keeper, "RENEW_S", 0.05)
    where = str(tmp_path / "ledger.sqlite3")
    with keeping(where, folder) as kept:
        kept.ledger.record(entry(manifest, "a", image=RED, **KEPT))
        until(lambda: states(where) == ["kept"])
        said = (folder / "user").read_bytes()
        until(lambda: (folder / "user").read_bytes() not in (b"", said))


def test_a_slow_store_delays_nobody_and_is_bounded(
    where: str, folder: Path, manifest: bundle.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "HELD_BYTES", 10 * len(RED))
    write = Folder.write

    def slow(folder: Folder, name: str, data: bytes) -> None:
        time.sleep(0.05)
        write(folder, name, data)

    monkeypatch.setattr(Folder, "write", slow)
    with keeping(where, folder) as kept:
        started = time.monotonic()
        for i in range(50):
            kept.ledger.record(entry(manifest, "a", i, image=picture(i), **KEPT))
        kept.label("a", 0, "red")
        assert time.monotonic() - started < 1
        dropped = count(kept, "dropped")
        assert 30 <= dropped <= 45  # ten waited, and some more came after the first were stored
        until(lambda: count(kept, "kept") == 50 - dropped)
    assert read(where, "SELECT count(keep_probability), count(embedding) FROM decisions") == [(50 - dropped,) * 2]


def test_an_object_store_that_is_away_costs_images_and_nothing_else(
    where: str, s3_address: str, tmp_path: Path, manifest: bundle.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3.new_connections()
    with keeping(where, tmp_path, store=s3_address) as kept:
        started = time.monotonic()
        kept.ledger.record(entry(manifest, "a", image=RED, **KEPT))
        kept.label("a", 0, "red")
        assert time.monotonic() - started < 5
        until(lambda: count(kept, "failed") == 1 and states(where) == [])
    assert read(where, "SELECT count(*), count(image_key) FROM decisions") == [(1, 0)]


def test_what_waits_to_be_deleted_is_not_asked_for_again(
    folder: Path, manifest: bundle.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store slower than LEFT_S is not buried under the same deletions."""
    asked, told, delete = list[str](), list[StoreNews](), Folder.delete

    def slow(folder: Folder, names: list[str]) -> None:
        time.sleep(0.02)
        asked.extend(names)
        delete(folder, names)

    monkeypatch.setattr(Folder, "delete", slow)
    keep = keeper.Keeper(store_at(str(folder)), Metrics(), 10**6, told.append)
    keep.serve(User("one", "here"))
    keys = [key_of(picture(i)) for i in range(5)]
    for _ in range(20):
        keep.delete(keys)
    until(lambda: len(told) == 5)
    keep.put(keys[0], picture(0), known=False)
    keep.look_for([keys[0]])  # it is on its way: nothing is said of it until it is there
    keep.delete(keys[:1])  # and what was done once may be asked for again
    keep.close(10)
    assert len(asked) == 2 * 6
    assert [news.deleted or [key for key, _ in news.stored] for news in told] == [
        [key] for key in (*keys, *keys[:1] * 2)
    ]


def test_two_replicas_share_a_folder(server: Path, folder: Path, manifest: bundle.Manifest) -> None:
    from tests.service import postgres

    where = postgres.new_database(server, "two_replicas")
    with keeping(where, folder) as one, keeping(where, folder) as other:
        for i in range(200):
            for kept, name in ((one, "one"), (other, "other")):
                kept.ledger.record(entry(manifest, f"{name}-{i}", image=picture(i % 20), **KEPT))
        until(lambda: one.rows("written") + other.rows("written") == 400)
        for i in range(0, 200):  # each forgets what the other was sent
            forget(one, f"other-{i}")
            if i >= 100:
                forget(other, f"one-{i}")
        assert len(read(where, "SELECT DISTINCT image_key FROM decisions WHERE image_key IS NOT NULL")) == 20
        until(lambda: states(where) == ["kept"] * 20)
        for i in range(100):
            forget(other, f"one-{i}")
        until(lambda: states(where) == [] and files(folder) == [])
        assert count(one, "failed") == count(other, "failed") == 0


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_an_address_of_fsspec_is_a_store(
    where: str, kind: str, tmp_path: Path, manifest: bundle.Manifest, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("fsspec")
    address = f"memory://{tmp_path.name}-{len(where)}" if kind == "memory" else request.getfixturevalue("s3_address")
    with keeping(where, tmp_path, store=address) as kept:
        for i in range(20):
            kept.ledger.record(entry(manifest, str(i), image=picture(i % 10), **KEPT))
        until(lambda: states(where) == ["kept"] * 10)
        reader = kept.ledger.reader()
        keys = [row.image_key for row in reader.kept()]
        assert [reader.image(key or "") for key in keys] == [picture(i % 10) for i in range(20)]
        for i in range(19):
            forget(kept, str(i))
        until(lambda: states(where) == ["kept"])
        assert [reader.image(key or "") for key in keys] == [None] * 9 + [picture(9)] + [None] * 9 + [picture(9)]
        reader.close()


def test_what_a_request_pays_to_keep_its_image(tmp_path: Path, folder: Path, manifest: bundle.Manifest) -> None:
    """The hash of a megabyte alone takes longer than the tenth of a millisecond that is allowed."""
    image, rows = os.urandom(2**20), 20
    with keeping(str(tmp_path / "ledger"), folder) as kept:
        before = time.thread_time()
        for i in range(rows):
            kept.ledger.record(entry(manifest, "a", i, image=image, **KEPT))
        assert (time.thread_time() - before) / rows < 1e-4
        until(lambda: count(kept, "kept") == rows)


def test_a_store_in_memory_is_bounded(manifest: bundle.Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "MEMORY_BYTES", 10_000)
    with Kept(MEMORY, keep="all") as kept:
        for i in range(60):
            kept.ledger.record(entry(manifest, "a", i, image=picture(i), **KEPT))
            if i % 20 == 19:
                until(lambda i=i: count(kept, "kept") == i + 1)  # type: ignore[misc]
        reader = kept.ledger.reader()
        until(lambda: 0 < sum(row.image_key is not None for row in reader.kept()) <= 20)
        newest = reader.kept()[-1]
        assert newest.image_key is not None
        assert reader.image(newest.image_key) == picture(59)
        assert reader.image(key_of(picture(0))) is None
        reader.close()


ENDLESS = """
import sys, time
from pathlib import Path
from tests.service.ledger.test_keeping import KEPT, entry, keeping, picture
from service.contract import bundle
kept, manifest, i = keeping(sys.argv[1], Path(sys.argv[2])), bundle.read(sys.argv[3]), 0
while True:
    for _ in range(10):
        kept.ledger.record(entry(manifest, "r", i, image=picture(i), **KEPT))
        i += 1
    print(int(kept.rows("written")), flush=True)
    time.sleep(0.01)
"""


def test_kill_loses_no_committed_row_and_leaves_no_half_image(
    tmp_path: Path, folder: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = str(tmp_path / "ledger.sqlite3")
    command = [sys.executable, "-c", ENDLESS, where, str(folder), str(tiny_bundle)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        committed = next(n for line in process.stdout if (n := int(line)) > 300)
        process.kill()
    assert read(where, "PRAGMA integrity_check") == [("ok",)]
    rows = read(where, "SELECT position, image_key FROM decisions ORDER BY row")
    assert [row[0] for row in rows] == list(range(len(rows)))
    assert len(rows) >= committed
    for part in (folder / "tmp").iterdir():
        os.utime(part, (0, 0))
    monkeypatch.setattr(images, "LOST_S", 0.0)
    with keeping(where, folder):  # another start brings rows and files into agreement
        until(lambda: set(states(where)) == {"kept"})
        held = {row[0] for row in read(where, "SELECT DISTINCT image_key FROM decisions WHERE image_key IS NOT NULL")}
        until(lambda: {name for name in files(folder) if not name.endswith(".jpg")} == held)
        stored = store_at(str(folder))
        assert all(stored.get(key) is not None and stored.thumbnail(key) is not None for key in held)
        assert len(held) > 0
        assert list((folder / "tmp").iterdir()) == []
