"""What the ledger costs at 10^6 classified images and 10^6 true labels: on the request path, in its thread, on disk.

    nice python -m tests.bench.ledger                       # SQLite in a temporary folder
    nice python -m tests.bench.ledger --rows 100000 --url postgresql://…

Rows go in through the real queue, as from requests; so does feedback, with POST /feedback's own call. Retention then
works while rows keep coming. Prints a table in markdown.
"""

import argparse
import asyncio
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from service.contract import bundle
from service.contract.decision import Decision, Verdict
from service.ledger import schema
from service.ledger.database import connect
from service.ledger.queue import QUEUE_ROWS
from service.ledger.retention import ENDS
from service.ledger.rows import Entry
from service.ledger.writer import Ledger
from service.observe.metrics import Metrics
from service.settings import Settings
from service.settings.places import ROOT

BUNDLE = ROOT / "models" / "cifar10-lt" / "1"
AT_ONCE = 500  # feedback requests in flight


def say(name: str, value: str) -> None:
    print(f"| {name} | {value} |", flush=True)


def ledger_cpu_s() -> float:
    """CPU seconds of the ledger's thread so far."""
    thread = next(t for t in threading.enumerate() if t.name == "ledger")
    ticks = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()
    return (int(ticks[11]) + int(ticks[12])) / 100


def request_id(i: int) -> str:
    """32 hex digits in no order, as the service makes them."""
    return f"{(i + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}"


def entries(manifest: bundle.Manifest, numbers: Iterable[int]) -> Iterable[Entry]:
    scores = dict.fromkeys(manifest.scores, -7.123456789)
    classes = len(manifest.classes)
    for i in numbers:
        decision: Decision = "reject" if i % 20 == 0 else "accept"
        point = manifest.default_operating_point
        verdict = Verdict(i % classes, -7.123456789, decision, -4.1, point, "group", 0.63)
        yield Entry(time.time(), request_id(i), 0, manifest, scores, verdict, "ci", None)


def wait_for(ledger: Ledger, room: int) -> None:
    while len(ledger._queue) > room:
        time.sleep(0.01)


def insert(ledger: Ledger, manifest: bundle.Manifest, numbers: range) -> tuple[float, float]:
    """Microseconds of the recording thread's CPU per row, and rows per second."""
    started, cpu_s = time.perf_counter(), 0.0
    for first in range(numbers.start, numbers.stop, 1000):
        wait_for(ledger, QUEUE_ROWS // 2)
        made = list(entries(manifest, range(first, min(first + 1000, numbers.stop))))
        before = time.thread_time()
        for entry in made:
            ledger.record(entry)
        cpu_s += time.thread_time() - before
    wait_for(ledger, 0)
    return cpu_s / len(numbers) * 1e6, len(numbers) / (time.perf_counter() - started)


def making_us(manifest: bundle.Manifest) -> float:
    """Microseconds to make an Entry, which a request pays too; its request id and verdict it has anyway."""
    made, n = next(iter(entries(manifest, [1]))), 100_000
    before = time.thread_time()
    for _ in range(n):
        Entry(time.time(), made.request_id, 0, manifest, made.scores, made.verdict, made.key, None)
    return (time.thread_time() - before) / n * 1e6


async def label(ledger: Ledger, manifest: bundle.Manifest, count: int) -> float:
    """Feedback per second, answered."""
    names, started = [info.name for info in manifest.classes], time.perf_counter()
    for first in range(0, count, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, count))
        await asyncio.gather(
            *(ledger.record_feedback(request_id(i), 0, names[i * 7 % len(names)], key="ci") for i in numbers)
        )
    return count / (time.perf_counter() - started)


def measure(where: str, count: int) -> None:
    """Raises whatever the ledger refuses: nothing here may fail."""
    manifest, metrics = bundle.read(BUNDLE), Metrics()
    with opened(where, metrics, 10 * count) as ledger:
        made_us = making_us(manifest)
        record_us, rate = insert(ledger, manifest, range(count))
        rows_s = ledger_cpu_s()
        say("request path: make an entry, record it", f"{made_us:.2f} + {record_us:.2f} µs CPU")
        say("the ledger's thread", f"{rows_s / count * 1e6:.1f} µs CPU per row, {rate:,.0f} rows/s")
        say(f"size with {count:,} decisions", look(where)[1])
        rate = asyncio.run(label(ledger, manifest, count))
        labels_s = ledger_cpu_s() - rows_s
        say("feedback", f"{labels_s / count * 1e6:.1f} µs CPU of that thread per label, {rate:,.0f} labels/s")
        say(f"size with {count:,} labels too", look(where)[1])
    started = time.perf_counter()
    with opened(where, metrics, count // 2) as ledger:
        while ledger.tally(manifest) is None:
            time.sleep(0.001)
        say("start until the tallies are there", f"{(time.perf_counter() - started) * 1e3:.0f} ms")
        started, more = time.perf_counter(), count
        while look(where)[0] > count // 2 + 1000:
            insert(ledger, manifest, range(more, more + 1000))
            more += 1000
            time.sleep(0.2)  # below 5,000 images a second, which no service reaches here
        seconds = time.perf_counter() - started
        say(f"retention from {count:,} to {count // 2:,} rows", f"{seconds:.1f} s, while {more - count:,} came")
    lost, failures = metrics.ledger_rows.labels("dropped")._value.get(), metrics.ledger_failures._value.get()
    say("rows dropped; attempts that failed", f"{lost:.0f}; {failures:.0f}")


@contextmanager
def opened(where: str, metrics: Metrics, max_rows: int) -> Iterator[Ledger]:
    ledger = Ledger.open(Settings(ledger=where, ledger_max_rows=max_rows), metrics, lambda told, change: None)
    assert ledger is not None
    yield ledger
    ledger.close(60)


def look(where: str) -> tuple[int, str]:
    """Rows held, and the size on disk."""
    database = connect(where, read_only=True)  # it waits for no lock of the ledger's
    try:
        oldest, newest = database.fetch(ENDS)[0]
        size = database.size_bytes(schema.TABLE_NAMES)
        return 0 if oldest is None else int(newest - oldest + 1), f"{size / 1e6:.0f} MB"
    finally:
        database.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10**6)
    parser.add_argument("--url", help="of an empty PostgreSQL database")
    given = parser.parse_args()
    print("| what | cost |\n| --- | --- |")
    if given.url:
        measure(given.url, given.rows)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(str(Path(folder) / "ledger.sqlite3"), given.rows)


if __name__ == "__main__":
    main()
