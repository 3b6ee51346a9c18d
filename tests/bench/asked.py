"""What a request costs, with nothing asked for beyond the decision and with each thing that may be asked for.

    python -m tests.bench.asked models/groceries/1 --photo photo.jpg [--before OTHER_CHECKOUT]

Milliseconds of CPU of a real service process per request, one connection, kinds taken in turns so that whatever else
the machine does falls on all alike; means over rounds. With `--before` a second service is started from another
checkout of the project, on the same bundle, and asked for nothing in the same turns.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np

from tests.live import ROOT

REQUESTS = 20  # of a kind in a round
JPEG = {"content-type": "image/jpeg"}
KINDS: dict[str, dict[str, str]] = {
    "nothing": {}, "neighbours=5": {"neighbours": "5"}, "embedding": {"embedding": "true"}, "map": {"map": "true"},
    "set=0.9": {"set": "0.9"}, "all of it": {"neighbours": "5", "embedding": "true", "map": "true", "set": "0.9"},
}  # fmt: skip


@contextmanager
def serving(checkout: Path, bundle: Path) -> Iterator[tuple[str, int]]:
    """The address and process of a service with the code of `checkout`."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("TAILGUARD_")}
    environ |= {
        "TAILGUARD_BUNDLE": str(bundle), "TAILGUARD_PORT": "0", "TAILGUARD_INFERENCE_THREADS": "1",
        "PYTHONPATH": str(checkout),
    }  # fmt: skip
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([sys.executable, "-m", "service", "serve"], cwd=checkout, env=environ, stderr=log)
        try:
            while not (found := re.search(r"listening on (http://[\d.]+:\d+)", said := _read(log.fileno()))):
                if process.poll() is not None:
                    sys.exit(said)
                time.sleep(0.05)
            yield found[1], process.pid
        finally:
            process.terminate()
            process.wait(60)


def _read(file: int) -> str:
    return os.pread(file, 2**20, 0).decode()


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has used, all threads, to 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--photo", type=Path, required=True)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    photo = given.photo.read_bytes()
    with ExitStack() as stack:
        url, pid = stack.enter_context(serving(ROOT, given.bundle.resolve()))
        sides = {name: (url, pid, query) for name, query in KINDS.items()}
        if given.before:
            before = stack.enter_context(serving(given.before.resolve(), given.bundle.resolve()))
            sides = {"before": (*before, {})} | sides
        client = stack.enter_context(httpx.Client(timeout=60))
        found: dict[str, list[float]] = {}
        for kind, (address, _, query) in list(sides.items()):
            answer = client.post(f"{address}/classify", content=photo, headers=JPEG, params=query)
            if answer.status_code == 422:
                print(f"{kind}: {answer.json()['detail']}")
                del sides[kind]
        for round_ in range(given.rounds + 2):
            for kind, (address, number, query) in sides.items():
                started = cpu_s(number)
                for _ in range(REQUESTS):
                    client.post(f"{address}/classify", content=photo, headers=JPEG, params=query).raise_for_status()
                if round_ > 1:
                    found.setdefault(kind, []).append((cpu_s(number) - started) / REQUESTS * 1e3)
    base = float(np.mean(found["nothing"]))
    for kind, values in found.items():
        mean, error = float(np.mean(values)), float(np.std(values) / len(values) ** 0.5)
        print(f"{kind:13} {mean:6.2f} ms of CPU, standard error {error:.2f}, {mean / base:.3f} of nothing")
    print(f"load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
