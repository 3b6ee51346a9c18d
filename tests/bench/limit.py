"""The in-process limit: threads that only decode and run the graph, in a fresh process, on the same bundle and image.

    python -m tests.bench.limit < task.json     # prints one Limit per image as JSON

No HTTP, no queue, no decision: what no server on this machine can beat with one image per run of the graph.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean

from service import settings
from service.contract import bundle, images
from service.inference.engine import Engine
from service.settings import Settings
from service.settings.places import ROOT
from tests.bench.load import percentile
from tests.bench.photos import Photo
from tests.bench.processes import BenchError

WARMUP_S = 0.3


@dataclass(frozen=True)
class Limit:
    """What `threads` threads of `intra_op_threads` each reach. `p50_ms`: one image in one of them."""

    image: str
    threads: int
    intra_op_threads: int
    images_per_s: float
    cpu_ms: float  # of the whole process, per image
    p50_ms: float


def threads_of(given: Settings) -> int:
    """As many as the service has for this: with an accelerator the decode threads feed it."""
    return given.inference_threads if given.provider == "cpu" else given.decode_threads


def measure(
    photos: Sequence[Photo], environ: Mapping[str, str], threads: int, intra_op_threads: int, seconds: float
) -> list[Limit]:
    """The limit for each image, `seconds` each, in a fresh process with the settings of `environ`.

    Raises BenchError when the process fails.
    """
    task = {
        "photos": [{"name": p.name, "data": p.data.decode("latin-1")} for p in photos],
        "threads": threads,
        "intra_op_threads": intra_op_threads,
        "seconds": seconds,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.limit"], input=json.dumps(task), env=dict(environ), cwd=ROOT,
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise BenchError(f"the in-process limit could not be measured: {done.stderr.strip()[-2000:]}")
    return [Limit(**found) for found in json.loads(done.stdout)]


def between(before: Limit, after: Limit) -> Limit:
    """The mean of the same limit measured before and after the service, so that a drift of the clock hurts neither."""
    both = [asdict(before), asdict(after)]
    means = {name: mean(one[name] for one in both) for name in ("images_per_s", "cpu_ms", "p50_ms")}
    return Limit(**{**both[0], **means})


def combinations(cpus: int) -> list[tuple[int, int]]:
    """(threads, intra-op threads) that fill `cpus` exactly."""
    return [(cpus // intra, intra) for intra in range(1, cpus + 1) if cpus % intra == 0]


@dataclass(frozen=True)
class _Instant:
    done: list[int]  # images, by thread
    cpu_s: float
    wall_s: float


def _now(taken: list[list[float]]) -> _Instant:
    return _Instant([len(mine) for mine in taken], time.process_time(), time.perf_counter())


def loop(engine: Engine, photo: Photo, given: Settings, threads: int, intra: int, seconds: float) -> Limit:
    """What `threads` threads reach in about `seconds`. Raises BenchError when not one image is done in that time."""
    target, stop = engine.manifest.input, threading.Event()
    taken: list[list[float]] = [[] for _ in range(threads)]

    def work(mine: list[float]) -> None:
        while not stop.is_set():
            begun = time.perf_counter()
            pixels = images.load(photo.data, target, max_pixels=given.max_pixels).pixels
            engine.run(pixels[None])
            mine.append(time.perf_counter() - begun)

    workers = [threading.Thread(target=work, args=(mine,)) for mine in taken]
    for worker in workers:
        worker.start()
    time.sleep(WARMUP_S)
    before = _now(taken)
    time.sleep(seconds)
    after = _now(taken)
    stop.set()
    for worker in workers:
        worker.join()
    done = [s for mine, a, b in zip(taken, before.done, after.done, strict=True) for s in mine[a:b]]
    if not done:
        raise BenchError(f"no image of {photo.name} was done in {seconds:g} s: measure longer")
    p50_s = percentile(sorted(done), 0.5) or 0.0
    rate, cpu_s = len(done) / (after.wall_s - before.wall_s), (after.cpu_s - before.cpu_s) / len(done)
    return Limit(photo.name, threads, intra, rate, 1000 * cpu_s, 1000 * p50_s)


def main() -> None:
    task, given = json.load(sys.stdin), settings.load()
    threads, intra, seconds = task["threads"], task["intra_op_threads"], task["seconds"]
    engine = Engine(given.bundle, bundle.read(given.bundle), provider=given.provider, intra_op_threads=intra)
    photos = [Photo(sent["name"], sent["data"].encode("latin-1")) for sent in task["photos"]]
    found = [loop(engine, photo, given, threads, intra, seconds) for photo in photos]
    print(json.dumps([asdict(limit) for limit in found]))


if __name__ == "__main__":
    main()
