"""The way to a Ray cluster: what a stranger would trip over is said in one line, before Ray is asked."""

import importlib.util
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from service.contract import cluster
from service.contract.cluster import ClusterError

ROOT = Path(__file__).resolve().parents[3]


def test_without_ray_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"pip install 'tailguard\[ray\]'"):
        cluster.require_ray()


def test_ray_is_not_loaded_before_it_is_asked_for() -> None:
    code = "import sys, service.score.on_ray, training.network.on_ray; print({'ray', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("address", ["", "local"])
def test_no_address_means_a_cluster_of_its_own(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cluster.ADDRESS, address)
    assert cluster._address() is None


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "head", "head:", ":6379", "head:port"])
def test_an_address_of_another_form_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cluster.ADDRESS, address)
    with pytest.raises(ClusterError, match=r"give HOST:PORT of the head node"):
        cluster._address()


def test_an_address_that_does_not_answer_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as there:
        port = there.getsockname()[1]
        monkeypatch.setenv(cluster.ADDRESS, f"127.0.0.1:{port}")
        assert cluster._address() == f"127.0.0.1:{port}"
    with pytest.raises(ClusterError, match=rf"127\.0\.0\.1:{port} does not answer \(Connection refused\)"):
        cluster._address()


LOSING = """
import signal
from service.contract import cluster
class Work:
    def __call__(self, row): return row
items = [{"i": i} for i in range(40)]
with cluster.joined(1, "ray") as ray, cluster.planned(ray, items, Work, (), None) as rows:
    for row in rows:
        print(row["i"], flush=True)
        if row["i"] == 3:
            try: signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt: pass
"""


@pytest.mark.timeout(200)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (ray[data])")
def test_an_interrupt_that_was_lost_ends_the_rows_all_the_same() -> None:
    """As in a destructor, where Python prints the exception and goes on."""
    done = subprocess.run([sys.executable, "-c", LOSING], cwd=ROOT, capture_output=True, text=True)
    rows = [line for line in done.stdout.splitlines() if line.isdecimal()]  # Ray may say there what it gave up
    assert rows == ["0", "1", "2", "3"], done.stderr
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")
    assert done.returncode != 0


def test_of_all_tracebacks_the_last_error_is_said() -> None:
    error = RuntimeError(
        "Traceback:\n  File x\nValueError: first\nmore\nservice.errors.EngineError: the graph failed\nat"
    )
    assert cluster.reason(error, "cpu,ray") == "service.errors.EngineError: the graph failed"
    error = RuntimeError("Traceback:\nModuleNotFoundError: No module named 'service'\nray.exceptions.RayError: died")
    assert cluster.reason(error, "cpu,ray") == (
        "a worker lacks the package service: install on every node of the cluster what is installed here, "
        "pip install 'tailguard[cpu,ray]'"
    )
    assert cluster.reason(RuntimeError("one\ntwo"), "cpu") == "one two"
