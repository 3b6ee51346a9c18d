"""What keeping images costs: on the request path, in the threads behind it, on disk, and while retention works.

    nice python -m tests.bench.keeping                                  # 10^6 rows, 100,000 images, SQLite and a folder
    nice python -m tests.bench.keeping --rows 100000 --images 10000 --url postgresql://… --store memory://bench

Rows are made by the function that every answer goes through; images are small JPEGs, each another. Prints a table.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from service.contract import bundle
from service.contract.decision import Decision, Verdict
from service.inference.rows import Row
from service.ledger.writer import Ledger
from service.observe.metrics import Metrics
from service.settings import Settings
from service.web.record import _entry
from tests.bench.ledger import BUNDLE, look, request_id, say

DIMENSIONS = 256
ON_THE_PATH = 20_000  # rows behind each figure of the request path
WAVE = 500


class Made:
    """Rows and files as answers make them: one in twenty is refused."""

    def __init__(self) -> None:
        self.manifest = bundle.read(BUNDLE)
        random = np.random.default_rng(0)
        vector = random.standard_normal(DIMENSIONS).astype(np.float32)
        classes = len(self.manifest.classes)
        scores = dict.fromkeys(self.manifest.scores, -7.123456789)
        self.row = Row(np.full(classes, 1 / classes, np.float32), scores, 32, 32, 0.0, 0.0, 1, vector)
        self.context = SimpleNamespace(key=None, request_id="", client_id=None)
        parameters = SimpleNamespace(is_default=True)
        model = SimpleNamespace(manifest=self.manifest)
        self.admitted: Any = SimpleNamespace(context=self.context, model=model, parameters=parameters)

    def verdict(self, i: int) -> Verdict:
        decision: Decision = "reject" if i % 20 == 0 else "accept"
        point = self.manifest.default_operating_point
        return Verdict(i % len(self.manifest.classes), -7.123456789, decision, -4.1, point, "group", 0.63)

    def record(self, ledger: Ledger, i: int, file: bytes) -> None:
        """What a request pays: the policy, the row, the embedding's half precision, the queue."""
        self.context.request_id = request_id(i)
        ledger.record(_entry(ledger, self.admitted, 0, self.row, self.verdict(i), None, file))


def picture(i: int, side: int = 32) -> bytes:
    """A JPEG of some 1 kB, or more with a longer side, unlike all others."""
    made, pixels = BytesIO(), np.random.default_rng(i).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(made, "JPEG", quality=50)
    return made.getvalue()


@contextmanager
def opened(where: str, store: str, metrics: Metrics, **settings: Any) -> Iterator[Ledger]:
    given = {"ledger": where, "store": store, "keep_images_per_s": 1e9, "ledger_max_bytes": 2**40} | settings
    ledger = Ledger.open(Settings(**given), metrics, lambda told, change: None)
    assert ledger is not None
    yield ledger
    ledger.close(600)


def count(metrics: Metrics, *outcomes: str) -> int:
    return int(sum(metrics.store_images.labels(outcome)._value.get() for outcome in outcomes))


def thread_cpu_s(name: str) -> float:
    """CPU seconds of a thread so far."""
    thread = next(t for t in threading.enumerate() if t.name == name)
    ticks = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()
    return (int(ticks[11]) + int(ticks[12])) / 100


def request_path(made: Made, folder: Path) -> None:
    """CPU of the thread that records, with a file of some 30 kB that is the same each time."""
    file, costs = picture(0, side=256), {}
    for keep in ("none", "rejected", "all"):
        place = folder / keep
        place.mkdir()
        with opened(str(place / "ledger"), str(place / "images"), Metrics(), keep=keep) as ledger:
            spent = 0.0
            for first in range(0, ON_THE_PATH, WAVE):
                before = time.thread_time()
                for i in range(first, first + WAVE):
                    made.record(ledger, i, file)
                spent += time.thread_time() - before
                while len(ledger._queue) > WAVE:
                    time.sleep(0.01)
        costs[keep] = spent / ON_THE_PATH * 1e6
        say(f"request path, keep {keep}", f"{costs[keep]:.2f} µs CPU, {costs[keep] / costs['none']:.2f} of none")


def fill(made: Made, ledger: Ledger, metrics: Metrics, numbers: range, every: int) -> None:
    """Rows as fast as they are taken; every so many has a file of its own."""
    wanted = 0
    for first in range(numbers.start, numbers.stop, WAVE):
        for i in range(first, min(first + WAVE, numbers.stop)):
            own = i % every == 0
            wanted += own
            ledger.record(
                _entry(ledger, made.admitted, 0, made.row, made.verdict(1), None, picture(i) if own else None)
                ._replace(request_id=request_id(i))
            )  # fmt: skip
        while len(ledger._queue) > 4 * WAVE or wanted - count(metrics, "kept", "dropped", "failed") > 4 * WAVE:
            time.sleep(0.01)
    while len(ledger._queue) or wanted > count(metrics, "kept", "dropped", "failed"):
        time.sleep(0.01)


def measure(where: str, store: str, rows: int, images: int) -> None:
    made, metrics, every = Made(), Metrics(), rows // images
    with opened(where, store, metrics, keep="all", ledger_max_rows=10 * rows) as ledger:
        started = time.perf_counter()
        fill(made, ledger, metrics, range(rows), every)
        seconds = time.perf_counter() - started
        say(f"{rows:,} rows, {images:,} images", f"{rows / seconds:,.0f} rows/s, {images / seconds:,.0f} images/s")
        for name, of in (("ledger", rows), ("keeper", images)):
            say(f"the thread {name}", f"{thread_cpu_s(name) / of * 1e6:,.1f} µs CPU each")
    held, size = look(where)
    say("kept, dropped, failed", " ".join(str(count(metrics, o)) for o in ("kept", "dropped", "failed")))
    say(f"ledger with {held:,} rows", size)
    reader = ledger.reader()
    stored = [int(n) for n in reader.fetch("SELECT count(*), sum(bytes) FROM images")[0]]
    say(f"store with {stored[0]:,} images and thumbnails", f"{stored[1] / 1e6:,.0f} MB")
    started = time.perf_counter()
    kept = sum(len(reader.kept(after, 1000)) for after in range(0, min(rows, 1000 * every), 1000 * every))
    say(f"reader: the first {kept:,} kept rows", f"{(time.perf_counter() - started) * 1e3:.0f} ms")
    reader.close()
    retained(made, where, store, rows, every, stored[1] // 2)


def retained(made: Made, where: str, store: str, rows: int, every: int, store_bytes: int) -> None:
    """Half of the rows and of the images have to go while 1,000 rows come every fifth of a second."""
    metrics = Metrics()
    settings = {"keep": "all", "ledger_max_rows": rows // 2, "store_max_bytes": store_bytes}
    with opened(where, store, metrics, **settings) as ledger:
        started, more = time.perf_counter(), rows
        while look(where)[0] > rows // 2 + 2000:
            fill(made, ledger, metrics, range(more, more + 1000), every)
            more += 1000
            time.sleep(0.2)
        seconds = time.perf_counter() - started
        say(f"retention to {rows // 2:,} rows", f"{seconds:.1f} s, while {more - rows:,} rows came")
        reader = ledger.reader()
        while reader.fetch("SELECT count(*) FROM images WHERE state = 'leaving'")[0][0]:
            time.sleep(0.05)
        reader.close()
        say("until the last file is gone", f"{time.perf_counter() - started:.1f} s")
    dropped, failures = metrics.ledger_rows.labels("dropped")._value.get(), metrics.ledger_failures._value.get()
    say("rows dropped; attempts that failed", f"{dropped:.0f}; {failures:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10**6)
    parser.add_argument("--images", type=int, default=10**5)
    parser.add_argument("--url", help="of an empty PostgreSQL database")
    parser.add_argument("--store", help="an address of fsspec; else a temporary folder")
    given = parser.parse_args()
    print("| what | cost |\n| --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        request_path(Made(), Path(folder))
        where = given.url or str(Path(folder) / "ledger.sqlite3")
        measure(where, given.store or str(Path(folder) / "images"), given.rows, given.images)


if __name__ == "__main__":
    main()
