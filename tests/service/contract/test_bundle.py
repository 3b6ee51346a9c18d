"""service/contract/bundle.py: what is written is read back; anything damaged is refused by name."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from service.contract import bundle, folders
from service.contract.bundle import BundleError
from tests.service import tiny


def test_written_is_read_back(tmp_path: Path) -> None:
    written = bundle.write(tmp_path / "models" / "tiny" / "1", tiny.manifest(), tiny.files())
    assert bundle.read(tmp_path / "models" / "tiny" / "1") == written
    assert written.sha256 == written.files["model.onnx"]
    assert [c.name for c in written.classes] == list(tiny.CLASSES)


def test_nothing_but_the_bundle_is_left(tmp_path: Path) -> None:
    tiny.write(tmp_path / "1")
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


def test_changed_file_is_named(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "1")
    (folder / "examples/red.png").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"examples/red\.png has sha256 .* restore the file"):
        bundle.read(folder)


def test_missing_file_is_named(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "1")
    (folder / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"incomplete: model\.onnx cannot be read"):
        bundle.read(folder)


def test_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(tiny.graph())  # as a killed writer of another kind would leave it
    with pytest.raises(BundleError, match="is not a bundle"):
        bundle.read(tmp_path)


def test_half_written_manifest(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "1")
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[: len(text) // 2])
    with pytest.raises(BundleError, match=r"manifest\.json is invalid"):
        bundle.read(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"deciding_score": "depth"}, "deciding_score 'depth' is none of"),
        ({"default_operating_point": "id99"}, "default_operating_point 'id99' is none of"),
        ({"name": "Not A Name"}, "name"),
        ({"surprise": 1}, "surprise"),
        ({"scores": {"msp": {"formula": "", "temperature": 1}}, "deciding_score": "msp"}, r"scores lack \['energy'\]"),
        ({"golden": [tiny.golden("examples/none.png", (1, 2, 3))]}, "is not among the files"),
        ({"threshold_scope": "class"}, "threshold_scope"),
        ({"classes": []}, "classes"),
    ],
)
def test_invalid_manifest_writes_nothing(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        bundle.write(tmp_path / "1", tiny.manifest(**changes), tiny.files())
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "mine").write_text("kept")
    with pytest.raises(BundleError, match="exists already"):
        tiny.write(tmp_path / "1")
    assert (tmp_path / "1" / "mine").read_text() == "kept"


def test_a_place_that_takes_nothing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, or a folder that is read-only, was a traceback from inspect --out, recalibrate and export."""
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match=r"1 cannot be written \(Not a directory\): make room there"):
        tiny.write(tmp_path / "file" / "tiny" / "1")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders, "fill", full)
    with pytest.raises(BundleError, match=r"cannot be written \(No space left on device\)"):
        tiny.write(tmp_path / "tiny" / "1")
    assert list((tmp_path / "tiny").iterdir()) == []


@pytest.mark.parametrize("name", ["../out", "/etc/out", "manifest.json"])
def test_files_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="is not a path inside a bundle"):
        tiny.write(tmp_path / "1", files=tiny.files() | {name: b""})
    assert list(tmp_path.iterdir()) == []


def test_manifest_cannot_point_outside(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "1")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../../secret"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="is not a path inside a bundle"):
        bundle.read(folder)


def test_derived_has_what_its_parent_has_but_for_what_is_changed_or_gone(tmp_path: Path) -> None:
    source = tiny.write(tmp_path / "tiny" / "1")
    parent = bundle.read(source)
    lost, kept = (example.file for example in parent.golden)
    made = bundle.derive(
        source, tmp_path / "tiny" / "2", parent, {"golden": parent.model_dump()["golden"][1:]},
        files={"new.txt": b"new"}, card="", added={"rows": 3}, command="made by hand", gone=[lost],
    )  # fmt: skip
    assert bundle.read(tmp_path / "tiny" / "2") == made
    assert set(made.files) == set(parent.files) - {lost} | {"new.txt"}
    assert not (tmp_path / "tiny" / "2" / lost).exists()
    assert (tmp_path / "tiny" / "2" / kept).read_bytes() == (source / kept).read_bytes()
    assert [example.file for example in made.golden] == [kept]
    assert (made.name, made.version, made.classes) == ("tiny", "2", parent.classes)
    assert made.provenance.parent is not None
    assert made.provenance.parent.sha256 == parent.sha256
    assert (made.provenance.added, made.provenance.command) == ({"rows": 3}, "made by hand")


def test_two_that_write_the_same_bundle_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one was told that there is no room on the disk."""
    fill = folders.fill

    def fill_after_the_other(*given: Any) -> None:
        monkeypatch.setattr(folders, "fill", fill)
        tiny.write(tmp_path / "shop" / "1")
        fill(*given)

    monkeypatch.setattr(folders, "fill", fill_after_the_other)
    with pytest.raises(BundleError, match="shop/1 exists already: choose another version"):
        tiny.write(tmp_path / "shop" / "1")
    assert [path.name for path in (tmp_path / "shop").iterdir()] == ["1"]
