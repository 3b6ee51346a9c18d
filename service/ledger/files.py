"""The kinds of places where a store's files can be: a folder, the memory of this process, an address of fsspec."""

import asyncio
import os
import time
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

LEFT_BEHIND_S = 600.0  # a temporary file so old is of a process that was killed
TOGETHER = 50  # files that are deleted at once where each request goes over a network


class Files(Protocol):
    """Names to bytes. Errors are OSError or those of a driver; a name that is not there is None, and no error."""

    together: int  # names that `delete` takes at once with some gain

    def write(self, name: str, data: bytes) -> None: ...

    def read(self, name: str) -> bytes | None: ...

    def delete(self, names: Sequence[str]) -> None: ...

    def has(self, name: str) -> bool: ...

    def mark(self) -> str:
        """What a copy of the place does not have; "" for a place that is yet to be made."""
        ...


class Folder:
    """A file appears whole or not at all: it is written under another name, then renamed."""

    together = 1

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

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            (self._folder / name).unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        return (self._folder / name).is_file()

    def mark(self) -> str:
        return str(self._folder.stat().st_ino)  # alone: a network's disk is another one from each machine

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

    together = 1

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}

    def write(self, name: str, data: bytes) -> None:
        self._files[name] = data

    def read(self, name: str) -> bytes | None:
        return self._files.get(name)

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            self._files.pop(name, None)

    def has(self, name: str) -> bool:
        return name in self._files

    def mark(self) -> str:
        return ""


class Remote:
    """A place that fsspec knows. Object stores write a file whole or not at all; other kinds may leave a part, which
    Store.get does not take for the file."""

    together = TOGETHER

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

    def delete(self, names: Sequence[str]) -> None:
        """Each by a request of its own, together: s3fs's `rm` of many does not say which ones were refused."""
        system, _ = self._at("")
        paths = [self._at(name)[1] for name in names]
        if system.async_impl:
            from fsspec.asyn import sync

            done = sync(system.loop, _all, [system._rm_file(path) for path in paths])
            error = next(
                (e for e in done if isinstance(e, BaseException) and not isinstance(e, FileNotFoundError)), None
            )
            if error is not None:
                raise error
            return
        for path in paths:
            with suppress(FileNotFoundError):
                system.rm_file(path)

    def has(self, name: str) -> bool:
        system, path = self._at(name)
        return bool(system.exists(path))

    def mark(self) -> str:
        return self._at("")[1]

    def _at(self, name: str) -> tuple[Any, str]:
        if self._opened is None:  # not before: some kinds connect at once
            from fsspec.core import url_to_fs

            system, path = url_to_fs(self._address, use_listings_cache=False)
            self._opened = (system, path.rstrip("/"))
        system, root = self._opened
        return system, f"{root}/{name}"


async def _all(calls: Sequence[Awaitable[None]]) -> list[BaseException | None]:
    return await asyncio.gather(*calls, return_exceptions=True)
