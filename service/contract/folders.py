"""Folders: one that appears whole or not at all, and the user's cache."""

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

BOOT = Path("/proc/sys/kernel/random/boot_id")  # the same in all containers of a machine until it starts anew


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` at the end; where an error ends the block, nothing is there.

    What earlier ones left beside `out` whose processes were killed is removed first.
    """
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    machine = _machine()
    _clear_killed(out, machine)
    try:
        temporary.mkdir(parents=True)
        with ExitStack() as stack:
            with suppress(OSError):  # a network's file system locks no folders: the name stays, which nobody clears
                stack.enter_context(_held(temporary))
                temporary = temporary.rename(temporary.with_suffix(f".{machine}.partial")) if machine else temporary
            yield temporary
            os.rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _clear_killed(out: Path, machine: str) -> None:
    """Remove what was to become `out` and whose writer is gone: it was locked on this machine, and is no more.

    Of another machine, or of this one before it was started anew, nobody knows whether its writer lives: it stays.
    """
    own = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{8}}\.{machine}\.partial")  # .1.….partial, not .1.2.….partial
    for left in out.parent.glob(".*.partial") if machine else ():
        if own.fullmatch(left.name):
            with suppress(OSError), _held(left):
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Lock it until the block ends, or the process. OSError where another process has, or where none can."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(opened)


def _machine() -> str:
    """Names this machine since it was started; empty where the system does not say."""
    try:
        return BOOT.read_text(encoding="ascii").strip().replace("-", "")[:12]
    except OSError:
        return ""


def fill(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write `files`, by their paths inside `folder`, with the folders that they lie in."""
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def cache_folder() -> Path:
    """Where what was fetched is kept: tailguard in the user's cache folder, which XDG_CACHE_HOME names."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "tailguard"
