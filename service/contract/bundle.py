"""The contract between training and serving: a bundle, `models/<name>/<version>/`.

A bundle is an ONNX graph plus a manifest that carries everything needed to decide. `manifest.json` is written last and
names the sha256 of every other file: a folder without a valid manifest is not a bundle. The graph takes `images`
uint8 [N, H, W, 3] and gives `probabilities` float32 [N, C], one float32 [N] per score (larger = more outlying) and,
where the manifest says so, `embedding` float32 [N, D], each row of length 1.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from service.contract import folders
from service.contract.manifest import (
    GRAPH_FILE,
    OUTLIER_LABEL,
    ClassInfo,
    Input,
    Manifest,
    require_class_names,
    spelling,
)
from service.contract.points import Cost, Measured, OperatingPoint

__all__ = [
    "FORMAT", "GRAPH_FILE", "MANIFEST_FILE", "OUTLIER_LABEL", "BundleError", "ClassInfo", "Cost", "Input", "Manifest",
    "Measured", "OperatingPoint", "derive", "digests", "parse", "read", "require_class_names",
    "require_inside", "spelling", "write",
]  # fmt: skip
FORMAT = 2  # what is written; every earlier format is read
MANIFEST_FILE = "manifest.json"


class BundleError(ValueError):
    """A folder is not a valid bundle; the message names the file, the value and the remedy."""


def read(path: str | Path) -> Manifest:
    """The manifest of the bundle at `path`, after verifying the hash of every file it names.

    Raises BundleError when the folder, the manifest or a file is missing, invalid or changed.
    """
    folder = Path(path)
    try:
        text = (folder / MANIFEST_FILE).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        why = error.strerror if isinstance(error, OSError) else error
        raise BundleError(f"{folder} is not a bundle: {MANIFEST_FILE} cannot be read ({why})") from error
    manifest = parse(text, folder / MANIFEST_FILE)
    for name, digest in manifest.files.items():
        _verify(folder, name, digest)
    return manifest


def parse(text: bytes, where: str | Path) -> Manifest:
    """A manifest from its JSON, found at `where`. Raises BundleError where it is none."""
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "manifest"
        raise BundleError(f"{where} is invalid at {place}: {first['msg']}") from error


def derive(
    source: Path, out: Path, parent: Manifest, changed: Mapping[str, Any], *, files: Mapping[str, bytes], card: str,
    added: Mapping[str, Any], command: str, gone: Collection[str] = (),
) -> Manifest:  # fmt: skip
    """Write the bundle `out` = <models>/<name>/<version> that has files and fields of its `parent`, which lies in
    `source`, but for those given and the files that are `gone`; `card` is appended to the card. Raises as `write`."""
    content = {name: (source / name).read_bytes() for name in parent.files if name not in gone} | dict(files)
    if "CARD.md" in content:
        content["CARD.md"] += card.encode()
    fields = parent.model_dump(exclude={"format", "files"}) | dict(changed)
    fields |= {"name": out.parent.name, "version": out.name, "created": datetime.now(UTC).replace(microsecond=0)}
    fields["provenance"] |= {
        "parent": {"name": parent.name, "version": parent.version, "sha256": parent.sha256}, "added": added,
        "command": command,
    }  # fmt: skip
    return write(out, fields, content)


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """The sha256 in hex of each file's content, by its path inside the bundle."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}


def write(path: str | Path, manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> Manifest:
    """Write a bundle to the new folder `path` and return its manifest; all of it appears, or nothing.

    `files` holds the content of every file but the manifest, by path inside the bundle; `manifest` holds the fields of
    Manifest but `format` and `files`. Raises BundleError when the folder exists already or cannot be written, or the
    manifest is not valid.
    """
    folder = Path(path)
    if folder.exists():
        raise BundleError(already(folder))
    try:
        checked = Manifest.model_validate({**manifest, "format": FORMAT, "files": digests(files)})
    except ValidationError as error:
        raise BundleError(f"the manifest for {folder} is not valid: {error}") from error
    for name in files:
        require_inside(name)
    text = json.dumps(checked.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
    try:
        with folders.appearing(folder) as temporary:
            folders.fill(temporary, files)
            (temporary / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        if folder.exists():  # another process wrote it meanwhile
            raise BundleError(already(folder)) from error
        raise BundleError(
            f"{folder} cannot be written ({error.strerror}): make room there, or name another folder"
        ) from error
    return checked


def already(folder: Path) -> str:
    """Why no bundle is written to a folder that is there."""
    return f"{folder} exists already: choose another version, or remove it first"


def require_inside(name: str) -> None:
    """Raises BundleError for what is no path of a file inside a bundle."""
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or name in ("", MANIFEST_FILE):
        raise BundleError(f"{name!r} is not a path inside a bundle")


def _verify(folder: Path, name: str, digest: str) -> None:
    require_inside(name)
    try:
        actual = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    except OSError as error:
        raise BundleError(f"{folder} is incomplete: {name} cannot be read ({error.strerror})") from error
    if actual != digest:
        raise BundleError(f"{folder / name} has sha256 {actual}, its manifest says {digest}: restore the file")
