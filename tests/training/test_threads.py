"""The threads of torch do not take the core from each other while they wait."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live import ROOT


def policy(tmp_path: Path, **more: str) -> str:
    """What the OpenMP that torch brings says of itself where the trainer is imported."""
    environ = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environ |= {"PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "TRUE", **more}
    command = [sys.executable, "-c", "import training.network.network"]
    said = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True).stderr
    return said[said.index("OMP_WAIT_POLICY") :].splitlines()[0]


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings GNU's OpenMP on Linux alone")
def test_they_wait_without_a_loop_unless_somebody_wants_one(tmp_path: Path) -> None:
    assert policy(tmp_path) == "OMP_WAIT_POLICY = 'PASSIVE'"
    assert policy(tmp_path, OMP_WAIT_POLICY="ACTIVE") == "OMP_WAIT_POLICY = 'ACTIVE'"
