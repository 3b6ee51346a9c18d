"""Where bundles come from: a folder, or an address from which one is fetched whole, verified and cached.

    s3://models/shop/3                        an object store, or anything else that fsspec and its packages know
    https://host/models/shop/3#sha256=…       a web server; the digest is that of manifest.json
    hf://owner/repo@revision/shop/3           the Hugging Face Hub, by huggingface_hub
    models:/shop/3                            a registry of MLflow, by mlflow

Any of them may be pinned by `#sha256=…`; what is pinned and cached needs no network. Without a pin the manifest is
asked for each time, and when the place cannot be reached the copy that was fetched last is served. A copy appears in
the cache when every file of it has the digest that its manifest names, and never half.
"""

import hashlib
import os
import re
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import structlog

from service.bundles.kinds import PIN, WEB, Copy, reader, said, shown
from service.contract import bundle
from service.contract.bundle import MANIFEST_FILE, BundleError, Manifest
from service.settings.places import Source

MOST_MANIFEST_BYTES = 64 * 2**20
MOST_BYTES = 4 * 2**30  # of a bundle
LEFT_OVER_S = 600.0  # without a byte, where a fetch gives up after half a minute

log = structlog.get_logger()


class Place(NamedTuple):
    """An address in its parts: without its pin, and the digest that it is pinned to."""

    address: str
    pin: str | None

    @classmethod
    def of(cls, source: str) -> "Place":
        """Raises BundleError for a pin that is no sha256, and for a web server without one."""
        address, mark, pin = source.partition(PIN)
        if mark and not re.fullmatch(r"[0-9a-fA-F]{64}", pin):
            raise BundleError(f"{shown(source)} is pinned to {pin[:80]!r}: give the 64 digits of a sha256")
        if not mark and address.startswith(WEB):
            raise BundleError(
                f"{shown(source)} comes from a web server and is not pinned: add {PIN}… with the digest of its "
                f"{MANIFEST_FILE}, as sha256sum prints it"
            )
        return cls(address.rstrip("/"), pin.lower() or None)


def named(source: Source) -> str:
    """How a deployment is written down: an address as it is, a path made absolute."""
    return source if isinstance(source, str) else str(source.absolute())


def fetched(source: Source, cache: Path) -> Path:
    """The folder of a bundle, which is not read yet: a path itself, or the copy of what an address names in `cache`.

    Raises BundleError where it cannot be had, is not what it is pinned to, or a package is missing, which it names.
    """
    if isinstance(source, Path):
        return source
    place = Place.of(source)
    copies = cache.expanduser() / hashlib.sha256(place.address.encode()).hexdigest()[:16]
    if place.pin and _is_whole(copies / place.pin[:16], place.pin):
        return copies / place.pin[:16]
    partial = copies / f".{uuid.uuid4().hex[:8]}.partial"
    try:
        copies.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    except OSError as error:
        remedy = "name a folder to write to in TAILGUARD_BUNDLE_CACHE"
        raise BundleError(f"{error.filename} cannot be made ({error.strerror}): {remedy}") from error
    try:
        _drop_leftovers(copies)
        return _fetched(place, copies, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fetched(place: Place, copies: Path, partial: Path) -> Path:
    try:
        copy = reader(place.address, partial)
        copy(MANIFEST_FILE, partial / MANIFEST_FILE, MOST_MANIFEST_BYTES)
    except BundleError:
        raise
    except Exception as error:  # each kind of place has its own
        if place.pin or (last := _last(copies)) is None:  # another copy is not what an address is pinned to
            raise BundleError(f"{shown(place.address)} cannot be fetched: {said(error)}") from error
        log.warning("the bundle cannot be fetched: the copy fetched last is served", bundle=shown(place.address),
                    copy=str(last), error=said(error))  # fmt: skip
        return last
    text = (partial / MANIFEST_FILE).read_bytes()
    digest = hashlib.sha256(text).hexdigest()
    if place.pin not in (None, digest):
        raise BundleError(f"{shown(place.address)} has a manifest of sha256 {digest}, it is pinned to {place.pin}")
    target = copies / digest[:16]
    if not _is_whole(target, digest):
        _copy_files(place, bundle.parse(text, f"{shown(place.address)}/{MANIFEST_FILE}"), copy, partial)
        try:
            bundle.read(partial)
        except BundleError as error:  # of a folder that nobody finds: the file at the address is the one to restore
            raise BundleError(str(error).replace(str(partial), shown(place.address))) from error
        try:
            os.rename(partial, target)
        except OSError:  # another process was first, or what is there is damaged
            if not _is_whole(target, digest):
                shutil.rmtree(target, ignore_errors=True)
                os.rename(partial, target)
    os.utime(target)  # so that the last one is known
    return target


def _drop_leftovers(copies: Path) -> None:
    """Remove what a process left that was killed while it fetched: each start of a pod, perhaps, leaves another."""
    for partial in copies.glob(".*.partial"):
        with suppress(OSError):  # another process does it too
            newest = max(path.stat().st_mtime for path in (partial, *partial.rglob("*")))
            if time.time() - newest > LEFT_OVER_S:
                shutil.rmtree(partial, ignore_errors=True)


def _copy_files(place: Place, manifest: Manifest, copy: Copy, partial: Path) -> None:
    """Every file that the manifest names, into `partial`."""
    left = MOST_BYTES
    for name in manifest.files:
        bundle.require_inside(name)
        target = partial / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            copy(name, target, left)
        except BundleError:
            raise
        except Exception as error:
            raise BundleError(f"{shown(place.address)}: {name} cannot be fetched: {said(error)}") from error
        left -= target.stat().st_size


def _is_whole(copy: Path, sha256: str) -> bool:
    """Whether the cache has the bundle with this digest as it was fetched: a failure of power leaves files cut."""
    manifest = copy / MANIFEST_FILE
    if not manifest.is_file() or hashlib.sha256(manifest.read_bytes()).hexdigest() != sha256:
        return False
    try:
        bundle.read(copy)
    except BundleError as error:
        log.warning("a copy in the cache is damaged", copy=str(copy), error=str(error))
        return False
    return True


def _last(copies: Path) -> Path | None:
    found = [path for path in copies.iterdir() if (path / MANIFEST_FILE).is_file() and path.name[0] != "."]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)
