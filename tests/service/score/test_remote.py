"""Inputs by address: found, read, refused as files of this machine are."""

import errno
import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from service.score import remote
from service.score.errors import ScoreError
from tests.service import ftp, tiny
from tests.service.score.test_score import score


@pytest.fixture
def store() -> Iterator[Any]:
    """fsspec's file system in this process, with a folder of images."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    for name in ("a/2.png", "a/b/1.PNG", "a/.hidden/3.png", "a/notes.txt"):
        system.pipe_file(f"/bucket/{name}", tiny.photo() if name.lower().endswith("png") else b"text")
    system.pipe_file("/bucket/a/huge.png", bytes(200))
    yield system
    system.store.clear()


def test_folders_patterns_and_files(store: Any) -> None:
    found = ["memory://bucket/a/2.png", "memory://bucket/a/b/1.PNG", "memory://bucket/a/huge.png"]
    assert remote.find("memory://bucket/a", every=False) == found
    assert remote.find("memory://bucket/a/", every=True) == sorted([*found, "memory://bucket/a/notes.txt"])
    assert remote.find("memory://bucket/a/*.png", every=False) == [found[0], found[2]]
    assert remote.find("memory://bucket/a/2.png", every=False) == found[:1]
    assert remote.find("memory://bucket/none", every=False) == []
    for odd in ("memory://bucket/b[1].png", "memory://bucket/b?.png"):
        store.pipe_file(odd.removeprefix("memory:/"), b"")
        assert remote.find(odd, every=False) == [odd]
    with pytest.raises(ScoreError, match="fsspec does not know nowhere://"):
        score("nowhere://b", "--out", "out.jsonl")


def test_what_is_left_out_is_named(store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A photograph whose name has no suffix went without a word; the mark of a folder, dir.png/, was an image."""
    for name in ("/bucket/b/photo", "/bucket/b/note.TXT", "/bucket/b/.DS_Store"):
        store.pipe_file(name, tiny.photo())
    store.store["/bucket/b/dir.png/"] = store.store["/bucket/b/photo"]  # as an object store has it
    with pytest.raises(ScoreError, match="memory://bucket/b holds no image: --all-files takes every file"):
        score("memory://bucket/b", "--out", tmp_path / "out.jsonl")
    said = capsys.readouterr().err
    assert "bucket/b: left out 2 whose name does not end like an image's (" in said
    assert all(part in said for part in (".txt 1", "(no suffix) 1", "left out 1 hidden item"))
    assert remote.find("memory://bucket/b", every=True) == ["memory://bucket/b/note.TXT", "memory://bucket/b/photo"]
    assert capsys.readouterr().err == ""


def test_rows_of_addresses(store: Any, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.jsonl"
    paths = tmp_path / "paths.txt"
    paths.write_text("memory://bucket/a/2.png\nmemory://bucket/gone.png\nmemory://bucket/a/huge.png\n")
    monkeypatch.setenv("TAILGUARD_MAX_BODY_BYTES", "150")
    assert len(tiny.photo()) <= 150
    assert score(paths, "--out", out, "--bundle", tiny_bundle) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["error"] for row in rows] == [None, "not-found", "body-too-large"]
    assert rows[0]["label"] == "red"


@pytest.mark.parametrize("given", ["memory://bucket/c", "memory://bucket/c/*.png", "memory://bucket/c/1.png", "list"])
def test_a_file_that_was_replaced_between_two_runs(
    given: str, store: Any, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object store tells it in its listing; the row of what had been there was kept, a damaged file's error too."""
    store.pipe_file("/bucket/c/1.png", b"damaged")
    if given == "list":
        (tmp_path / "list.txt").write_text("memory://bucket/c/1.png\n")
        given = str(tmp_path / "list.txt")
    arguments = (given, "--out", tmp_path / "out.jsonl", "--bundle", tiny_bundle)

    def full(out: Path, kinds: Any, rows: Any, *_: Any) -> None:
        assert [row["error"] for row in rows] == ["unsupported-media"]
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("service.score.outputs.write", full)
        with pytest.raises(ScoreError, match="No space left"):
            score(*arguments)
    store.pipe_file("/bucket/c/1.png", tiny.photo())
    assert score(*arguments) == 0
    (row,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert row["label"] == ("red" if "list" not in given else None)  # of a list nobody knows


def test_files_of_a_web_server(tiny_bundle: Path, tmp_path: Path) -> None:
    """Every one of them was looked for at http://http://… and not found."""
    pytest.importorskip("aiohttp", reason="fsspec reads from web servers with aiohttp")
    photos, out = tmp_path / "photos", tmp_path / "out.jsonl"
    photos.mkdir()
    for name in ("a b.png", "c.png"):
        (photos / name).write_bytes(tiny.photo())
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(photos))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        for given, names in (
            ("/", ["a%20b.png", "c.png"]),
            ("/c.png?signed=1", ["c.png?signed=1"]),
            ("/c*", ["c.png"]),
        ):
            assert score(url + given, "--out", out, "--bundle", tiny_bundle, "--overwrite") == 0
            rows = [json.loads(line) for line in out.read_text().splitlines()]
            assert [(row["path"], row["label"]) for row in rows] == [(f"{url}/{name}", "red") for name in names]
        server.shutdown()
        thread.join()


def test_a_web_server_that_does_not_answer_is_no_empty_folder(tmp_path: Path) -> None:
    """fsspec takes what it cannot reach for a folder without files: "holds no image", said `score`."""
    pytest.importorskip("aiohttp", reason="fsspec reads from web servers with aiohttp")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with pytest.raises(ScoreError, match=f"{url}/photos/ is not there: the server answers 404"):
            score(f"{url}/photos/", "--out", tmp_path / "out.jsonl")
        server.shutdown()
        thread.join()
    with pytest.raises(ScoreError, match=f"{url}/photos cannot be listed: Cannot connect to host 127.0.0.1"):
        score(f"{url}/photos", "--out", tmp_path / "out.jsonl")


def test_files_of_an_ftp_server(tiny_bundle: Path, tmp_path: Path) -> None:
    """The server that was asked was called "x", and a row's path lacked its host; threads had one connection."""
    out = tmp_path / "out.jsonl"
    names = [f"/photos/{i:02}.png" for i in range(40)]
    with ftp.server({name: tiny.photo() for name in names} | {"/photos/notes.txt": b"text"}) as address:
        arguments = ("--out", out, "--bundle", tiny_bundle, "--threads", "3", "--batch-images", "2")
        assert score(f"{address}/photos", *arguments) == 0
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert [(row["path"], row["label"]) for row in rows] == [(address + name, "red") for name in names]
        with pytest.raises(FileNotFoundError):
            remote.read(f"{address}/photos/none.png", 1000)
    with pytest.raises(ScoreError, match=r"ftp://host/a was given with a password.*FSSPEC_FTP_PASSWORD") as error:
        score("ftp://eva:s3cret@host/a", "--out", tmp_path / "other.jsonl")
    assert "s3cret" not in str(error.value)


def test_s3(s3_address: str, tiny_bundle: Path, tmp_path: Path) -> None:
    remote._opened.cache_clear()
    address = f"{s3_address}/photos"
    system, root = fsspec.core.url_to_fs(address)
    for i in range(3):
        system.pipe_file(f"{root}/{i}.png", tiny.photo())
    out = tmp_path / "out.jsonl"
    assert score(address, "--out", out, "--bundle", tiny_bundle) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["path"], row["label"]) for row in rows] == [(f"{address}/{i}.png", "red") for i in range(3)]


def test_a_version_in_a_key_is_not_passed_over(s3_address: str, tiny_bundle: Path, tmp_path: Path) -> None:
    """s3fs read a.png in its place, so the row of one file held the answer to another."""
    remote._opened.cache_clear()
    system, root = fsspec.core.url_to_fs(s3_address)
    key, name = root.partition("/")[2], "a.png?versionId=1.png"
    system.pipe_file(f"{root}/a.png", tiny.photo())
    system.call_s3("put_object", Bucket=root.partition("/")[0], Key=f"{key}/{name}", Body=tiny.photo((10, 20, 200)))
    out = tmp_path / "out.jsonl"
    assert score(s3_address, "--out", out, "--bundle", tiny_bundle) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["path"], row["label"]) for row in rows] == [
        (f"{s3_address}/a.png", "red"), (f"{s3_address}/{name}", None)
    ]  # fmt: skip
    assert "copy the file to another name" in rows[1]["error_detail"]
