"""ONNX Runtime Web is the pinned one or none: from a folder, a package, npm or the cache; errors name the remedy."""

import base64
import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from service.browser import runtime
from service.errors import SettingsError

NPM = """#!/bin/sh
echo "$@" >> {log}
[ "$1" = pack ] || exit 1
while [ "$1" != --pack-destination ]; do shift; done
cp {package} "$2/onnxruntime-web.tgz"
"""


def packed(dist: Path, leave_out: str = "") -> bytes:
    """The files of `dist` as npm packs them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path in dist.iterdir():
            if path.name != leave_out:
                archive.add(path, f"package/dist/{path.name}")
    return buffer.getvalue()


@pytest.fixture
def npm(stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program npm that brings the stand-ins, their integrity pinned; what it was asked is in the file returned."""
    package, log = tmp_path / "package.tgz", tmp_path / "log"
    package.write_bytes(packed(stand_ins))
    digest = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
    monkeypatch.setattr(runtime, "INTEGRITY", digest)
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(NPM.format(log=log, package=package))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return log


def test_from_a_folder_however_it_is_named(stand_ins: Path, tmp_path: Path) -> None:
    modules = tmp_path / "node_modules" / runtime.PACKAGE / "dist"
    modules.parent.mkdir(parents=True)
    modules.symlink_to(stand_ins)
    for place in (stand_ins, stand_ins.parent, tmp_path / "node_modules"):
        files = runtime.found(place)
        assert files["ort.wasm.min.js"] == b"// ort.wasm.min.mjs"  # .js: every web server knows what it is
        assert "Copyright (c) Microsoft Corporation" in files["LICENSE.txt"].decode()
        assert b"THIRD" in files["ThirdPartyNotices.txt"].upper()
    assert not any(name.endswith(".mjs") for name in files)


def test_from_a_package(stand_ins: Path, tmp_path: Path) -> None:
    package = tmp_path / "it.tgz"
    package.write_bytes(packed(stand_ins))
    assert runtime.found(package) == runtime.found(stand_ins)
    package.write_bytes(packed(stand_ins, leave_out="ort.wasm.min.mjs"))
    with pytest.raises(SettingsError, match=r"it\.tgz is no package onnxruntime-web of npm"):
        runtime.found(package)
    package.write_bytes(b"not a package")
    with pytest.raises(SettingsError, match="is no package"):
        runtime.found(package)


def test_another_file_is_never_taken(stand_ins: Path) -> None:
    (stand_ins / "ort-wasm-simd-threaded.wasm").write_bytes(b"another")
    with pytest.raises(SettingsError, match=rf"ort-wasm-simd-threaded\.wasm of .* bring {runtime.PACKAGE} "):
        runtime.found(stand_ins)
    (stand_ins / "ort.wasm.min.mjs").unlink()
    with pytest.raises(SettingsError, match="does not hold"):
        runtime.found(stand_ins)


def test_npm_is_asked_once(npm: Path, stand_ins: Path) -> None:
    assert runtime.found(None) == runtime.found(stand_ins)
    assert runtime.found(None) == runtime.found(stand_ins)
    assert npm.read_text().startswith(f"pack {runtime.PACKAGE}@{runtime.VERSION} --ignore-scripts ")
    assert len(npm.read_text().splitlines()) == 1
    kept = runtime.cache_folder()
    assert {path.name for path in kept.parent.iterdir()} == {kept.name}

    (kept / "ort.wasm.min.mjs").write_bytes(b"damaged")
    assert runtime.found(None) == runtime.found(stand_ins)
    assert len(npm.read_text().splitlines()) == 2


def test_another_package_of_npm_is_refused(npm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "INTEGRITY", "AAAA")
    with pytest.raises(SettingsError, match="pinned is AAAA: it is another package"):
        runtime.found(None)
    assert not runtime.cache_folder().exists()


def test_npm_that_fails_and_none(stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'no network here' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    with pytest.raises(SettingsError, match=r"npm cannot fetch .*\(no network here\): install npm, or give --runtime"):
        runtime.found(None)
    program.unlink()
    with pytest.raises(SettingsError, match="npm is not installed: install npm, or give --runtime"):
        runtime.found(None)


def test_the_real_files_are_the_pinned_ones(ort_web: dict[str, bytes]) -> None:
    assert runtime.VERSION.encode() in ort_web["ort.wasm.min.js"][:200]
    assert ort_web["ort-wasm-simd-threaded.wasm"].startswith(b"\0asm")
