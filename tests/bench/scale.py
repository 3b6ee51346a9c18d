"""One process, all cores, Ray on the same cores, three replicas behind nginx: speed, CPU and memory in one run.

    python -m tests.bench.scale --json tests/bench/results/scale.json

The first three are `tailguard score` of a folder, from its first rows to its last; the replicas answer POST /classify
of the load generator. All see the same generated 640 x 427 JPEG. CPU and memory are those of all processes: of Ray its
raylet and its GCS too, of the replicas nginx, never the load generator.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from service.errors import TailGuardError
from service.process import available_cpus
from service.settings.places import ROOT
from tests.bench import level, photos
from tests.bench.command import ROUTE, write
from tests.bench.processes import BenchError, Endpoint, cpu_s, memory_bytes, started
from tests.bench.scale_table import Way, facts, markdown, to_json
from tests.replicas import proxies

BUNDLE = ROOT / "models" / "groceries" / "1"
REPLICAS = 3
CONNECTIONS = 4 * REPLICAS
WATCH_S, MEMORY_S = 0.05, 0.5  # between two looks at the rows, and at the memory of all processes
LIMIT_S = 3600.0


@dataclass(frozen=True)
class Look:
    """Rows that are written, and CPU seconds of all processes, at a time."""

    time_s: float
    rows: int
    cpu_s: float


class Peak:
    """The largest memory of some process trees while the block runs, bytes."""

    def __init__(self, *roots: int) -> None:
        self.bytes = 0
        self._roots, self._stop = roots, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, sum(map(memory_bytes, self._roots)))
            if self._stop.wait(MEMORY_S):
                return


def scored(folder: Path, images: int, *options: str) -> Way:
    """`tailguard score` of `folder`, a process tree of its own."""
    out = folder.parent / "rows.jsonl"
    command = [sys.executable, "-m", "service", "score", str(folder), "--out", str(out), "--overwrite",
               "--bundle", str(BUNDLE), *options]  # fmt: skip
    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log, _running(command, log) as process, Peak(process.pid) as peak:
        looks = list(_looks(process, out.with_name(f"{out.name}.partial"), begun))
        if process.returncode != 0:
            log.seek(0)
            raise BenchError(f"{' '.join(command)} ended with {process.returncode}: {log.read().strip()[-2000:]}")
    whole_s = time.perf_counter() - begun
    seen = looks[-1].rows - looks[0].rows if looks else 0
    if seen < images / 2:
        raise BenchError(f"{seen} of {images} images between two looks are too few: give more --images")
    first, last = looks[0], looks[-1]
    return Way(
        images_per_s=seen / (last.time_s - first.time_s), cpu_ms=1000 * (last.cpu_s - first.cpu_s) / seen,
        memory_mb=peak.bytes / 1e6, start_s=first.time_s, whole_s=whole_s,
    )  # fmt: skip


@contextmanager
def _running(command: list[str], log: object) -> Iterator["subprocess.Popen[bytes]"]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TAILGUARD_BUNDLE": str(BUNDLE)}
    environment.pop("RAY_ADDRESS", None)
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)


def _looks(process: "subprocess.Popen[bytes]", journal: Path, begun: float) -> Iterator[Look]:
    """A look whenever rows have come, from the first rows on, until the process ends."""
    rows, place = -1, 0  # the first line is the header
    while process.poll() is None:
        if time.perf_counter() - begun > LIMIT_S:
            raise BenchError(f"not done within {LIMIT_S:g} s: give fewer --images")
        time.sleep(WATCH_S)
        try:
            with journal.open("rb") as file:
                file.seek(place)
                new = file.read()
        except OSError:  # not begun, or done
            continue
        place += len(new)
        rows += new.count(b"\n")
        if rows > 0 and new:
            yield Look(time.perf_counter() - begun, rows, cpu_s(process.pid))


def replicas(seconds: float) -> Way:
    """POST /classify to three services of one inference thread each behind the project's nginx."""
    settings = {
        "TAILGUARD_BUNDLE": str(BUNDLE), "TAILGUARD_HOST": "127.0.0.1", "TAILGUARD_PORT": "0",
        "TAILGUARD_DRAIN_GRACE_S": "0", "TAILGUARD_INFERENCE_THREADS": "1",
    }  # fmt: skip
    environ = {k: v for k, v in os.environ.items() if not k.startswith("TAILGUARD_")} | settings
    begun = time.perf_counter()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o711)  # nginx's worker, nobody where root starts it, keeps bodies there
        command = [sys.executable, "-m", "service", "serve"]
        servers = [stack.enter_context(started(command, environ, cwd=ROOT)) for _ in range(REPLICAS)]
        port = stack.enter_context(proxies.proxy("nginx", [server.port for server in servers], folder))
        nginx = int((folder / "pid").read_text())
        roots = [server.pid for server in servers if server.pid is not None]
        together = Endpoint("127.0.0.1", port, roots[0], (*roots[1:], nginx))
        start_s = time.perf_counter() - begun
        photo = photos.photo()
        load = level.Load(photo.name, "raw", photos.raw_request(ROUTE, photo), CONNECTIONS, seconds / 5, seconds)
        with Peak(*together.roots) as peak:
            found = level.measure(together, load)
    if found.cpu_ms is None or found.tally.failed:
        raise BenchError(f"the replicas did not answer all: {found.tally.statuses}")
    return Way(found.req_s, found.cpu_ms, peak.bytes / 1e6, start_s, time.perf_counter() - begun)


def main(arguments: list[str] | None = None) -> int:
    """Measure in interleaved rounds, print the table, write the JSON. 1 where something cannot be measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000, help="files that are scored each time")
    parser.add_argument("--seconds", type=float, default=30, help="of load on the replicas each time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was measured there")
    given = parser.parse_args(arguments)
    if reason := proxies.missing("nginx"):
        print(f"scale: {reason}", file=sys.stderr)
        return 1
    found = facts(BUNDLE.relative_to(ROOT), given.images, given.seconds, CONNECTIONS)
    print(f"{found['cpus']} cores of {found['cpu']} ({found['instructions']}), load {found['load_before']}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "photos"
        folder.mkdir()
        for i in range(given.images):
            (folder / f"{i:06}.jpg").write_bytes(
                photos.photo().data if i == 0 else (folder / "000000.jpg").read_bytes()
            )
        cores = str(available_cpus())
        ways: dict[str, Callable[[], Way]] = {
            "one": partial(scored, folder, given.images, "--threads", "1"),
            "all": partial(scored, folder, given.images, "--threads", cores),
            "ray": partial(scored, folder, given.images, "--threads", cores, "--on", "ray"),
            "replicas": partial(replicas, given.seconds),
        }
        rounds: list[dict[str, Way]] = []
        try:
            for number in range(given.rounds):
                order = list(ways) if number % 2 == 0 else list(ways)[::-1]  # what drifts, drifts both ways
                made = {}
                for name in order:
                    made[name] = ways[name]()
                    print(f"round {number + 1}, {name}: {made[name]}", file=sys.stderr, flush=True)
                rounds.append(made)
        except TailGuardError as error:
            print(f"scale: {error}", file=sys.stderr)
            return 1
    result = found | {"rounds": [{name: asdict(way) for name, way in made.items()} for made in rounds]}
    print(markdown(result))
    if given.json:
        write(given.json, to_json(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
