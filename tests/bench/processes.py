"""CPU and memory of a whole process tree from /proc, and starting and ending a server that prints where it listens."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from service.errors import TailGuardError

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
LISTENING = re.compile(r"listening on http://([\d.]+):(\d+)")
START_S = 120.0
END_S = 30.0
ENDED = "ZX"  # states of /proc/PID/stat


class BenchError(TailGuardError):
    """A measurement could not be made."""


@dataclass(frozen=True)
class Stat:
    """One line of /proc/PID/stat. `cpu_s`: of all threads, and of the children that have ended and were waited for."""

    state: str
    parent: int
    session: int
    cpu_s: float


def _stat(pid: int) -> Stat | None:
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:  # it has just ended
        return None
    fields = text.rpartition(")")[2].split()  # the name before may hold blanks; fields[0] is the state, field 3 of stat
    return Stat(fields[0], int(fields[1]), int(fields[3]), sum(map(int, fields[11:15])) / TICKS_PER_S)


def tree(root: int) -> dict[int, Stat]:
    """`root`, its descendants, and orphans of its session if it leads one: what one server consists of."""
    pids = [int(entry.name) for entry in PROC.iterdir() if entry.name.isdecimal()]
    every = {pid: stat for pid in pids if (stat := _stat(pid)) is not None}
    found = {pid for pid, stat in every.items() if pid == root or stat.session == root}
    while more := {pid for pid, stat in every.items() if stat.parent in found} - found:
        found |= more
    return {pid: every[pid] for pid in sorted(found)}


def cpu_s(root: int) -> float:
    """CPU seconds, user and system, that the tree of `root` has used. Resolution: a clock tick, usually 10 ms."""
    return sum(stat.cpu_s for stat in tree(root).values())


def memory_bytes(root: int) -> int:
    """Resident memory of the tree: a page shared by n of its processes counts 1/n in each (Pss), so once."""
    total = 0
    for pid in tree(root):
        with suppress(OSError):
            text = (PROC / str(pid) / "smaps_rollup").read_text()
            total += 1024 * sum(int(kib) for kib in re.findall(r"^Pss:\s+(\d+) kB", text, re.MULTILINE))
    return total


@dataclass(frozen=True)
class Endpoint:
    """Where to send requests; `pid` leads its process tree, None when we did not start it; `more` lead others of it."""

    host: str
    port: int
    pid: int | None
    more: tuple[int, ...] = ()

    @property
    def roots(self) -> tuple[int, ...]:
        return self.more if self.pid is None else (self.pid, *self.more)


@contextmanager
def started(
    command: Sequence[str],
    environ: Mapping[str, str],
    find: Callable[[str], tuple[str, int] | None] | None = None,
    cwd: Path | None = None,
) -> Iterator[Endpoint]:
    """Run a server until the block ends, then TERM; whatever is left of its session is killed.

    `find` gets what the server has printed and gives host and port once it listens; by default it looks for the
    service's "listening on http://HOST:PORT". Raises BenchError with the end of its output when it does not start.
    """
    with tempfile.TemporaryFile("w+") as log, _ended_by_term():
        process = subprocess.Popen(
            command, env=dict(environ), cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            host, port = _wait(process, log, find or _listening)
            yield Endpoint(host, port, process.pid)
        finally:
            _end(process)


@contextmanager
def _ended_by_term() -> Iterator[None]:
    """Let TERM unwind the block as Ctrl-C does: a server in a session of its own would outlive us."""
    if threading.current_thread() is not threading.main_thread():  # only there can handlers be set
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _wait(process: "subprocess.Popen[bytes]", log: IO[Any], find: Callable[[str], tuple[str, int] | None]) -> Any:
    deadline = time.monotonic() + START_S
    while (found := find(_text(log))) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            why = f"it ended with {process.returncode}" if process.returncode is not None else f"not in {START_S:g} s"
            last = _text(log).strip()[-2000:] or "it printed nothing"
            raise BenchError(f"the server {process.args!r} did not start, {why}: {last}")
        time.sleep(0.02)
    return found


def _listening(text: str) -> tuple[str, int] | None:
    found = LISTENING.search(text)
    return (found[1], int(found[2])) if found else None


def _text(log: IO[Any]) -> str:
    return os.pread(log.fileno(), 1 << 22, 0).decode(errors="replace")


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_S)
    deadline = time.monotonic() + END_S
    while (left := _living(process.pid)) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    process.wait()


def _living(root: int) -> list[int]:
    """The tree of `root` without what has ended and only waits to be waited for; orphans of its session are in it."""
    return [pid for pid, stat in tree(root).items() if stat.state not in ENDED]
