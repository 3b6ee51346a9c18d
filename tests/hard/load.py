"""Closed-loop HTTP clients in a light process of their own: uvloop, httptools, and every answer checked.

    running = Running(Plan(port, samples, clients=8, seconds=5))       # in the background, at nice 5
    seen = running.result()

A sample is the bytes of one request and what its answer must be. The process reads its plan on standard input
(`python -m tests.hard.load`) and prints what it saw; TERM ends it early.
"""

import asyncio
import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import httptools

from tests.hard.plan import Plan, Sample, Seen

LATE_S = 30.0  # an answer that takes longer counts as missing
EXAMPLES = 5  # of unexpected answers that are kept


class Running:
    """A generator at work in its own process."""

    def __init__(self, plan: Plan) -> None:
        root = Path(__file__).resolve().parents[2]
        command = [sys.executable, "-m", "tests.hard.load"]
        self._process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(pickle.dumps(plan))
        self._process.stdin.close()
        self._process.stdin = None
        self._process.stdout.read(1)  # it has begun

    def stop(self) -> Seen:
        """End it now; answers under way are waited for."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self.result()

    def result(self) -> Seen:
        """What it saw, once it has ended. Raises RuntimeError when it failed."""
        output, _ = self._process.communicate()
        if self._process.returncode != 0:
            raise RuntimeError(f"the load generator ended with {self._process.returncode}")
        found: Seen = pickle.loads(output)
        return found


def push(plan: Plan) -> Seen:
    """Run a plan to its end."""
    return Running(plan).result()


# ---------------------------------------------------------------------------------------------------------------------
# In the generator's process


class _Generator:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.seen = Seen()
        self.taken: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.sent = self.answered = self.under_way = 0
        self.over = asyncio.Event()
        self._connecting: set[asyncio.Task[None]] = set()

    async def run(self) -> Seen:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.over.set)
        loop.call_later(self.plan.seconds, self.over.set)
        sys.stdout.buffer.write(b"!")
        sys.stdout.buffer.flush()
        started, cpu = time.perf_counter(), time.process_time()
        for number in range(self.plan.clients):
            self.reconnect(number)
        answered = -1
        while not self.over.is_set() and answered < self.answered:  # nothing for so long: it will not end by itself
            answered = self.answered
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.over.wait(), LATE_S)
        self.over.set()
        self.seen.seconds = time.perf_counter() - started
        self.seen.cpu_s = time.process_time() - cpu
        deadline = time.monotonic() + LATE_S
        while self.under_way and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        self.seen.lost += self.under_way
        self.seen.taken = dict(self.taken)
        return self.seen

    def reconnect(self, number: int) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(number))
        self._connecting.add(task)  # the loop itself keeps no task alive
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, number: int) -> None:
        while not self.over.is_set():
            try:
                loop = asyncio.get_running_loop()
                await loop.create_connection(lambda: _Client(self, number), "127.0.0.1", self.plan.port)
                return
            except OSError:
                self.seen.lost += 1
                await asyncio.sleep(0.05)

    def next(self, number: int) -> Sample | None:
        if self.over.is_set():
            return None
        if self.sent >= self.plan.count:
            if not self.under_way:
                self.over.set()
            return None
        samples = self.plan.samples
        sample = samples[(number if self.plan.own_sample else self.sent) % len(samples)]
        self.sent += 1
        return sample

    def judge(self, sample: Sample, status: int, head: dict[bytes, bytes], body: bytes, seconds: float) -> None:
        self.answered += 1
        self.taken[sample.name, status].append(seconds)
        right = status in sample.statuses and (status not in (429, 503) or head.get(b"retry-after", b"").isdigit())
        if status == 200:
            right = right and all(part in body for part in sample.holds)
            if sample.either:
                named = next((part for part in sample.either if part in body), None)
                right = right and named is not None
                self.seen.either[named or b"neither"] += 1
        if not right:
            self.seen.unexpected += 1
            if len(self.seen.examples) < EXAMPLES:
                self.seen.examples.append(f"{sample.name}: {status} {body[:300].decode(errors='replace')}")


class _Client(asyncio.Protocol):
    """One keep-alive connection; httptools calls its on_ methods."""

    def __init__(self, generator: _Generator, number: int) -> None:
        self._all = generator
        self._number = number
        self._sample: Sample | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # what it gets
        self._transport = transport
        self._send()

    def _send(self) -> None:
        if self._transport.is_closing():
            return
        self._sample = self._all.next(self._number)
        if self._sample is None:
            self._transport.close()
            return
        self._all.under_way += 1
        self._parser = httptools.HttpResponseParser(self)
        self._head: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._started = time.perf_counter()
        self._transport.write(self._sample.request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._sample is None or status == 100:
            return
        sample, self._sample = self._sample, None
        all_, seconds = self._all, time.perf_counter() - self._started
        all_.under_way -= 1
        all_.judge(sample, status, self._head, b"".join(self._body), seconds)
        if self._head.get(b"connection", b"").lower() == b"close":
            self._transport.close()
        elif pause_s := max(0.0, all_.plan.every_s - seconds):
            asyncio.get_running_loop().call_later(pause_s, self._send)
        else:
            asyncio.get_running_loop().call_soon(self._send)  # not from within the parser

    def connection_lost(self, exc: Exception | None) -> None:
        if self._sample is not None:
            self._sample = None
            self._all.under_way -= 1
            self._all.seen.lost += 1
        if not self._all.over.is_set() and self._all.sent < self._all.plan.count:
            self._all.reconnect(self._number)
        elif not self._all.under_way:
            self._all.over.set()


def main() -> None:
    plan: Plan = pickle.load(sys.stdin.buffer)
    os.nice(plan.nice)
    seen: Seen
    try:
        import uvloop

        seen = uvloop.run(_Generator(plan).run())
    except ImportError:
        seen = asyncio.run(_Generator(plan).run())
    sys.stdout.buffer.write(pickle.dumps(seen))


if __name__ == "__main__":
    main()
