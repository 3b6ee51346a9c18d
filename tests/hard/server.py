"""A real server process and what /proc says of it: memory, its peak, descriptors, threads, CPU, orphans."""

import http.client
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import service
from tests.bench.processes import cpu_s, tree

ROOT = Path(service.__file__).resolve().parent.parent
BUNDLE = ROOT / "models/cifar10-lt/1"
START_S = 60.0
END_S = 60.0
MIB = 2**20


class Server:
    """One `python -m service serve` on a free port, in a session of its own so that orphans can be found.

    `settings` are TAILGUARD_ settings without the prefix. Raises RuntimeError when it does not listen in time.
    """

    def __init__(self, **settings: str) -> None:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("TAILGUARD_")}
        self.temporary = tempfile.TemporaryDirectory(prefix="tailguard-hard-")
        environ = inherited | {"TMPDIR": self.temporary.name, "TAILGUARD_PORT": "0", "TAILGUARD_BUNDLE": str(BUNDLE)}
        environ |= {f"TAILGUARD_{name}": value for name, value in settings.items()}
        self._log = tempfile.TemporaryFile("w+b")  # noqa: SIM115  # it lives as long as this object
        self.process = subprocess.Popen(
            [sys.executable, "-m", "service", "serve"],
            cwd=ROOT, env=environ, stdout=self._log, stderr=self._log, start_new_session=True,
        )  # fmt: skip
        self.pid = self.process.pid
        try:
            self.port = self._listening()
        except BaseException:
            self.kill()
            raise

    def _listening(self) -> int:
        deadline = time.monotonic() + START_S
        while not (found := re.search(r"listening on http://127\.0\.0\.1:(\d+)", self.log())):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the service did not start:\n{self.log()}")
            time.sleep(0.02)
        return int(found[1])

    def log(self) -> str:
        """Everything it has written so far."""
        return os.pread(self._log.fileno(), 1 << 24, 0).decode(errors="replace")

    # What /proc says -------------------------------------------------------------------------------------------------

    def rss(self) -> int:
        """Resident bytes now."""
        return self._status("VmRSS") * 1024

    def peak_rss(self) -> int:
        """The largest resident bytes since `forget_peak`."""
        return self._status("VmHWM") * 1024

    def forget_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def threads(self) -> int:
        return self._status("Threads")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def cpu_s(self) -> float:
        return cpu_s(self.pid)

    def orphans(self) -> list[int]:
        """Processes of its session that still run; after its end there must be none."""
        return [pid for pid in tree(self.pid) if pid != self.pid]

    def leftovers(self) -> list[str]:
        """Files that it has left in its folder for temporary files. (.ses: onnxruntime writes it when imported.)"""
        return sorted(set(os.listdir(self.temporary.name)) - {".ses"})

    def _status(self, name: str) -> int:
        text = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
        if found is None:
            raise RuntimeError(f"/proc/{self.pid}/status has no {name}: the server has ended")
        return int(found[1])

    # Talking to it ---------------------------------------------------------------------------------------------------

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def classify(self, image: bytes) -> tuple[int, bytes]:
        return self.ask("POST", "/classify", image, {"Content-Type": "image/png"})

    def queued(self) -> int:
        """The gauge of images admitted and not yet answered."""
        found = re.search(rb"^tailguard_queue_images (\S+)", self.ask("GET", "/metrics")[1], re.MULTILINE)
        assert found is not None
        return int(float(found[1]))

    # Its end ---------------------------------------------------------------------------------------------------------

    def signal(self, which: signal.Signals) -> None:
        self.process.send_signal(which)

    def wait(self, timeout_s: float = END_S) -> int:
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """End it and everything it has started, whatever has happened; its log is closed."""
        for pid in [*self.orphans(), self.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()
        self._log.close()
        self.temporary.cleanup()


@contextmanager
def serving(unclean: list[str], **settings: str) -> Iterator[Server]:
    """A server that is ended with TERM. What was not clean about its end or its log is appended to `unclean`."""
    server = Server(**{"DRAIN_GRACE_S": "0", **settings})
    try:
        yield server
        if server.process.poll() is None:
            server.signal(signal.SIGTERM)
            code = server.wait()
            if code != 0:
                unclean.append(f"exit code {code}")
            if left := server.orphans():
                unclean.append(f"processes left: {left}")
        unclean += complaints(server.log())
    finally:
        server.kill()


def complaints(log: str) -> list[str]:
    """The lines of a server's log that tell of a fault of its own."""
    signs = ("Traceback", "unexpected error", "Warning:", "Exception ignored", "Fatal Python error")
    return [f"log: {line.strip()[:200]}" for line in log.splitlines() if any(sign in line for sign in signs)][:3]


def foreign_lines(log: str) -> list[str]:
    """Lines that the service did not write itself: a library's, which bypass its format and its limits."""
    return [line for line in log.splitlines() if line and not re.match(r"\d{4}-\d\d-\d\dT", line)]


def machine_busy_s() -> float:
    """CPU seconds that all processes of the machine together have used since it started."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _, _, irq, softirq = fields[:7]
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def wait_until(true: Callable[[], Any], timeout_s: float) -> bool:
    """Whether `true()` became true in time."""
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
