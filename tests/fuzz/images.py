"""Mutated images through contract.images.load: an image or a refusal; no other error, no crash, no hang, no growth.

    python -m tests.fuzz.images [--count 100000] [--seed 0] [--jobs 2] [--http 2000] [--save DIR]
    python -m tests.fuzz.images --only 4711          # one input again, in this process

Workers are processes, so a crash or a hang is caught and laid to the input that made it. Every failure is saved with
the reason. `--http` sends that many of the inputs to POST /classify of a real server as well.
"""

import argparse
import ctypes
import multiprocessing as mp
import os
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from service.contract import images
from service.contract.bundle import Input
from service.errors import InvalidImage, UnsupportedMedia
from tests.fuzz.mutators import mutated
from tests.fuzz.seeds import seeds
from tests.hard.server import MIB, foreign_lines, serving

TARGET = Input(height_px=32, width_px=32, fit="stretch", resampling="bilinear")
MAX_PIXELS = 50_000_000  # the default of TAILGUARD_MAX_PIXELS
LONGEST_S = 5.0  # half the default of TAILGUARD_REQUEST_TIMEOUT_S; the largest permitted images take one
GROWTH = 0.10
WARM = 2_000  # inputs of a worker before its memory is measured: until then pools and tables fill
Decode = Callable[[bytes], tuple[str, str]]
EVERY = 200  # inputs between two reports of a worker
ALLOWED_STATUSES = (200, 415, 422)


@dataclass
class Found:
    """`outcomes` by kind; `failures`: index, reason. Resident bytes of each worker once warm, and at its end."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)
    slowest_s: float = 0.0
    slowest: int = -1

    @property
    def growth(self) -> float:
        """Of the worker that grew most, as a share."""
        return max((after / before - 1 for before, after in self.memory), default=0.0)


def decode(data: bytes) -> tuple[str, str]:
    """The kind of outcome, and for a failure its reason (else empty)."""
    try:
        loaded = images.load(data, TARGET, max_pixels=MAX_PIXELS)
    except (InvalidImage, UnsupportedMedia) as error:
        return type(error).__name__, "" if str(error) else "an error without words"
    except Exception:
        return "failure", traceback.format_exc()
    if loaded.pixels.shape != (32, 32, 3) or loaded.pixels.dtype != "uint8" or loaded.width_px * loaded.height_px < 1:
        return "failure", f"pixels {loaded.pixels.shape} {loaded.pixels.dtype} of {loaded.width_px}x{loaded.height_px}"
    return "image", ""


def fuzz(count: int, seed: int, jobs: int, longest_s: float = LONGEST_S, decode: Decode = decode) -> Found:
    """Decode inputs 0 to `count` - 1 in `jobs` processes. `decode` is a function that processes find by its name."""
    found, context = Found(), mp.get_context("spawn")
    workers = [_Worker(context, seed, range(i, count, jobs), longest_s, decode) for i in range(jobs)]
    with tqdm(total=count, unit="image", smoothing=0.05, disable=not sys.stderr.isatty()) as bar:
        while running := [worker for worker in workers if not worker.ended]:
            wait([worker.pipe for worker in running], timeout=0.5)
            for worker in running:
                bar.update(worker.step(found))
    return found


class _Worker:
    """Watches one process; starts another without the input at which it crashed or hung."""

    def __init__(self, context: Any, seed: int, indices: Sequence[int], longest_s: float, decode: Decode) -> None:
        self._context = context
        self._seed = seed
        self._longest_s = longest_s
        self._decode = decode
        self._at = context.RawArray("d", 2)  # position of the input in work, and when it was begun
        self._start(indices)

    def _start(self, indices: Sequence[int]) -> None:
        self._indices, self._reported = indices, 0
        self.ended = not indices
        if self.ended:
            return
        self.pipe, theirs = self._context.Pipe(duplex=False)
        self._at[0], self._at[1] = 0, 0.0
        arguments = (self._decode, self._seed, indices, self._at, theirs)
        self._process = self._context.Process(target=_work, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def step(self, found: Found) -> int:
        """Take in what it reports; the number of inputs done since."""
        try:
            if self.pipe.poll():
                return self._take(found, self.pipe.recv())
        except EOFError:
            self._process.join()
            if self._process.exitcode == 0:
                self.ended = True
                return 0
            return self._lost(found, f"the process ended with {self._process.exitcode}")
        begun = self._at[1]
        if begun and time.monotonic() - begun > self._longest_s:
            self._process.kill()
            self._process.join()
            return self._lost(found, f"no outcome after {self._longest_s:g} s")
        return 0

    def _take(self, found: Found, news: Found) -> int:
        found.outcomes += news.outcomes
        found.failures += news.failures
        found.memory += news.memory
        if news.slowest_s > found.slowest_s:
            found.slowest_s, found.slowest = news.slowest_s, news.slowest
        self._reported += news.outcomes.total()
        return news.outcomes.total()

    def _lost(self, found: Found, reason: str) -> int:
        culprit = self._indices[int(self._at[0])]
        found.failures.append((culprit, reason))
        found.outcomes["failure"] += 1
        self.pipe.close()
        self._start([index for index in self._indices[self._reported :] if index != culprit])  # unreported ones again
        return 1


def _work(decode: Decode, seed: int, indices: Sequence[int], at: Any, pipe: Connection) -> None:
    """In the worker: decode, and report now and then."""
    warnings.simplefilter("ignore")  # Pillow warns of what it reads all the same,
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # and libtiff writes a line for every scanline it cannot read
    given, news, before = seeds(), Found(), 0
    for position, index in enumerate(indices):
        _, data = mutated(given, seed, index)
        started = time.monotonic()
        at[0], at[1] = position, started
        kind, reason = decode(data)
        seconds = time.monotonic() - started
        at[1] = 0.0
        news.outcomes[kind] += 1
        if reason:
            news.failures.append((index, reason))
        if seconds > news.slowest_s:
            news.slowest_s, news.slowest = seconds, index
        if position == WARM:
            before = _rss()
        if position % EVERY == EVERY - 1:
            pipe.send(news)
            news = Found()
    if before:
        news.memory.append((before, _rss()))
    pipe.send(news)


def _rss() -> int:
    """Resident bytes of this process without those that are free and only kept."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def save(folder: Path, seed: int, failures: list[tuple[int, str]]) -> None:
    """Each failing input, and beside it why and how to repeat it."""
    folder.mkdir(parents=True, exist_ok=True)
    given = seeds()
    for index, reason in failures:
        made, data = mutated(given, seed, index)
        (folder / f"{seed}-{index}.bin").write_bytes(data)
        again = f"python -m tests.fuzz.images --seed {seed} --only {index}"
        (folder / f"{seed}-{index}.txt").write_text(f"{made}\n{again}\n\n{reason}\n")


def over_http(count: int, seed: int) -> tuple[Counter[int], list[str]]:
    """Inputs 0 to `count` - 1 to POST /classify of a real server: answers by status, and what was wrong."""
    statuses: Counter[int] = Counter()
    wrong: list[str] = []
    given = seeds()
    with serving(wrong) as server:
        for index in tqdm(range(count), unit="request", disable=not sys.stderr.isatty()):
            status, answer = server.classify(mutated(given, seed, index)[1])
            statuses[status] += 1
            if status not in ALLOWED_STATUSES:
                wrong.append(f"input {index}: {status} {answer[:300].decode(errors='replace')}")
        if foreign := foreign_lines(server.log()):
            wrong.append(f"the log has {len(foreign):,} lines that are not the service's own, such as {foreign[0]}")
    return statuses, wrong


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--http", type=int, default=2_000, help="inputs that are sent to a server as well")
    parser.add_argument("--save", type=Path, default=Path("runs/fuzz"), help="folder for the inputs that fail")
    parser.add_argument("--only", type=int, help="decode this input alone")
    given = parser.parse_args(arguments)
    if given.only is not None:
        made, data = mutated(seeds(), given.seed, given.only)
        print(f"{made}, {len(data)} bytes: {' '.join(decode(data))}")
        return 0
    found = fuzz(given.count, given.seed, given.jobs)
    save(given.save, given.seed, found.failures)
    shown = ", ".join(f"{number:,} {kind}" for kind, number in found.outcomes.most_common())
    memory = ", ".join(f"{before / MIB:.1f} → {after / MIB:.1f} MiB" for before, after in found.memory)
    print(f"{given.count:,} inputs: {shown}; the slowest (input {found.slowest}) {found.slowest_s:.2f} s; RSS {memory}")
    statuses, wrong = over_http(given.http, given.seed)
    print(f"{given.http:,} over HTTP: {', '.join(f'{n:,} × {s}' for s, n in sorted(statuses.items()))}")
    wrong += [f"input {index}: {reason.splitlines()[-1]}" for index, reason in found.failures]
    if found.growth > GROWTH:
        wrong.append(f"a worker grew by {found.growth:.1%}")
    print("\n".join(f"FAIL {line}" for line in wrong[:20]) or "PASS")
    if wrong:
        print(f"{len(wrong)} failures; inputs are in {given.save}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
