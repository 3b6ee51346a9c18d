"""Processes of a command that need not import torch or FastAPI anew: forks of a process that has imported them.

    warm.Popen([sys.executable, "-m", "training", "learn", ...], cwd=ROOT, stdout=subprocess.PIPE)

Each is a real child of this process with an id of its own, which a test may signal and kill. It does not show that a
command imports all that it needs: for that, start it with `subprocess`. Where there is no Linux, this is `subprocess`.
"""

import atexit
import ctypes
import functools
import gc
import importlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SUBREAPER = 36  # of prctl(2): a process whose parent has ended becomes a child of this one
MAINS = {
    "training": ("training", "training.__main__"),
    "service": ("service", "service.__main__"),
    "service.commands": ("training", "service.commands"),
}
"""What stands after -m: the process that it is forked from, and the module with its main()."""
IMPORTED = {
    "training": (
        "service.commands", "training.__main__", "training.fit.steps", "training.learn.steps", "training.learn.alone",
        "training.export.bundle", "training.trainer", "training.tables", "training.runs.several",
        "training.evaluation.evaluate", "onnxscript", "torch.onnx", "matplotlib.pyplot",
    ),
    "service": ("service.__main__",),
}  # fmt: skip
LARGEST = 1 << 20  # bytes of a request
NO_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
"""Threads that NumPy and onnxruntime begin when they are imported would be missing in a fork."""


class Popen(subprocess.Popen[Any]):
    """As subprocess.Popen, for [sys.executable, "-m", one of MAINS, ...]."""

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):  # type: ignore[no-untyped-def]
        if sys.platform != "linux":
            return super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)  # type: ignore[misc]
        _, _, shell, *pipes, _, gid, gids, uid, umask, new_session, group = rest
        python, flag, name, *arguments = map(os.fspath, args)
        assert (python, flag) == (sys.executable, "-m"), args
        assert (executable, preexec_fn, pass_fds, shell) == (None, None, (), False)
        assert (gid, gids, uid, umask, group) == (None, None, None, -1, -1)
        asked = {
            "main": MAINS[name][1], "arguments": arguments, "cwd": os.fspath(cwd or os.getcwd()),
            "environ": dict(os.environ if env is None else env), "new_session": new_session,
        }  # fmt: skip
        p2cread, _, _, c2pwrite, _, errwrite = pipes
        files = [own if given == -1 else given for own, given in enumerate((p2cread, c2pwrite, errwrite))]
        self.pid = _server(MAINS[name][0]).fork(asked, files)
        self._child_created = True
        self._close_pipe_fds(*pipes)


class _Server:
    """The process that has imported, and forks."""

    def __init__(self, kind: str) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.warm", kind, str(theirs.fileno())]
        with theirs:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | NO_THREADS, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        atexit.register(self.end)

    def fork(self, asked: dict[str, Any], files: list[int]) -> int:
        """The id of a new child of this process, which runs what is asked with these three open files."""
        prctl = ctypes.CDLL(None).prctl
        assert prctl(SUBREAPER, 1, 0, 0, 0) == 0
        try:
            socket.send_fds(self.socket, [json.dumps(asked).encode()], files)
            pid = int(self.socket.recv(32))
        finally:
            prctl(SUBREAPER, 0, 0, 0, 0)
        status = Path(f"/proc/{pid}/stat").read_text()
        assert int(status.rpartition(")")[2].split()[1]) == os.getpid(), "it is no child of this process"
        return pid

    def end(self) -> None:
        self.socket.close()
        self.process.wait()


_server = functools.cache(_Server)


def run(command: list[str], *, capture_output: bool = False, check: bool = False, timeout: float | None = None,
        **given: Any) -> subprocess.CompletedProcess[Any]:  # fmt: skip
    """As subprocess.run."""
    if capture_output:
        given |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **given) as process:
        try:
            out, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(command, process.returncode, out, errors)
    if check:
        done.check_returncode()
    return done


def _forked(kind: str, mine: socket.socket) -> str | None:
    """Import, then fork whenever asked; in a fork: the module whose main() is to run. None: nobody asks any more."""
    for name in IMPORTED[kind]:
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "threads do not live on in a fork"
    gc.collect()
    gc.freeze()
    while True:
        content, files, _, _ = socket.recv_fds(mine, LARGEST, 3)
        if not content:
            return None
        reading, writing = os.pipe()
        if (between := os.fork()) == 0:
            if os.fork():
                os._exit(0)  # so that the child becomes one of the process that has asked
            mine.close()
            name = _prepared(json.loads(content), files)
            os.write(writing, str(os.getpid()).encode())
            os.close(reading), os.close(writing)
            return name
        os.waitpid(between, 0)
        os.close(writing)
        mine.send(os.read(reading, 32))
        for file in (reading, *files):
            os.close(file)


def _prepared(asked: dict[str, Any], files: list[int]) -> str:
    """This process as if it had been started for what is asked."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    if asked["new_session"]:
        os.setsid()
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environ"])
    if os.environ.get("PYTHONUNBUFFERED"):
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    name: str = asked["main"]
    sys.argv = [str(sys.modules[name].__file__), *asked["arguments"]]
    return name


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[2])) as asking:
        wanted = _forked(sys.argv[1], asking)
    sys.exit(sys.modules[wanted].main() if wanted else 0)  # here, so that the interpreter ends as it always does
