"""A bundle from an address: whole, verified and cached, or refused in words; never half, whatever breaks."""

import functools
import hashlib
import http.server
import json
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import fsspec
import pytest

from service.__main__ import main
from service.bundles import addresses, kinds, watched
from service.bundles.addresses import fetched
from service.bundles.push import push
from service.contract import bundle
from service.contract.bundle import MANIFEST_FILE, BundleError
from tests import live
from tests.service import tiny


def digest_of(folder: Path) -> str:
    return hashlib.sha256((folder / MANIFEST_FILE).read_bytes()).hexdigest()


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's file system in this process."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def test_a_path_is_itself(tmp_path: Path) -> None:
    assert fetched(tmp_path / "b", tmp_path / "cache") == tmp_path / "b"
    assert not (tmp_path / "cache").exists()


def test_pushed_and_fetched(tiny_bundle: Path, tmp_path: Path, memory: Any) -> None:
    pinned = push(tiny_bundle, "memory://models/tiny/1/")
    assert pinned == f"memory://models/tiny/1#sha256={digest_of(tiny_bundle)}"
    for source in (pinned, "memory://models/tiny/1"):
        found = fetched(source, tmp_path / "cache")
        assert bundle.read(found) == bundle.read(tiny_bundle)
        assert {p.name: p.read_bytes() for p in found.rglob("*") if p.is_file()} == {
            p.name: p.read_bytes() for p in tiny_bundle.rglob("*") if p.is_file()
        }
    assert push(tiny_bundle, "memory://models/tiny/1") == pinned  # once more is no harm

    memory.store.clear()
    assert fetched(pinned, tmp_path / "cache") == found  # needs nobody
    assert fetched("memory://models/tiny/1", tmp_path / "cache") == found  # the copy fetched last
    with pytest.raises(BundleError, match=r"memory://models/tiny/2 cannot be fetched"):
        fetched("memory://models/tiny/2", tmp_path / "cache")


def test_a_pin_in_capitals_and_one_to_push_to(tiny_bundle: Path, tmp_path: Path, memory: Any) -> None:
    """Windows prints digests in capitals; what was pushed to an address with its pin could never be fetched."""
    pinned = push(tiny_bundle, "memory://models/tiny/1")
    address, mark, digest = pinned.partition("#sha256=")
    found = fetched(pinned, tmp_path / "cache")
    memory.store.clear()
    assert fetched(address + mark + digest.upper(), tmp_path / "cache") == found
    with pytest.raises(BundleError, match=r"is pinned to .*: push to memory://models/tiny/1, without #sha256=…"):
        push(tiny_bundle, pinned)
    assert not memory.store


def test_the_same_bundle_again_restores_what_is_damaged(tiny_bundle: Path, tmp_path: Path, memory: Any) -> None:
    """Push said where the bundle is, and nobody could fetch it from there."""
    push(tiny_bundle, "memory://models/tiny/1")
    graph, example = "/models/tiny/1/model.onnx", next(iter((tiny_bundle / "examples").iterdir())).name
    memory.pipe_file(graph, memory.cat_file(graph)[:-1] + b"x")
    memory.rm(f"/models/tiny/1/examples/{example}")
    with pytest.raises(BundleError):
        fetched("memory://models/tiny/1", tmp_path / "cache")
    push(tiny_bundle, "memory://models/tiny/1")
    assert bundle.read(fetched("memory://models/tiny/1", tmp_path / "cache")) == bundle.read(tiny_bundle)


@pytest.mark.parametrize("length", [0, 500])
def test_a_push_killed_within_the_manifest_is_gone_on_with(
    length: int, tiny_bundle: Path, tmp_path: Path, memory: Any
) -> None:
    """What nobody can fetch was taken for another bundle."""
    memory.pipe_file("/models/tiny/1/manifest.json", (tiny_bundle / MANIFEST_FILE).read_bytes()[:length])
    pinned = push(tiny_bundle, "memory://models/tiny/1")
    assert bundle.read(fetched(pinned, tmp_path / "cache")) == bundle.read(tiny_bundle)


@pytest.mark.parametrize("address", ["memory://", "memory:///", "s3://"])
def test_an_address_that_names_nothing(
    address: str, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No folder called s3: appears here, and nobody is told that the bundle is at s3:#sha256=…"""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        BundleError, match=r"(memory|s3):\S* names nothing behind its kind: give an address such as s3:"
    ):
        push(tiny_bundle, address)
    with pytest.raises(BundleError, match="names nothing behind its kind"):
        fetched(address, tmp_path / "cache")
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


def test_an_address_whose_bundle_changes(tiny_bundle: Path, tmp_path: Path, memory: Any) -> None:
    first = push(tiny_bundle, "memory://models/latest")
    old = fetched("memory://models/latest", tmp_path / "cache")
    second = tiny.write(tmp_path / "tiny" / "2", version="2")
    with pytest.raises(BundleError, match="holds another bundle: push to a new version"):
        push(second, "memory://models/latest")
    memory.store.clear()
    push(second, "memory://models/latest")
    new = fetched("memory://models/latest", tmp_path / "cache")
    assert bundle.read(new).version == "2"
    assert bundle.read(old).version == "1"
    assert fetched(first, tmp_path / "cache") == old
    assert fetched("memory://models/latest", tmp_path / "cache") == new

    memory.pipe_file("/models/latest/manifest.json", (tiny_bundle / MANIFEST_FILE).read_bytes())
    with pytest.raises(BundleError, match="is pinned to"):
        fetched(f"memory://models/latest#sha256={digest_of(second)}", tmp_path / "other")
    memory.store.clear()  # whoever is pinned to what is not here is not served what happens to be
    with pytest.raises(BundleError, match="memory://models/latest cannot be fetched"):
        fetched(f"memory://models/latest#sha256={'0' * 64}", tmp_path / "cache")


@pytest.mark.parametrize("pinned", [True, False])
def test_a_copy_that_is_damaged_is_fetched_anew(pinned: bool, tiny_bundle: Path, tmp_path: Path, memory: Any) -> None:
    """A failure of power leaves a file cut; the service then never started again, until somebody emptied the cache."""
    source = push(tiny_bundle, "memory://models/tiny/1").partition("#" if not pinned else "?")[0]
    copy = fetched(source, tmp_path / "cache")
    for damaged in ("model.onnx", MANIFEST_FILE):
        (copy / damaged).write_bytes((copy / damaged).read_bytes()[:100])
        assert fetched(source, tmp_path / "cache") == copy
        assert bundle.read(copy) == bundle.read(tiny_bundle)
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


@pytest.mark.parametrize("broken", ["missing", "changed", "cut", "no manifest", "no json", "outside", "huge"])
def test_what_is_no_whole_bundle_never_enters_the_cache(
    broken: str, tiny_bundle: Path, tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(tiny_bundle, "memory://models/tiny/1")
    graph, manifest = "/models/tiny/1/model.onnx", "/models/tiny/1/manifest.json"
    if broken == "missing":
        memory.rm(graph)
    elif broken == "changed":
        memory.pipe_file(graph, memory.cat_file(graph)[:-1] + b"x")
    elif broken == "cut":
        memory.pipe_file(graph, memory.cat_file(graph)[:100])
    elif broken == "no manifest":
        memory.rm(manifest)
    elif broken == "no json":
        memory.pipe_file(manifest, b"<html>sign in</html>")
    elif broken == "outside":
        content = json.loads(memory.cat_file(manifest))
        content["files"]["../../outside"] = "0" * 64
        memory.pipe_file(manifest, json.dumps(content).encode())
    else:
        monkeypatch.setattr(addresses, "MOST_BYTES", 100)
    with pytest.raises(BundleError, match=r"memory://models/tiny/1|not a path inside"):
        fetched("memory://models/tiny/1", tmp_path / "cache")
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []
    assert not (tmp_path / "outside").exists()


@pytest.fixture
def web(tiny_bundle: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tiny_bundle))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_web_server_needs_a_pin(web: str, tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads from web servers with aiohttp")
    with pytest.raises(BundleError, match="is not pinned: add #sha256="):
        fetched(web, tmp_path)
    with pytest.raises(BundleError, match="give the 64 digits of a sha256"):
        fetched(f"{web}#sha256=abc", tmp_path)
    with pytest.raises(BundleError, match="it is pinned to 0000"):
        fetched(f"{web}#sha256={'0' * 64}", tmp_path)
    with pytest.raises(BundleError, match="no place to push to"):
        push(tiny_bundle, web)
    found = fetched(f"{web}#sha256={digest_of(tiny_bundle)}", tmp_path)
    assert bundle.read(found) == bundle.read(tiny_bundle)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", absent)
    with pytest.raises(BundleError, match=r"s3://b/1 needs s3fs: pip install s3fs"):
        fetched("s3://b/1", tmp_path)
    monkeypatch.undo()
    with pytest.raises(BundleError, match="fsspec does not know nowhere://"):
        fetched("nowhere://b/1", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="TAILGUARD_BUNDLE_CACHE"):
        fetched("memory://b/1", tmp_path / "file" / "cache")
    monkeypatch.setattr(addresses.uuid, "uuid4", lambda: SimpleNamespace(hex="not/here"))
    with pytest.raises(BundleError, match=r"here\.partial cannot be made .*to write to in TAILGUARD_BUNDLE_CACHE"):
        fetched("memory://b/1", tmp_path / "cache")  # as in a folder that is there, and read-only


def test_a_copy_of_the_cache_is_told_on_standard_error(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`inspect ADDRESS > summary.json` had the warning as its first line."""
    push(tiny_bundle, f"local://{tmp_path}/store/1")
    monkeypatch.setenv("TAILGUARD_BUNDLE_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        assert main(["inspect", f"local://{tmp_path}/store/1"]) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out)["name"] == "tiny"
        (tmp_path / "store" / "1" / MANIFEST_FILE).unlink(missing_ok=True)
    assert "the copy fetched last is served" in printed.err


def test_what_a_killed_fetch_left_goes(tiny_bundle: Path, tmp_path: Path, memory: Any) -> None:
    """A pod that is killed at each start left another part of a bundle each time."""
    source = push(tiny_bundle, "memory://models/tiny/1")
    copies = fetched(source, tmp_path).parent
    left, under_way = copies / ".1.partial", copies / ".2.partial"
    for folder in (left, under_way):
        (folder / "plots").mkdir(parents=True)
        (folder / "model.onnx").write_bytes(b"half")
    for path in (left, left / "plots", left / "model.onnx", under_way, under_way / "plots"):
        os.utime(path, (0, 0))
    fetched("memory://models/tiny/1", tmp_path)
    assert not left.exists()
    assert under_way.exists()


class Odd(http.server.BaseHTTPRequestHandler):
    """Serves `folder` with a token only, as it comes and without HEAD, stalls within files of the kinds in `stalls`."""

    folder: Path
    stalls = ""
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path, _, options = self.path.partition("?")
        file = self.folder / unquote(path).removeprefix("/b/")
        if options != "token=s3cret":
            return self.send_error(401)
        if not file.is_file():
            return self.send_error(404)
        data = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        half = len(data) // 2
        for at in range(0, half, half // 5):  # slowly
            self.wfile.write(data[at : min(half, at + half // 5)])
            time.sleep(0.2 if file.name == "model.onnx" else 0)
        if self.stalls and file.match(self.stalls):
            time.sleep(5)
        self.wfile.write(data[half:])


@pytest.fixture
def odd(tiny_bundle: Path) -> Iterator[type[Odd]]:
    pytest.importorskip("aiohttp", reason="fsspec reads from web servers with aiohttp")

    class Here(Odd):
        folder = tiny_bundle

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Here) as server:
        server.daemon_threads, server.block_on_close = True, False
        Here.url = f"http://127.0.0.1:{server.server_address[1]}/b"  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Here
        server.shutdown()


@pytest.mark.parametrize("stalls", ["", "*.onnx", MANIFEST_FILE])
def test_a_server_that_stalls_is_given_up_and_a_slow_one_is_not(
    stalls: str, odd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was waited for in silence for 5 minutes, and a slow file was cut off after 5; a token went to the wrong end
    of the address."""
    monkeypatch.setattr(watched, "STALLED_S", 0.7)
    odd.stalls = stalls
    source, started = f"{odd.url}/?token=s3cret#sha256={digest_of(odd.folder)}", time.monotonic()
    if not stalls:
        assert bundle.read(fetched(source, tmp_path)) == bundle.read(odd.folder)
        return
    with pytest.raises(
        BundleError, match=rf"^{odd.url}\S* .*nothing came for 0\.7 s, after \d+ bytes of the bundle: see"
    ):
        fetched(source, tmp_path)
    assert time.monotonic() - started < 4
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_address_that_stalls_is_away(
    tiny_bundle: Path, tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where it cannot be reached: the copy fetched last is served."""
    push(tiny_bundle, "memory://models/tiny/1")
    found = fetched("memory://models/tiny/1", tmp_path)
    monkeypatch.setattr(watched, "STALLED_S", 0.3)
    monkeypatch.setattr(type(memory), "_open", lambda *_, **__: time.sleep(3))
    assert fetched("memory://models/tiny/1", tmp_path) == found
    with pytest.raises(BundleError, match=r"memory://models/tiny/2 cannot be fetched: nothing came for 0\.3 s"):
        fetched("memory://models/tiny/2", tmp_path)


def test_a_server_that_cannot_be_reached_when_it_is_asked_for(tmp_path: Path) -> None:
    """FTP connects at once: `inspect ftp://…` ended with a traceback."""
    with pytest.raises(BundleError, match=r"ftp://127.0.0.1:1/b cannot be fetched: .*Connection refused"):
        fetched("ftp://127.0.0.1:1/b", tmp_path)


def test_no_secret_of_a_web_address_in_an_error(odd: Any, tmp_path: Path) -> None:
    address = odd.url.replace("://", "://me:pass@")
    for options, wrong in (("?token=wr0ng", "401"), ("?token=s3cret", r"b/none/manifest\.json is not there")):
        with pytest.raises(BundleError, match=wrong) as error:
            fetched(f"{address}/none{options}#sha256={'0' * 64}", tmp_path)
        assert not re.search("pass|wr0ng|s3cret", str(error.value))


def test_secrets_are_not_shown() -> None:
    assert kinds.shown("https://me:secret@host/b?token=secret#sha256=00") == "https://host/b"
    assert kinds.shown("s3://me:se/cret@host/b") == "s3://host/b"
    assert kinds.shown("models:/shop/3") == "models:/shop/3"


def test_a_revision_is_no_user() -> None:
    """It was shown as hf://main/shop/3, in errors and as what is served."""
    assert kinds.shown("hf://owner/repo@main/shop/3") == "hf://owner/repo@main/shop/3"


def _fetch(address: str, cache: Path, slow: bool) -> None:
    if slow:
        copy_files = addresses._copy_files

        def slowly(*given: Any) -> None:
            copy_files(*given)
            time.sleep(60)

        addresses._copy_files = slowly
    fetched(address, cache)


def test_processes_at_once_and_one_killed(tiny_bundle: Path, tmp_path: Path) -> None:
    address = push(tiny_bundle, f"local://{tmp_path}/store/tiny/1")
    cache, context = tmp_path / "cache", multiprocessing.get_context("spawn")
    killed = context.Process(target=_fetch, args=(address, cache, True))
    killed.start()
    deadline = time.monotonic() + 60
    while not list(cache.rglob("*.partial/model.onnx")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.kill()
    killed.join()
    together = [context.Process(target=_fetch, args=(address, cache, False)) for _ in range(3)]
    for process in together:
        process.start()
    for process in together:
        process.join()
        assert process.exitcode == 0
    [found] = [p for p in cache.glob("*/*") if p.name[0] != "."]
    assert bundle.read(found) == bundle.read(tiny_bundle)


def test_a_service_on_an_address(tiny_bundle: Path, tmp_path: Path) -> None:
    """Started on one, swapped to another, back, and started anew after the store is gone."""
    import httpx

    store = tmp_path / "store"
    first = push(tiny_bundle, f"local://{store}/tiny/1")
    second = push(tiny.write(tmp_path / "tiny" / "2", version="2"), f"local://{store}/tiny/2")
    given = {"bundle_cache": tmp_path / "cache", "ledger": tmp_path / "ledger.sqlite", "admin_keys": "a=secret"}
    head = {"Authorization": "Bearer secret"}
    with live.serving(first, **given) as url:  # type: ignore[arg-type]
        assert httpx.get(f"{url}/model", headers=head).json()["version"] == "1"
        done = httpx.put(f"{url}/admin/bundle", json={"path": second}, headers=head)
        assert done.json()["version"] == "2", done.text
        wrong = httpx.put(f"{url}/admin/bundle", json={"path": f"local://{store}/tiny/3"}, headers=head)
        assert wrong.status_code == 409
        assert "the bundle in service stays" in wrong.json()["detail"]
    for path in sorted(store.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    with live.serving(first, **given) as url:  # type: ignore[arg-type]
        assert httpx.get(f"{url}/model", headers=head).json()["version"] == "2"  # from the cache, as was deployed
        back = httpx.post(f"{url}/admin/back", json={}, headers=head)
        assert back.json()["version"] == "1", back.text
