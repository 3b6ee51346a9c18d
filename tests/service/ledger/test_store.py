"""service/ledger/store.py: the same of a folder, an address of fsspec and memory; a folder's files are whole."""

import hashlib
import os
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from structlog.testing import capture_logs

from service.errors import SettingsError
from service.ledger import store
from service.ledger.files import Folder, Memory
from service.ledger.store import Store, StoreTaken, key_of, open_store, store_at
from service.ledger.thumbnails import thumbnail
from service.ledger.users import ALIVE_S, User
from service.settings import Settings
from service.settings.places import ROOT
from tests.service import s3

DATA = b"the bytes of a file"
KEY, OTHER = (hashlib.sha256(data).hexdigest() for data in (DATA, b"other"))


@pytest.fixture(params=["folder", "fsspec", "s3", "memory"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return store_at(str(tmp_path / "images"))
    if request.param == "fsspec":
        pytest.importorskip("fsspec")
        return store_at(f"memory://{tmp_path.name}")
    if request.param == "s3":
        return store_at(request.getfixturevalue("s3_address"))
    return Store(Memory())


def test_a_file_is_found_by_its_key_until_it_is_deleted(opened: Store) -> None:
    assert key_of(DATA) == KEY
    assert opened.get(KEY) is opened.thumbnail(KEY) is None
    assert not opened.has(KEY)
    for small in (b"small", b"small"):  # twice is once
        opened.put(KEY, DATA, small)
    assert (opened.get(KEY), opened.thumbnail(KEY), opened.has(KEY)) == (DATA, b"small", True)
    for _ in range(2):
        opened.delete([KEY, OTHER])
        assert opened.get(KEY) is opened.thumbnail(KEY) is None
        assert not opened.has(KEY)
    opened.put(KEY, DATA, None)
    assert (opened.get(KEY), opened.thumbnail(KEY)) == (DATA, None)


def test_what_was_left_behind_is_nothing_to_one_who_may_only_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export, or the start on a disk that is read-only by now, ended with the error of a file of no concern."""
    left = tmp_path / "images" / "tmp" / "1-2-3-left"
    left.parent.mkdir(parents=True)
    left.write_bytes(DATA)
    os.utime(left, (0, 0))

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", denied)
    assert store_at(str(tmp_path / "images")).get(KEY) is None


def test_what_is_not_the_file_is_not_given(opened: Store) -> None:
    opened.put(KEY, DATA[:5], None)  # as a disk that lost power may leave it
    assert opened.get(KEY) is None


@pytest.mark.parametrize(
    "key", ["", "../../etc/passwd", KEY + "/..", KEY[:-1] + "/", KEY.upper(), KEY + "\n", "ledger"]
)
def test_a_key_is_no_path(opened: Store, key: str) -> None:
    for call in (opened.get, opened.thumbnail, lambda key: opened.delete([key]), opened.has):
        with pytest.raises(ValueError, match="is no key of an image"):
            call(key)


def test_a_store_belongs_to_one_ledger(opened: Store) -> None:
    for _ in range(2):
        opened.claim(User("one", "here"))
    with pytest.raises(StoreTaken, match="holds the images of another ledger: set TAILGUARD_STORE"):
        opened.claim(User("other", "here"))


def test_two_copies_of_a_ledger_do_not_use_a_store_at_once(opened: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a copy deletes, its original may refer to. One on another machine may have been moved there: it waits."""
    opened.claim(User("one", "here"))
    with pytest.raises(
        StoreTaken, match=r"another copy of this ledger, here, as of \d+ s ago.*set TAILGUARD_STORE.*'user'"
    ):
        opened.claim(User("one", "there"))
    opened.claim(User("one", "here"))
    now = time.time() + ALIVE_S + 1
    monkeypatch.setattr(time, "time", lambda: now)
    with capture_logs() as logs:
        opened.claim(User("one", "there"))
        opened.claim(User("one", "there"))
    assert [log["copy"] for log in logs] == ["here"]
    with pytest.raises(StoreTaken, match="another copy of this ledger, there"):
        opened.claim(User("one", "here"))


def test_a_full_disk_is_no_reason_to_delete_nothing(opened: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may not write that it uses the store could never make room there."""
    opened.claim(User("one", "here"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(opened._files, "write", full)
    opened.claim(User("one", "here"))
    now = time.time() + ALIVE_S + 1
    monkeypatch.setattr(time, "time", lambda: now)
    with pytest.raises(OSError, match="No space left"):
        opened.claim(User("one", "there"))


def test_half_of_what_was_said_of_the_user_is_nothing(opened: Store) -> None:
    opened.claim(User("one", "here"))
    opened._files.write("user", b'["one", "he')
    opened.claim(User("one", "there"))


@pytest.mark.skipif(bool(s3.missing()), reason=str(s3.missing()))
def test_object_stores_say_what_they_do_not_delete(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """s3fs deletes many with one request and leaves out what was refused: a forgotten image would stay, and count as
    deleted."""
    import s3fs

    store = store_at(s3_address)
    for data in (DATA, b"other"):
        store.put(key_of(data), data, None)
    one_by_one = s3fs.S3FileSystem._rm_file

    async def refused(system: object, path: str, **options: object) -> None:
        if KEY in path:
            raise PermissionError("Access Denied")
        await one_by_one(system, path, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_rm_file", refused)
    with pytest.raises(PermissionError):
        store.delete([KEY, OTHER])
    assert (store.has(KEY), store.has(OTHER)) == (True, False)


def test_a_folder_has_two_levels_and_no_temporary_file_stays(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    store_at(str(folder)).put(KEY, DATA, b"small")
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == [f"{KEY[:2]}/{KEY[2:4]}/{KEY}", f"{KEY[:2]}/{KEY[2:4]}/{KEY}.jpg"]


def test_temporary_files_of_killed_processes_are_swept(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    old, new = tmp_path / "tmp" / "old", tmp_path / "tmp" / "new"  # the new one may be another replica's
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 1000, time.time() - 1000))
    store_at(str(tmp_path))
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == ["new"]


WRITES = """
import sys
from pathlib import Path
from service.ledger.files import Folder
from service.ledger.store import Store, key_of
store, i = Store(Folder(Path(sys.argv[1]))), 0
while True:
    data = i.to_bytes(4, "big") * 250_000
    store.put(key_of(data), data, data[:1000])
    i += 1
    print(i, flush=True)
"""


def test_kill_leaves_no_half_written_file(tmp_path: Path) -> None:
    for _ in range(3):
        command = [sys.executable, "-c", WRITES, str(tmp_path / "images")]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            next(n for line in process.stdout if (n := int(line)) > 20)
            process.kill()
    opened = Store(Folder(tmp_path / "images"))
    found = [path.name for path in (tmp_path / "images").rglob("*") if store.KEY.fullmatch(path.name)]
    assert len(found) > 20
    assert all(opened.get(key) is not None and opened.thumbnail(key) is not None for key in found)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path)

    def half(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:5])
        raise OSError(28, "No space left on device")

    folder.write("a/b/c", DATA)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", half)
        with pytest.raises(OSError, match="No space left"):
            folder.write("a/b/d", DATA)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["c"]


def test_places_by_the_settings(tmp_path: Path) -> None:
    assert open_store(Settings()) is None
    assert open_store(Settings(keep="all")) is not None
    beside = open_store(Settings(ledger=str(tmp_path / "l.sqlite3")))
    assert beside is not None
    beside.put(KEY, DATA, None)
    assert (tmp_path / "l.sqlite3.images" / KEY[:2] / KEY[2:4] / KEY).read_bytes() == DATA
    assert open_store(Settings(ledger="postgresql://db/x")) is None
    there = store_at(f"file://{tmp_path}/other")
    there.put(KEY, DATA, None)
    assert (tmp_path / "other").is_dir()


def test_places_that_can_never_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    for address in (str(tmp_path / "file"), str(tmp_path / "no" / "images")):
        with pytest.raises(SettingsError, match=f"TAILGUARD_STORE={address}: give the path of a folder in a folder"):
            store_at(address)
    for address in ("https://host/images", "ftp://host/images"):  # fsspec knows them, for reading
        with pytest.raises(SettingsError, match=r"TAILGUARD_STORE names .*://…, .*: give a folder, or s3://"):
            store_at(address)
    pytest.importorskip("fsspec")
    with pytest.raises(SettingsError, match=r"names cloud://…, which fsspec does not know"):
        store_at("cloud://bucket")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)  # where another test has used it
    with pytest.raises(SettingsError, match=r"names s3://… and its package is not installed: .*s3fs"):
        store_at("s3://bucket/images")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(SettingsError, match=r"fsspec is not installed: pip install 'tailguard\[store\]'"):
        store_at("s3://bucket/images")


def test_a_thumbnail_is_upright_small_and_of_the_same_shape() -> None:
    pixels = np.zeros((300, 600, 3), np.uint8)
    pixels[:, :300] = (255, 0, 0)  # its left half is red
    file, turned = BytesIO(), Image.Exif()
    turned[0x0112] = 6  # to be shown turned by 90 degrees clockwise: what was left is above
    Image.fromarray(pixels).save(file, "JPEG", quality=95, exif=turned)
    small = Image.open(BytesIO(thumbnail(file.getvalue(), 10**6)))
    assert (small.format, small.size) == ("JPEG", (80, 160))
    above, below = np.asarray(small)[:70].mean((0, 1)), np.asarray(small)[90:].mean((0, 1))
    np.testing.assert_allclose(above, (254, 0, 0), atol=3)
    np.testing.assert_allclose(below, (0, 0, 0), atol=3)


def test_a_small_image_is_not_enlarged() -> None:
    file = BytesIO()
    Image.new("RGBA", (20, 1), (0, 0, 0, 0)).save(file, "PNG")
    small = Image.open(BytesIO(thumbnail(file.getvalue(), 10**6)))
    assert small.size == (20, 1)
    assert np.asarray(small).min() > 250  # transparent is white
