"""tests/warm.py: what it forks is the process that `subprocess` would have started."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import live, warm
from tests.service import tiny


def test_it_says_and_gives_what_a_process_of_its_own_does(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()  # as is known in `cwd` alone
    (tmp_path / "photos" / "a.png").write_bytes(tiny.photo())
    command = [sys.executable, "-m", "service", "score", "photos", "--out", "a.csv"]
    environ = os.environ | {"TAILGUARD_BUNDLE": "nowhere", "PYTHONPATH": str(live.ROOT)}
    given = {"cwd": tmp_path, "env": environ, "capture_output": True, "text": True}
    own, forked = (run(command, **given) for run in (subprocess.run, warm.run))
    assert own.returncode == 1
    assert "nowhere is not a bundle" in own.stderr
    assert (forked.returncode, forked.stdout, forked.stderr) == (own.returncode, own.stdout, own.stderr)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere tests/warm.py is subprocess")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 0)])
def test_it_is_a_child_that_ends_by_signals(number: signal.Signals, status: int, tiny_bundle: Path) -> None:
    environ = os.environ | {"TAILGUARD_BUNDLE": str(tiny_bundle), "TAILGUARD_PORT": "0", "TAILGUARD_DRAIN_GRACE_S": "0"}
    command = [sys.executable, "-m", "service", "serve"]
    with warm.Popen(
        command, cwd=live.ROOT, env=environ, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:  # fmt: skip
        assert os.getsid(process.pid) == process.pid
        assert any("listening on" in line for line in process.stderr)
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(60) == status
