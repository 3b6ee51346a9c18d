"""One command under a limit of time: Ctrl-C at the end of it, which makes our commands write a checkpoint."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from service.settings.places import ROOT
from tests.gpu.step import Command, output

POLL_S = 0.1
GRACE_S = 45.0  # for the checkpoint
PR_SET_PDEATHSIG = 1

End = Literal["done", "interrupted", "failed"]


def run(command: Command, work: Path, limit_s: float, stopping: Callable[[], bool], lock: int) -> End:
    """What it prints is kept where it succeeds, what it says on stderr is added to <work>/log.txt.

    After `limit_s`, or as soon as `stopping` says so, it is interrupted, and killed with all of its group where it has
    not ended GRACE_S later. It holds the descriptor `lock` as long as it lives, and is interrupted when we are killed.
    """
    begun = output(work, command.name).with_suffix(".begun")
    with begun.open("wb") as out, (work / "log.txt").open("ab") as log:
        log.write(f"\n$ {' '.join(command.argv)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            command.argv, cwd=ROOT, env=_environ() | command.environ, stdin=subprocess.DEVNULL, stdout=out, stderr=log,
            start_new_session=True, pass_fds=[lock], preexec_fn=_interrupted_with_us,
        )  # fmt: skip
        asked = _wait(process, limit_s, stopping)
    if process.returncode == 0:
        os.replace(begun, output(work, command.name))
        return "done"
    return "interrupted" if asked else "failed"


def _wait(process: "subprocess.Popen[bytes]", limit_s: float, stopping: Callable[[], bool]) -> bool:
    """Until it has ended; whether it was asked to."""
    until = time.monotonic() + limit_s
    while process.poll() is None:
        if time.monotonic() >= until or stopping():
            _signal(process, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            _signal(process, signal.SIGKILL)  # also what it left behind in its group
            process.wait()
            return True
        time.sleep(POLL_S)
    return False


def _signal(process: "subprocess.Popen[bytes]", number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _interrupted_with_us() -> None:
    """In the child: Linux sends it SIGINT when this process dies, so that nothing trains on unseen."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)


def _environ() -> dict[str, str]:
    """Ours without settings of a service that was meant for something else; the project's modules are found first."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TAILGUARD_")}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return kept | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
