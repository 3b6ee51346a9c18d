"""The kinds of places that bundles come from, and how files are copied from each: fsspec's, and MLflow's registry."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from service.bundles.watched import STALLED_S, watched
from service.contract.bundle import BundleError
from service.contract.lines import shortened
from service.settings.places import MLFLOW, Source, without_password

WEB = ("http://", "https://")
PIN = "#sha256="
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub",
            "http": "aiohttp", "https": "aiohttp", "sftp": "paramiko", "ssh": "paramiko"}  # fmt: skip
COPY_BYTES = 2**18  # at once, and asked for at once: a slow place is seen to send

Copy = Callable[[str, Path, int], None]  # copy(name, into, most_bytes): a file of the bundle is now `into`


def shown(source: Source) -> str:
    """For logs and errors: an address without user, password and options."""
    return without_password(str(source).partition(PIN)[0])


def said(error: BaseException) -> str:
    """What an error of a library says, without the secrets of an address in it."""
    text = re.sub(r"[a-z0-9+]+://[^\s'\"<>]+", lambda found: shown(found[0]), str(error))
    bare = isinstance(error, FileNotFoundError) and re.fullmatch(r"\w+://\S+", text)
    return shortened(text) + (" is not there" if bare else "") or type(error).__name__


def reader(address: str, partial: Path) -> Copy:
    """How files are copied from `address` into `partial`, watched. Raises BundleError where a package is missing."""
    kind = _mlflow if address.startswith(MLFLOW) else _plain
    copy = watched(lambda: kind(address), partial, shown(address))

    def copy_watched(name: str, into: Path, most_bytes: int) -> None:
        watched(lambda: copy(name, into, most_bytes), partial, f"{shown(address)}: {name}")

    return copy_watched


def _plain(address: str) -> Copy:
    system, root = file_system(address)
    web = address.startswith(WEB)  # is read as it comes, not in parts
    root, mark, options = root.partition("?") if web else (root, "", "")  # such as a token, behind the path
    how = {"block_size": 0, "size": 1} if web else {"block_size": COPY_BYTES}  # a size given is not asked for by HEAD

    def copy(name: str, into: Path, most_bytes: int) -> None:
        path = f"{root.rstrip('/')}/{quote(name)}{mark}{options}" if web else f"{root}/{name}"
        size = 0
        with system.open(path, "rb", **how) as source, into.open("wb") as target:
            while block := source.read(COPY_BYTES):
                size += len(block)
                if size > most_bytes:
                    raise BundleError(f"{shown(address)}: {name} and what came before it have more than "
                                      f"{most_bytes} bytes, which is no bundle of this program")  # fmt: skip
                target.write(block)
                target.flush()  # whoever watches sees it

    return copy


def file_system(address: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path in it. BundleError names the package that is missing."""
    scheme, _, behind = address.partition("://")
    if not behind.strip("/"):  # fsspec takes s3: for a folder of that name, here
        raise BundleError(f"{shown(address)} names nothing behind its kind: give an address such as s3://models/shop/3")
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise BundleError(f"{shown(address)} needs fsspec: pip install 'tailguard[store]'") from error
    try:
        system, root = url_to_fs(address, use_listings_cache=False, **_patience(address))
        system.invalidate_cache()  # that of the Hub remembers sizes all the same, and would cut what has grown since
    except ImportError as error:
        named = PACKAGES.get(scheme, "the package of that kind")
        raise BundleError(f"{shown(address)} needs {named}: pip install {named} ({said(error)})") from error
    except ValueError as error:
        raise BundleError(f"{shown(address)}: fsspec does not know {scheme}:// ({said(error)})") from error
    return system, str(root).rstrip("/")


def _patience(address: str) -> dict[str, Any]:
    """Options for a web server, which aiohttp would wait for in silence for 5 minutes, and cut off after 5 minutes."""
    if not address.startswith(WEB):
        return {}
    import aiohttp
    from fsspec.config import conf

    given = conf.get(address.partition("://")[0], {}).get("client_kwargs", {})
    patience_s = 2 * STALLED_S  # of a bundle `watched` tells it before
    limits = aiohttp.ClientTimeout(total=None, sock_connect=patience_s, sock_read=patience_s)
    return {"client_kwargs": {"timeout": limits} | given}


def _mlflow(address: str) -> Copy:
    try:
        from mlflow.artifacts import download_artifacts  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise BundleError(f"{address} needs mlflow: pip install mlflow") from error

    def copy(name: str, into: Path, most_bytes: int) -> None:
        found = Path(download_artifacts(artifact_uri=f"{address}/{name}", dst_path=str(into.parent)))
        if found.stat().st_size > most_bytes:
            raise BundleError(f"{address}: {name} has {found.stat().st_size} bytes, which is no bundle of this program")
        if found != into:
            os.replace(found, into)

    return copy
