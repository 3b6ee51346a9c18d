"""The threads of torch do not take the core from each other while they wait."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live import ROOT


def spins(tmp_path: Path, **more: str) -> str:
    """How long the OpenMP that torch brings says it waits in a loop, where a part of the trainer is imported."""
    environ = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environ |= {"PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "VERBOSE", **more}
    command = [sys.executable, "-c", "import training.network.network"]
    said = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True).stderr
    return said[said.index("GOMP_SPINCOUNT") :].splitlines()[0]


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings GNU's OpenMP on Linux alone")
def test_they_wait_in_a_short_loop_unless_somebody_wants_another(tmp_path: Path) -> None:
    assert spins(tmp_path) == "GOMP_SPINCOUNT = '10000'"
    assert spins(tmp_path, OMP_WAIT_POLICY="PASSIVE") == "GOMP_SPINCOUNT = '0'"
    assert spins(tmp_path, GOMP_SPINCOUNT="77") == "GOMP_SPINCOUNT = '77'"
