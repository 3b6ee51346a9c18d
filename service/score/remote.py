"""Inputs in object stores, s3://…, gs://…, and everything else that fsspec knows: found and read by address."""

import errno
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

from service.bundles.addresses import file_system
from service.contract import files
from service.contract.lines import one_line
from service.errors import BodyTooLarge
from service.score.errors import ScoreError


def is_remote(path: str) -> bool:
    """Whether it is an address; file:// is one too."""
    return "://" in path


def find(address: str, *, every: bool) -> list[str]:
    """The addresses below a folder, of a pattern or of one file, in sorted order: images, or with `every` all files.

    Hidden files are left out below a folder. Raises ScoreError where the place cannot be reached.
    """
    scheme, _, _ = address.partition("://")
    try:
        system, path = _system(address)
        if not address.endswith("/") and system.isfile(path):  # whatever signs are in its name
            found = [path]
        elif any(sign in path for sign in "*?["):
            found = [p for p in system.glob(path) if not system.isdir(p)]
        else:
            below = [p for p in system.find(path) if not _hidden(p, path)]
            found = below if every else [p for p in below if PurePosixPath(p).suffix.lower() in files.SUFFIXES]
    except ScoreError:
        raise
    except Exception as error:  # each kind of place has its own
        raise ScoreError(f"{address} cannot be listed: {one_line(error)}") from error
    start = f"{scheme}://"  # of a web server it is part of the paths
    return sorted(p if is_remote(p) else start + (p if scheme == "file" else p.removeprefix("/")) for p in found)


def read(address: str, limit: int) -> bytes:
    """The content of a file. Raises OSError, and BodyTooLarge for one of more than `limit` bytes."""
    try:
        system, path = _system(address)
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
    system = _opened(scheme)
    return system, str(system._strip_protocol(address)).rstrip("/")


@lru_cache
def _opened(scheme: str) -> Any:
    """One file system for each kind of place: it holds the connections."""
    return file_system(f"{scheme}://x")[0]


def _hidden(path: str, below: str) -> bool:
    return any(files.is_hidden(part) for part in PurePosixPath(path.removeprefix(below)).parts if part != "/")
