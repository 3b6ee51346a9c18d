"""What commands of several steps do alike: name the step, and run a single command whose print goes into a log."""

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from training.runs import checkpoint
from training.runs.files import LOG_FILE, RESULTS_FILE, with_suffix

LOCK_FILE = ".lock"


class Command(Protocol):
    def cli_cmd(self) -> None: ...


@contextlib.contextmanager
def alone_in(work: Path, remedy: str = "another --work") -> Iterator[None]:
    """Meanwhile no other process works in the folder `work`; ValueError where one does, which says to give `remedy`.

    A new folder into which nothing has come goes again where an error ends the block.
    """
    new = not work.exists()
    work.mkdir(parents=True, exist_ok=True)
    with (work / LOCK_FILE).open("a") as file:  # the lock goes with the process that holds it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{work}: another process is at work there: wait until it has ended, or give {remedy}"
                             ) from None  # fmt: skip
        try:
            yield
        except BaseException:
            if new and [path.name for path in work.iterdir()] == [LOCK_FILE]:
                shutil.rmtree(work, ignore_errors=True)
            raise


def at_work(work: Path) -> bool:
    """Whether a process is alone in the folder `work` now."""
    if not (work / LOCK_FILE).is_file():
        return False
    try:
        with alone_in(work):
            return False
    except ValueError:
        return True


def step(text: str) -> None:
    """Say what begins."""
    print(f"\n* {text}", flush=True)


def quietly(work: Path, command: Command) -> None:
    """Run a single command; what it prints goes into the log of the folder `work`."""
    with logged(work):
        command.cli_cmd()


@contextlib.contextmanager
def logged(work: Path) -> Iterator[None]:
    """What is printed meanwhile goes into the log of the folder `work`."""
    with (work / LOG_FILE).open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        yield


def is_measured(run: Path, score: str) -> bool:
    """Whether the run has results with this deciding score."""
    suffix = "" if score == checkpoint.trained(run).method.score else f"-{score}"
    return with_suffix(run / RESULTS_FILE, suffix).is_file()
