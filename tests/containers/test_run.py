"""The real image and the real stack on a real engine: start, answer, be watched, drain. Minutes; needs docker compose.

    eval "$(../shared/tools/container-engine.sh up /tmp/engine)"
    python -m pytest -m slow tests/containers

The service runs on the host's network (docker/compose.host.yaml); Prometheus and Alertmanager are Debian's.
"""

import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.containers.files import ROOT

stack = pytest.importorskip("tests.monitoring.stack")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

BASE = "python:3.11-slim-bookworm"
IMAGE = "tailguard:0.1.0-cpu"
LARGEST_BYTES = 250e6  # of our own layers
CAT = ROOT / "models/cifar10-lt/1/examples/cat.png"


def docker(*arguments: str, check: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["docker", *arguments], cwd=ROOT, env=os.environ | environ, capture_output=True, text=True, timeout=900
    )
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


@dataclass
class Running:
    """The service in its container; `keys` as `docker compose run keys show` prints them."""

    port: int
    keys: dict[str, str] = field(repr=False)

    def compose(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        files = ("-p", "tailguard-test", "-f", "compose.yaml", "-f", "docker/compose.host.yaml")
        return docker("compose", *files, *arguments, check=check, SERVICE_PORT=str(self.port))

    @property
    def container(self) -> str:
        return self.compose("ps", "-aq", "tailguard").stdout.strip()

    def inspect(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(docker("inspect", self.container).stdout)[0]
        return found

    def python(self, code: str) -> str:
        return self.compose("exec", "tailguard", "python", "-c", code).stdout.strip()

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers={"x-api-key": self.keys["client_key"]})


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    if shutil.which("docker") is None or docker("info", check=False).returncode != 0:
        pytest.skip("no container engine answers: ../shared/tools/container-engine.sh starts one")
    if docker("compose", "version", check=False).returncode != 0:
        pytest.skip("docker compose is not installed")
    started = Running(stack.free_port(), {})
    started.compose("down", "-v")
    try:
        started.compose("build", "tailguard")
        started.compose("up", "-d", "--wait", "tailguard")
        shown = started.compose("run", "--rm", "keys", "show").stdout
        started.keys = dict(line.split(": ") for line in shown.splitlines())
        yield started
    finally:
        started.compose("down", "-v", check=False)


def test_the_service_comes_up_healthy_and_answers_whoever_has_a_key(running: Running) -> None:
    assert running.inspect()["State"]["Health"]["Status"] == "healthy"
    with running.client() as client, CAT.open("rb") as image:
        answer = client.post("/classify", files={"file": image})
        assert answer.status_code == 200
        assert answer.json()["model"]["name"] == "cifar10-lt"
        assert client.post("/classify", headers={"x-api-key": "wrong"}, files={"file": b""}).status_code == 401


def test_the_container_is_read_only_not_root_and_without_capabilities(running: Running) -> None:
    found = running.inspect()
    assert found["HostConfig"]["ReadonlyRootfs"] is True
    assert found["Config"]["User"] == "10001:10001"
    assert running.python("import os; print(os.getuid(), os.getgid())") == "10001 10001"
    status = running.python("print(open('/proc/1/status').read())")
    assert dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)["CapEff"].strip("0") == ""
    with pytest.raises(AssertionError, match="Read-only file system"):
        running.python("open('/app/x', 'w')")


def test_the_image_is_small_and_has_neither_torch_nor_training_nor_pip(running: Running) -> None:
    sizes = [int(docker("image", "inspect", "-f", "{{.Size}}", name).stdout) for name in (IMAGE, BASE)]
    assert sizes[0] - sizes[1] < LARGEST_BYTES
    assert running.python(
        "import importlib.util as u; print([m for m in ('torch', 'training', 'pip') if u.find_spec(m)])"
    ) == str([])


def test_the_ledger_lies_on_its_volume(running: Running) -> None:
    with running.client() as client, CAT.open("rb") as image:
        asked = client.post("/classify", files={"file": image}).json()["request_id"]
        assert client.post("/feedback", json={"request_id": asked, "label": "cat"}).status_code < 300
    assert "ledger.sqlite3" in running.python("import os; print(os.listdir('/var/lib/tailguard'))")


def test_prometheus_with_the_projects_configuration_scrapes_it_with_its_own_key(
    running: Running, tmp_path: Path
) -> None:
    if not all(map(stack.program, stack.PROGRAMS)):
        pytest.skip("prometheus or alertmanager is not installed: apt-get install prometheus prometheus-alertmanager")
    address, alertmanager = f"127.0.0.1:{stack.free_port()}", f"127.0.0.1:{stack.free_port()}"
    config = stack.prometheus_configuration(tmp_path, f"127.0.0.1:{running.port}", alertmanager, address)
    key = running.compose("run", "--rm", "--entrypoint", "cat", "keys", "/keys/prometheus/metrics_key").stdout
    (tmp_path / "metrics_key").write_text(key)
    watched = {
        address: ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"],
        alertmanager: [
            "alertmanager",
            f"--config.file={ROOT / 'docker/alertmanager/alertmanager.yml'}",
            f"--storage.path={tmp_path / 'alertmanager'}",
            "--cluster.listen-address=",
        ],
    }
    with ExitStack() as ends:
        for where, (name, *arguments) in watched.items():
            command = [str(stack.program(name)), *arguments, f"--web.listen-address={where}"]
            log = ends.enter_context((tmp_path / f"{name}.log").open("w"))
            process = ends.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
            ends.callback(process.terminate)
        prometheus = ends.enter_context(httpx.Client(base_url=f"http://{address}"))
        query = {"query": 'up{job="tailguard"} == 1 and on () sum(tailguard_requests_total) > 0'}

        def scraped() -> bool:
            try:
                return bool(prometheus.get("/api/v1/query", params=query).json()["data"]["result"])
            except httpx.TransportError:
                return False

        stack.wait(scraped, "a scrape of the container")
        managers = prometheus.get("/api/v1/alertmanagers").json()["data"]["activeAlertmanagers"]
        assert [manager["url"] for manager in managers] == [f"http://{alertmanager}/api/v2/alerts"]


def test_another_bundle_takes_the_place_of_the_one_in_the_image(running: Running, tiny_bundle: Path) -> None:
    mounted = f"{tiny_bundle}:/mnt/models:ro"
    done = docker("run", "--rm", "--network", "none", "--read-only", "-v", mounted, IMAGE, "inspect", "/mnt/models")
    named = json.loads((tiny_bundle / "manifest.json").read_text())["name"]
    assert named != "cifar10-lt"
    assert named in done.stdout


def test_term_answers_what_has_begun_and_then_ends(running: Running) -> None:
    """A request whose body is half sent when TERM comes is answered, while readiness already says no."""
    body = CAT.read_bytes()
    head = (
        f"POST /classify HTTP/1.1\r\nHost: x\r\nX-API-Key: {running.keys['client_key']}\r\n"
        f"Content-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with running.client() as client, socket.create_connection(("127.0.0.1", running.port), timeout=30) as begun:
        begun.sendall(head.encode() + body[:100])
        stopping = threading.Thread(target=running.compose, args=("stop", "tailguard"))
        stopping.start()
        stack.wait(lambda: client.get("/health/ready").status_code == 503, "readiness to say no")
        begun.sendall(body[100:])
        assert begun.recv(65536).startswith(b"HTTP/1.1 200")
        stopping.join(60)
    state = running.inspect()["State"]
    assert (state["Running"], state["ExitCode"]) == (False, 0)
    running.compose("start", "tailguard")
    with running.client() as client:
        stack.wait(lambda: _ready(client), "the service, again")


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False
