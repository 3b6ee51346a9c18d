"""The real programs for one test: service, Prometheus, Alertmanager and a webhook, on free ports of loopback.

Configuration and rules are the project's own, copied with three kinds of changes: addresses; intervals of a second; and
durations, see SHORTENED. The label `window` keeps its name, so `window="5m"` means ten seconds in here.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml

from tests.live import ROOT

PROMETHEUS = ROOT / "docker" / "prometheus"
ALERTMANAGER = ROOT / "docker" / "alertmanager" / "alertmanager.yml"
PROGRAMS = {"prometheus": "prometheus", "alertmanager": "prometheus-alertmanager"}  # as Debian calls them
KEY = "a-key-of-the-test"
START_S = 60
SHORT_S = 10
LONG = "10m"  # longer than a test, so these windows see all there was
FOR = "4s"

T = TypeVar("T")
Json = dict[str, Any]


def program(name: str) -> str | None:
    """Where a program is, under its own name or Debian's."""
    return shutil.which(name) or shutil.which(PROGRAMS[name])


def shortened(rules: str) -> str:
    """Rules whose five minutes are ten seconds, whose other windows are the whole test, and whose `for` is FOR."""
    ranges = re.sub(r"\[(\w+)\]", lambda found: f"[{SHORT_S}s]" if found[1] == "5m" else f"[{LONG}]", rules)
    return re.sub(r"(?m)^( +for:) \w+$", rf"\1 {FOR}", ranges)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait(until: Callable[[], T | None], what: str, seconds: float = START_S) -> T:
    """What `until` returns, as soon as it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := until():
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {seconds:g} s")


@dataclass
class Stack:
    service: httpx.Client
    prometheus: httpx.Client
    notified: list[Json] = field(default_factory=list)  # alerts as the webhook got them, in order

    def ask(self, expr: str) -> list[Json]:
        """The series of an instant query: {"metric": labels, "value": [time, text]}."""
        return self._asked("/api/v1/query", {"query": expr})

    def ask_range(self, expr: str, seconds: float) -> list[Json]:
        """The series of a range query, {"metric": labels, "values": […]}, from `seconds` ago, by the second."""
        now = time.time()
        return self._asked("/api/v1/query_range", {"query": expr, "start": now - seconds, "end": now, "step": 1})

    def _asked(self, path: str, data: Json) -> list[Json]:
        answer = self.prometheus.post(path, data=data)
        assert answer.status_code == 200, f"{data['query']}: {answer.text}"
        found: list[Json] = answer.json()["data"]["result"]
        return found

    def value(self, expr: str) -> float:
        """The one value of an instant query."""
        found = self.ask(expr)
        assert len(found) == 1, f"{expr}: {found}"
        return float(found[0]["value"][1])

    def state(self, alert: str, **labels: str) -> str:
        """inactive, pending or firing."""
        found = self.prometheus.get("/api/v1/alerts").json()["data"]["alerts"]
        wanted = {"alertname": alert} | labels
        states = [a["state"] for a in found if wanted.items() <= a["labels"].items()]
        return states[0] if states else "inactive"


@contextmanager
def running(folder: Path, bundle: Path) -> Iterator[Stack]:
    with ExitStack() as ends:
        log = folder / "service.log"
        ends.enter_context(_process([sys.executable, "-m", "service", "serve"], log, _settings(bundle)))
        listening = re.compile(r"listening on (http://[\d.]+:\d+)")
        address = wait(lambda: listening.search(log.read_text()), "the service")[1]
        notified: list[Json] = []
        webhook = ends.enter_context(_webhook(notified))
        alertmanager = ends.enter_context(_alertmanager(folder, webhook))
        prometheus = ends.enter_context(_prometheus(folder, address, alertmanager))
        service = httpx.Client(base_url=address, timeout=START_S, headers={"x-api-key": KEY})
        yield Stack(
            ends.enter_context(service),
            ends.enter_context(httpx.Client(base_url=prometheus, timeout=START_S)),
            notified,
        )


def _settings(bundle: Path) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("TAILGUARD_")}
    ours = {"BUNDLE": str(bundle), "PORT": "0", "API_KEY": KEY, "DRAIN_GRACE_S": "0", "QUEUE_IMAGES": "256"}
    return inherited | {f"TAILGUARD_{k}": v for k, v in ours.items()}


@contextmanager
def _process(command: list[str], log: Path, environ: dict[str, str] | None = None) -> Iterator[None]:
    with log.open("w") as stream:
        started = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=stream, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            started.terminate()
            started.wait(START_S)


def _ready(address: str, path: str) -> bool:
    try:
        return httpx.get(address + path).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def _webhook(notified: list[Json]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            notified.extend(json.loads(self.rfile.read(int(self.headers["content-length"])))["alerts"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextmanager
def _alertmanager(folder: Path, webhook: str) -> Iterator[str]:
    config = yaml.safe_load(ALERTMANAGER.read_text())
    config["receivers"] = [{"name": r["name"], "webhook_configs": [{"url": webhook}]} for r in config["receivers"]]
    for route in (config["route"], *config["route"].get("routes", [])):
        route |= {"group_wait": "0s", "group_interval": "1s"}
    path = folder / "alertmanager.yml"
    path.write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        program("alertmanager") or "",
        f"--config.file={path}",
        f"--storage.path={folder / 'alertmanager'}",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
    ]
    with _process(command, folder / "alertmanager.log"):
        wait(lambda: _ready(f"http://{address}", "/-/ready"), "Alertmanager")
        yield address


def prometheus_configuration(folder: Path, service: str, alertmanager: str, own: str) -> Path:
    """The project's prometheus.yml and rules in `folder`, with addresses, key and times of a test."""
    (folder / "rules").mkdir()
    for rules in (PROMETHEUS / "rules").glob("*.yml"):
        (folder / "rules" / rules.name).write_text(shortened(rules.read_text()))
    (folder / "metrics_key").write_text(KEY + "\n")
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [alertmanager]
    targets = {"tailguard": service, "prometheus": own}
    for job in config["scrape_configs"]:
        job["static_configs"][0]["targets"] = [targets[job["job_name"]]]
        if "authorization" in job:
            job["authorization"]["credentials_file"] = str(folder / "metrics_key")
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


@contextmanager
def _prometheus(folder: Path, service: str, alertmanager: str) -> Iterator[str]:
    address = f"127.0.0.1:{free_port()}"
    config = prometheus_configuration(folder, service.removeprefix("http://"), alertmanager, address)
    command = [
        program("prometheus") or "",
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'prometheus'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    with _process(command, folder / "prometheus.log"):
        wait(lambda: _ready(f"http://{address}", "/-/ready"), "Prometheus")
        yield f"http://{address}"
