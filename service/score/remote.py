"""Inputs in object stores, s3://…, gs://…, and everything else that fsspec knows: found and read by address."""

import errno
import threading
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

from service.bundles.kinds import WEB, file_system
from service.contract import files
from service.contract.lines import one_line
from service.errors import BodyTooLarge
from service.score.errors import ScoreError
from service.settings.places import without_password

State = list[Any] | None  # bytes, and what is another when the file is another
# Of some kind of place each.
CHANGES = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "modify", "created")
_states: dict[str, State] = {}
VERSION = "?versionId="  # s3fs reads what stands before it, whatever stands behind it
NO_VERSION = (
    f"s3fs takes {VERSION} for no part of a name, and asks for no version either: copy the file to another name, or "
    "set FSSPEC_S3_VERSION_AWARE=true for a version"
)
OF_HOSTS = ("ftp", "sftp", "ssh")  # whose paths begin at the host's root


def is_remote(path: str) -> bool:
    """Whether it is an address; file:// is one too."""
    return "://" in path


def find(address: str, *, every: bool, say: Callable[[str], object] = bool) -> list[str]:
    """The addresses below a folder, of a pattern or of one file, in sorted order: images, or with `every` all files.

    Below a folder hidden files are left out, and without `every` those whose name does not end like an image's, as
    nobody looks into them; `say` is told of both. Raises ScoreError where the place cannot be reached.
    """
    scheme, _, _ = address.partition("://")
    about: dict[str, dict[str, Any]]
    try:
        system, path = _system(address)
        if not address.endswith("/") and system.isfile(path):  # whatever signs are in its name
            found = list(about := {path: system.info(path)})
        elif any(sign in path for sign in "*?["):
            about = system.glob(path, detail=True)
            found = [p for p, info in about.items() if info.get("type") != "directory"]
        else:
            about = system.find(path, detail=True)
            every_file = [p for p in about if not p.endswith("/")]  # as object stores mark a folder
            below = [p for p in every_file if not _hidden(p, path)]
            if not below and address.startswith(WEB):
                system.ls(path)  # find takes a server that cannot be reached for an empty folder
            found = below if every else [p for p in below if _suffix(p) in files.SUFFIXES]
            _notes(
                address, Counter(map(_suffix, below)) - Counter(map(_suffix, found)), len(every_file) - len(below), say
            )
    except ScoreError:
        raise
    except FileNotFoundError as error:
        if not address.startswith(WEB):
            raise ScoreError(f"{address} cannot be listed: {one_line(error)}") from error
        raise ScoreError(f"{address} is not there: the server answers 404") from error
    except Exception as error:  # each kind of place has its own
        raise ScoreError(f"{address} cannot be listed: {one_line(error)}") from error
    start = f"{scheme}://{_host(address)}"  # of a web server it is part of the paths
    whole = scheme == "file" or bool(_host(address))
    named = {p if is_remote(p) else start + (p if whole else p.removeprefix("/")): about[p] for p in found}
    _states.update((name, _state(info)) for name, info in named.items())
    return sorted(named)


def state(address: str) -> State:
    """Of a file as `find` has seen it; None where it did not, or the place tells nothing that changes with the file."""
    return _states.get(address)


def _state(info: dict[str, Any]) -> State:
    told = next((str(info[name]) for name in CHANGES if info.get(name)), None)
    return None if told is None else [info.get("size"), told]


def read(address: str, limit: int) -> bytes:
    """The content of a file. Raises OSError, and BodyTooLarge for one of more than `limit` bytes."""
    try:
        system, path = _system(address)
        if VERSION in path and getattr(system, "version_aware", None) is False:
            raise OSError(errno.EINVAL, NO_VERSION)
        with system.open(path, "rb") as file:
            data: bytes = file.read(limit + 1)
    except FileNotFoundError as error:  # some kinds leave errno out
        raise FileNotFoundError(errno.ENOENT, "No such file") from error
    except OSError:
        raise
    except Exception as error:  # each kind of place has its own
        raise OSError(errno.EIO, one_line(error)) from error
    if len(data) > limit:
        raise BodyTooLarge(
            f"the file has more than {limit} bytes: send a smaller file, or raise TAILGUARD_MAX_BODY_BYTES"
        )
    return data


def _system(address: str) -> tuple[Any, str]:
    scheme = address.partition("://")[0]
    host = _host(address)
    if ":" in host.rpartition("@")[0]:
        raise ScoreError(
            f"{without_password(address)} was given with a password, which every row would repeat: leave it out "
            f"and set FSSPEC_{scheme.upper()}_PASSWORD instead"
        )
    system = _opened(f"{scheme}://{host or 'x'}", threading.get_ident() if host else 0)
    return system, str(system._strip_protocol(address)).rstrip("/")


def _host(address: str) -> str:
    """Of a kind of place where the path alone does not name it; "" of others, which have it in the path."""
    scheme, _, rest = address.partition("://")
    return rest.partition("/")[0] if scheme in OF_HOSTS else ""


@lru_cache
def _opened(place: str, thread: int) -> Any:
    """One file system for each kind of place: it holds the connections. For each host and thread one where a
    connection is to a host and does one thing at a time."""
    return file_system(f"{place}/x")[0]


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower() or files.NO_SUFFIX


def _notes(address: str, left_out: Counter[str], hidden: int, say: Callable[[str], object]) -> None:
    """What was left out below a folder, in sentences."""
    if n := left_out.total():
        kinds = files.counted(left_out)
        say(f"{address}: left out {n} whose name does not end like an image's ({kinds}); --all-files takes every file")
    if hidden:
        say(files.hidden_note(address, hidden))


def _hidden(path: str, below: str) -> bool:
    return any(files.is_hidden(part) for part in PurePosixPath(path.removeprefix(below)).parts if part != "/")
