"""CPU and memory of real process trees, and servers that leave something behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import processes
from tests.bench.processes import BenchError

BURN = "import time\nwhile time.process_time() < 0.5: pass\n"


def python(code: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.parametrize("after", ["input()", "child.stdin.close(); child.wait(); print(2, flush=True); input()"])
def test_cpu_of_children_counts_while_they_live_and_after_they_ended(after: str) -> None:
    child = BURN + "print(1, flush=True); input()"
    code = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdin=-1, stdout=-1, stderr=subprocess.DEVNULL)\n"
        f"child.stdout.readline(); print(1, flush=True); {after}"
    )
    with python(code) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        if "wait" in after:
            parent.stdout.readline()
            assert list(processes.tree(parent.pid)) == [parent.pid]
        else:
            assert len(processes.tree(parent.pid)) == 2
        assert processes.cpu_s(parent.pid) >= 0.45  # of ticks of 10 ms, of which each process may lose one
        assert processes.memory_bytes(parent.pid) > 1e6
        os.killpg(parent.pid, signal.SIGKILL)


ORPHAN = "import os, sys, time\nprint('listening on http://127.0.0.1:1', flush=True)\nos.fork()\n"


@pytest.mark.parametrize(
    "end", ["time.sleep(600)", "import signal; signal.signal(15, signal.SIG_IGN); time.sleep(600)"]
)
def test_whatever_a_server_leaves_behind_is_ended(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "END_S", 0.2)
    with processes.started([sys.executable, "-c", ORPHAN + end], os.environ) as server:
        assert server.pid is not None
        while len(members := list(processes.tree(server.pid))) < 2:
            pass
    for pid in members:
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or ") Z " in state.read_text()  # an orphan that init has not yet waited for


def test_term_ends_the_server_too() -> None:
    end = "time.sleep(600)"
    code = (
        "import os, sys, time\nfrom tests.bench.processes import started\n"
        f"with started([sys.executable, '-c', {ORPHAN + end!r}], os.environ) as server:\n"
        "    print(server.pid, flush=True)\n    time.sleep(600)"
    )
    with python(code) as bench:
        assert bench.stdout is not None
        leader = int(bench.stdout.readline())
        assert processes.tree(leader)
        bench.terminate()
        assert bench.wait() == 128 + signal.SIGTERM
    assert all(stat.state in processes.ENDED for stat in processes.tree(leader).values())


def test_a_server_that_does_not_start_says_why() -> None:
    with (
        pytest.raises(BenchError, match="it ended with 3: no bundle"),
        processes.started(
            [sys.executable, "-c", "import sys; print('no bundle', file=sys.stderr); sys.exit(3)"], os.environ
        ),
    ):
        raise AssertionError("it does not listen")
