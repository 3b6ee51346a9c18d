"""Where the files of kept images are: a folder, an address of fsspec, or the memory of this process.

A file's key is the sha256 of its bytes in hex, so the same file sent twice is there once. Its thumbnail lies beside it.
A store belongs to one ledger, whose id it holds: another ledger does not know its images and would delete them.

    ab/cd/abcdef…          the file as it was sent
    ab/cd/abcdef….jpg      its thumbnail
    ledger                 the id of the ledger
"""

import hashlib
import os
import re
import time
from pathlib import Path
from typing import Any, Protocol

from service.errors import SettingsError
from service.ledger.database import MEMORY
from service.settings import PREFIX, Settings

KEY = re.compile(r"[0-9a-f]{64}")
OWNER = "ledger"
LEFT_BEHIND_S = 600.0  # a temporary file so old is of a process that was killed


class StoreTaken(Exception):
    """The store is another ledger's."""


class Files(Protocol):
    """Names to bytes. Errors are OSError or those of a driver; a name that is not there is None, and no error."""

    def write(self, name: str, data: bytes) -> None: ...

    def read(self, name: str) -> bytes | None: ...

    def delete(self, name: str) -> None: ...

    def has(self, name: str) -> bool: ...


class Store:
    """Files by the hash of their content. Used by several threads and replicas at once."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def claim(self, ledger_id: str) -> None:
        """Take the store for a ledger. Raises StoreTaken when it is another's."""
        owner = self._files.read(OWNER)
        if owner is None:
            self._files.write(OWNER, ledger_id.encode())
        elif owner != ledger_id.encode():
            raise StoreTaken(
                f"the store holds the images of another ledger: set {PREFIX}STORE to a place of this ledger's own, or "
                f"delete its file {OWNER!r} if that ledger is no more"
            )

    def put(self, key: str, data: bytes, thumbnail: bytes | None) -> None:
        """Store a file and its thumbnail, which another put of the same key may have done; all of a file or nothing."""
        if thumbnail is not None:
            self._files.write(_name(key) + ".jpg", thumbnail)
        self._files.write(_name(key), data)

    def has(self, key: str) -> bool:
        return self._files.has(_name(key))

    def get(self, key: str) -> bytes | None:
        """The file; None when it is not there, or is not what was stored. Raises ValueError for what is no key."""
        data = self._files.read(_name(key))
        return data if data is not None and key_of(data) == key else None

    def thumbnail(self, key: str) -> bytes | None:
        """A JPEG of at most THUMBNAIL_PX a side; None when it is not there. Raises ValueError for what is no key."""
        return self._files.read(_name(key) + ".jpg")

    def delete(self, key: str) -> None:
        """Delete a file and its thumbnail, if they are there."""
        for name in (_name(key), _name(key) + ".jpg"):
            self._files.delete(name)


def key_of(data: bytes) -> str:
    """The key of a file's bytes."""
    return hashlib.sha256(data).hexdigest()


def _name(key: str) -> str:
    if not KEY.fullmatch(key):
        raise ValueError(f"{key[:80]!r} is no key of an image: it has 64 digits 0-9a-f")
    return f"{key[:2]}/{key[2:4]}/{key}"


class Folder:
    """A file appears whole or not at all: it is written under another name, then renamed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._temporary = folder / "tmp"
        self._count = 0

    def write(self, name: str, data: bytes) -> None:
        self._count += 1
        part = self._temporary / f"{os.getpid()}-{id(self)}-{self._count}-{name.rpartition('/')[2]}"
        path = self._folder / name
        try:
            try:
                part.write_bytes(data)
            except FileNotFoundError:
                self._temporary.mkdir(parents=True, exist_ok=True)
                part.write_bytes(data)
            try:
                part.replace(path)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)  # what a full disk has cut short
            raise

    def read(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def delete(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        return (self._folder / name).is_file()

    def sweep(self) -> None:
        """Delete the temporary files of processes that were killed; those of other replicas are younger."""
        for part in self._temporary.glob("*"):
            try:
                if time.time() - part.stat().st_mtime > LEFT_BEHIND_S:
                    part.unlink()
            except OSError:
                continue  # another replica sweeps too, or this one may only read


class Memory:
    """Ends with the process."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}

    def write(self, name: str, data: bytes) -> None:
        self._files[name] = data

    def read(self, name: str) -> bytes | None:
        return self._files.get(name)

    def delete(self, name: str) -> None:
        self._files.pop(name, None)

    def has(self, name: str) -> bool:
        return name in self._files


class Remote:
    """A place that fsspec knows. Object stores write a file whole or not at all; other kinds may leave a part, which
    Store.get does not take for the file."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._opened: tuple[Any, str] | None = None

    def write(self, name: str, data: bytes) -> None:
        system, path = self._at(name)
        try:
            system.pipe_file(path, data)
        except FileNotFoundError:  # of kinds that have folders
            system.makedirs(path.rpartition("/")[0], exist_ok=True)
            system.pipe_file(path, data)

    def read(self, name: str) -> bytes | None:
        system, path = self._at(name)
        try:
            return bytes(system.cat_file(path))
        except FileNotFoundError:
            return None

    def delete(self, name: str) -> None:
        system, path = self._at(name)
        try:
            system.rm_file(path)
        except FileNotFoundError:
            return

    def has(self, name: str) -> bool:
        system, path = self._at(name)
        return bool(system.exists(path))

    def _at(self, name: str) -> tuple[Any, str]:
        if self._opened is None:  # not before: some kinds connect at once
            from fsspec.core import url_to_fs

            system, path = url_to_fs(self._address, use_listings_cache=False)
            self._opened = (system, path.rstrip("/"))
        system, root = self._opened
        return system, f"{root}/{name}"


def open_store(settings: Settings) -> Store | None:
    """The store that the settings name; None for a ledger in memory that keeps nothing.

    Raises SettingsError, one line, for one that can never work. A place that is unreachable, full or read-only at this
    moment is no error here.
    """
    if settings.ledger == MEMORY:
        return Store(Memory()) if settings.keeps else None
    address = settings.store or ("" if "://" in settings.ledger else f"{settings.ledger}.images")
    return store_at(address) if address else None


def store_at(address: str) -> Store:
    """The store at a folder or an address of fsspec. Raises SettingsError as open_store does."""
    scheme, mark, rest = address.partition("://")
    if mark and scheme != "file":
        _check_scheme(scheme)
        return Store(Remote(address))
    path = Path(rest if mark else address).absolute()
    if path.is_file() or not path.parent.is_dir():
        raise SettingsError(f"{PREFIX}STORE={address}: give the path of a folder in a folder that exists")
    folder = Folder(path)
    folder.sweep()
    return Store(folder)


def _check_scheme(scheme: str) -> None:
    try:
        from fsspec import get_filesystem_class
    except ImportError:
        raise SettingsError(
            f"{PREFIX}STORE names {scheme}://… and fsspec is not installed: pip install 'tailguard[store]'"
        ) from None
    try:
        get_filesystem_class(scheme)
    except ImportError as error:
        raise SettingsError(f"{PREFIX}STORE names {scheme}://… and its package is not installed: {error}") from None
    except ValueError:
        raise SettingsError(
            f"{PREFIX}STORE names {scheme}://…, which fsspec does not know: give a folder, or s3://, gs://, az://"
        ) from None
