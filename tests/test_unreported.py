"""Nothing is told to the makers of libraries. onnxruntime's wheel, for one, reports models unless it is told not to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service import UNREPORTED
from tests.live import ROOT

ON_RUNNERS = {"CI", "ORT_RUNNING_UNIT_TESTS"}  # where onnxruntime is quiet as well
SAID = "import onnxruntime, os; onnxruntime.get_available_providers(); print(os.environ['ORT_DISABLE_TELEMETRY'])"


def imported(module: str, home: Path, **more: str) -> str:
    hidden = ON_RUNNERS | set(UNREPORTED)
    environ = {k: v for k, v in os.environ.items() if k not in hidden and not k.startswith("XDG_")}
    environ |= {"HOME": str(home), "PYTHONPATH": str(ROOT), **more}
    command = [sys.executable, "-c", f"import {module}; {SAID}"]
    return subprocess.run(command, cwd=home, env=environ, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("module", ["service.inference.providers", "training.network.session"])
def test_onnxruntime_keeps_and_reports_nothing(module: str, tmp_path: Path) -> None:
    """Told so too late, or not at all, it writes the id of a device and a database of events below HOME."""
    assert imported(module, tmp_path) == "1"
    assert not list(tmp_path.rglob("*onnxruntime*"))


def test_who_wants_to_report_may(tmp_path: Path) -> None:
    assert imported("service", tmp_path, ORT_DISABLE_TELEMETRY="0") == "0"
