"""Where the files of kept images are: a folder, an address of fsspec, or the memory of this process.

A file's key is the sha256 of its bytes in hex, so the same file sent twice is there once. Its thumbnail lies beside it.
A store belongs to one ledger, whose id it holds: another ledger does not know its images and would delete them. Nor
may two copies of that ledger use it; see users.py.

    ab/cd/abcdef…          the file as it was sent
    ab/cd/abcdef….jpg      its thumbnail
    ledger                 the id of the ledger
    user                   which copy of it has used the store last, and when
"""

import hashlib
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from service.errors import SettingsError
from service.ledger.database import MEMORY
from service.ledger.files import Files, Folder, Memory, Remote
from service.ledger.users import ALIVE_S, User
from service.settings import PREFIX, Settings

KEY = re.compile(r"[0-9a-f]{64}")
NO_STORES = dict.fromkeys(("http", "https"), "and a web server takes no files") | {
    "ftp": "whose connection does one thing at a time, and a file is there before it is whole"
}
OWNER, USER = "ledger", "user"

log = structlog.get_logger()


class StoreTaken(Exception):
    """The store is another ledger's, or in use by another copy of this one."""


class Store:
    """Files by the hash of their content. Used by several threads and replicas at once."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def claim(self, user: User) -> None:
        """Take the store for a copy of a ledger, for the next ALIVE_S. Raises StoreTaken when it is another's."""
        owner = self._files.read(OWNER)
        if owner is None:
            self._files.write(OWNER, user.ledger.encode())
        elif owner != user.ledger.encode():
            raise StoreTaken(
                f"the store holds the images of another ledger: set {PREFIX}STORE to a place of this ledger's own, or "
                f"delete its file {OWNER!r} if that ledger is no more"
            )
        other, age_s = self._user(user)
        if not user.may_follow(other, age_s):
            raise StoreTaken(
                f"the store is used by another copy of this ledger, {other.path or other.mark}, as of {age_s:.0f} s "
                f"ago, and each would delete images of the other: set {PREFIX}STORE to a place of this copy's own. If "
                f"that copy is no more (this one was moved), it takes over {ALIVE_S:.0f} s after the last use, or once "
                f"the store's file {USER!r} is deleted"
            )
        if other.mark != user.mark:
            log.warning(
                "another copy of this ledger has used the image store: what it has deleted there is gone",
                copy=other.path or other.mark, last_used_s=round(age_s),
            )  # fmt: skip
        said = [*user, self._files.mark(), time.time()]
        try:
            self._files.write(USER, json.dumps(said).encode())
        except Exception:  # on a full disk; what makes room there goes on
            if other.mark != user.mark:
                raise

    def _user(self, user: User) -> tuple[User, float]:
        """Who has used this store last, and how many seconds ago; `user`, where nobody has."""
        try:
            *said, place, at = json.loads(self._files.read(USER) or b"")
            other, age_s = User(*said), time.time() - at
        except (ValueError, TypeError):  # there is none yet, or half of one
            return user, 0.0
        of_another = other.ledger != user.ledger or place != self._files.mark()  # this one was copied with the store
        return (user, 0.0) if of_another else (other, age_s)

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

    @property
    def together(self) -> int:
        """Keys that `delete` takes at once with some gain."""
        return self._files.together

    def delete(self, keys: Sequence[str]) -> None:
        """Delete files and their thumbnails, if they are there. After an error some are left."""
        self._files.delete([name for key in keys for name in (_name(key), _name(key) + ".jpg")])


def key_of(data: bytes) -> str:
    """The key of a file's bytes."""
    return hashlib.sha256(data).hexdigest()


def _name(key: str) -> str:
    if not KEY.fullmatch(key):
        raise ValueError(f"{key[:80]!r} is no key of an image: it has 64 digits 0-9a-f")
    return f"{key[:2]}/{key[2:4]}/{key}"


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
    if scheme in NO_STORES:
        raise SettingsError(
            f"{PREFIX}STORE names {scheme}://…, {NO_STORES[scheme]}: give a folder, or s3://, gs://, az://"
        )
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
