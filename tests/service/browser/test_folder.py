"""The folder of `tailguard web`: what lies in it, that its parts belong together, and that it appears whole or not."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import __main__ as service_side
from service.browser import folder, runtime
from service.contract import bundle
from service.contract.bundle import BundleError
from service.errors import EngineError
from service.web.pages import PAGE
from tests import live
from tests.service import tiny


@pytest.fixture
def written(stand_ins: Path, tmp_path: Path) -> Path:
    out = tmp_path / "pages" / "site"
    folder.write(tiny.write_whole(tmp_path / "tiny" / "1"), out, runtime.found(stand_ins))
    return out


def described(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "model" / "model.json").read_text())
    return content


def test_what_lies_in_it(written: Path) -> None:
    names = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    assert names == {
        "index.html", ".nojekyll", "LICENSE.txt", "NOTICE.txt",
        "scripts/backend.js", "scripts/worker.js", "scripts/decode.js", "scripts/pixels.js",
        "scripts/decide.js",
        "runtime/ort.wasm.min.js", "runtime/ort-wasm-simd-threaded.js", "runtime/ort-wasm-simd-threaded.wasm",
        "runtime/LICENSE.txt", "runtime/ThirdPartyNotices.txt",
        "model/model.json", "model/model.onnx", "model/heat_map.onnx", "model/examples/red.png",
        "model/examples/blue.png", "model/exemplars.f32", "model/exemplars.jpgs",
    }  # fmt: skip
    assert (written / "LICENSE.txt").read_bytes() == (live.ROOT / "LICENSE").read_bytes()
    assert "onnxruntime-web" in (written / "NOTICE.txt").read_text()
    assert list(written.parent.iterdir()) == [written]  # nothing half-written beside it


def test_every_file_has_the_digest_that_the_page_checks(written: Path) -> None:
    page, said = (written / "index.html").read_text(), described(written)
    digest = hashlib.sha256((written / "model" / "model.json").read_bytes()).hexdigest()
    assert f'<script src="scripts/backend.js" data-model="{digest}"></script>' in page
    for name, known in said["files"].items():
        content = (written / name).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (known["sha256"], known["bytes"])
    asked_for = {*said["manifest"]["graph_files"], said["manifest"]["wasm_file"],
                 *(example["file"] for example in said["manifest"]["golden"])}  # fmt: skip
    assert asked_for <= set(said["files"])
    vectors = np.frombuffer((written / "model" / "exemplars.f32").read_bytes(), "<f4").reshape(4, 3)
    np.testing.assert_allclose(vectors, tiny.EXEMPLARS, atol=1e-3)


def test_the_page_is_the_services_and_names_no_other_place(written: Path) -> None:
    page = (written / "index.html").read_text()
    kept = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>\n|<script src=[^>]*></script>\n', "", page)
    assert kept == PAGE
    for text in (page, *(path.read_text() for path in (written / "scripts").iterdir())):
        addresses = re.findall(r"https?://[^\s\"'`)]+", text)
        assert set(addresses) <= {"http://localhost:8000"}  # what is said to who opened the page as a file
        assert not re.findall(r'(?:src|href)="/', text)


def test_a_bundle_with_less(stand_ins: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    folder.write(tiny_bundle, tmp_path / "site", runtime.found(stand_ins))
    manifest = described(tmp_path / "site")["manifest"]
    assert [manifest[name] for name in ("exemplars", "heat_map", "sets", "taxonomy", "reasons")] == [None] * 5
    assert manifest["outputs"] == ["probabilities", "energy", "msp"]
    assert manifest["links"] == [["Licences", "NOTICE.txt"]]  # it has no card


@pytest.mark.parametrize("name", ["models/cifar10-lt/1", "models/groceries/1"])
def test_what_deciding_needs_is_there_and_little_more(name: str) -> None:
    manifest = bundle.read(live.ROOT / name)
    said = folder.described(manifest, None, {})["manifest"]
    assert said["calibration"].keys() == {"references"}
    assert len(json.dumps(said)) < len((live.ROOT / name / "manifest.json").read_text()) / 1.4
    assert [c["name"] for c in said["classes"]] == [c.name for c in manifest.classes]
    assert set(said["operating_points"]) == set(manifest.operating_points)


def test_nothing_is_written_where_something_is_wrong(stand_ins: Path, tmp_path: Path) -> None:
    files, out = runtime.found(stand_ins), tmp_path / "site"
    damaged = tiny.write(tmp_path / "tiny" / "1")
    (damaged / "model.onnx").write_bytes(b"another")
    with pytest.raises(BundleError, match="sha256"):
        folder.write(damaged, out, files)
    wrong = tiny.write(tmp_path / "tiny" / "2", golden=[tiny.golden("examples/red.png", (10, 20, 200))])
    with pytest.raises(EngineError, match="golden example"):
        folder.write(wrong, out, files)
    assert not out.exists()
    out.mkdir()
    with pytest.raises(BundleError, match="exists already: name another folder"):
        folder.write(tiny.write(tmp_path / "tiny" / "3"), out, files)


def run(capsys: pytest.CaptureFixture[str], *given: object) -> tuple[int, str, str]:
    status = service_side.main(["web", *map(str, given)], "tailguard")
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_the_command(
    stand_ins: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "site"
    status, said, _ = run(capsys, tiny_bundle, "--out", out, "--runtime", stand_ins)
    assert (status, (out / "index.html").is_file()) == (0, True)
    assert f"{out}: " in said
    assert "a visitor loads" in said
    status, _, error = run(capsys, tiny_bundle, "--out", out, "--runtime", stand_ins)
    assert (status, error) == (1, f"tailguard: {out} exists already: name another folder, or remove it first\n")
    status, _, error = run(capsys, tmp_path / "none", "--out", tmp_path / "other", "--runtime", stand_ins)
    assert (status, "is not a bundle" in error) == (1, True)
    monkeypatch.setenv("PATH", "")
    status, _, error = run(capsys, tiny_bundle, "--out", tmp_path / "other")
    assert (status, "npm is not installed" in error) == (1, True)
    (tmp_path / "file").touch()
    status, _, error = run(capsys, tiny_bundle, "--out", tmp_path / "file" / "site", "--runtime", stand_ins)
    assert (status, "cannot be written" in error) == (1, True)
