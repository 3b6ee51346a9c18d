"""Traffic that turns out-of-distribution half-way, and what the metrics make of it: `python -m tests.demo.traffic`.

Without --url it starts the service on the embedded bundle. --picture FILE.png draws rejection and KS from Prometheus:
the one at --prometheus, or one it starts (the program `prometheus` must be there), which scrapes every second.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np

from service.contract.bundle import read
from tests.demo.display import Display
from tests.demo.pictures import Familiar, Pixels, strange
from tests.demo.watch import Prometheus, Scraped, Witness
from tests.drift.scores import BUNDLE, load
from tests.live import png, serving

POOL_IMAGES = 6000
STEP_S = 1.0
SENDERS = 8
BEHIND = 200  # images waiting to be sent beyond which a slow service gets no more


class Sender:
    """Sends images at a steady rate from a few threads and counts what came back."""

    def __init__(self, client: httpx.Client, rate: float) -> None:
        self._client, self._rate = client, rate
        self._pool = ThreadPoolExecutor(SENDERS)
        self._waiting: list[Future[int]] = []
        self.answered = self.failed = self.skipped = 0

    def run(self, seconds: float, next_image: Callable[[], Pixels]) -> None:
        """Send for so long. Where the service is too slow for the rate, images are skipped and counted."""
        started = time.monotonic()
        for i in range(round(seconds * self._rate)):
            time.sleep(max(0.0, started + i / self._rate - time.monotonic()))
            self._collect()
            if len(self._waiting) >= BEHIND:
                self.skipped += 1
            else:
                self._waiting.append(self._pool.submit(self._send, png(next_image())))
        time.sleep(max(0.0, started + seconds - time.monotonic()))

    def _send(self, body: bytes) -> int:
        return self._client.post("/classify", content=body, headers={"content-type": "image/png"}).status_code

    def _collect(self) -> None:
        for sent in [f for f in self._waiting if f.done()]:
            self._waiting.remove(sent)
            good = sent.exception() is None and sent.result() == 200
            self.answered += good
            self.failed += not good

    def close(self) -> None:
        self._pool.shutdown()
        self._collect()


def play(sender: Sender, witness: Witness, display: Display, seconds: float, outliers: float) -> float:
    """Send both halves, a step at a time; the Unix time of the turn."""
    random = np.random.default_rng(0)
    familiar = Familiar(BUNDLE, read(BUNDLE), load()["calibration"], random, POOL_IMAGES)

    def mixed() -> Pixels:
        return strange(random) if random.random() < outliers else familiar.next()

    steps = max(2, round(seconds / STEP_S))
    turned = 0.0
    for step in range(steps):
        late = step >= steps // 2
        if late and not turned:
            turned = time.time()
        sender.run(STEP_S, mixed if late else familiar.next)
        display.show((step + 1) * STEP_S, "OOD" if late else "ID", witness.look())
    return turned


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a service on the embedded bundle; default: start one")
    parser.add_argument("--prometheus", metavar="URL", help="take the figures from this Prometheus instead of /metrics")
    parser.add_argument("--key-file", type=Path, help="file with the API key of the service")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--rate", type=float, default=30, help="images a second")
    parser.add_argument("--outliers", type=float, default=1.0, help="their share in the second half")
    parser.add_argument("--window", type=float, default=30, help="seconds looked back; four scrapes at least")
    parser.add_argument("--picture", type=Path, metavar="FILE.png")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    with ExitStack() as stack:
        url = given.url or stack.enter_context(serving(BUNDLE))
        headers = {"x-api-key": given.key_file.read_text().strip()} if given.key_file else {}
        client = stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=30))
        watching = given.prometheus
        if given.picture and not watching:
            from tests.demo.picture import prometheus

            watching = stack.enter_context(prometheus(url))
        witness: Witness = Prometheus(watching, given.window) if watching else Scraped(client, given.window)
        print(f"{given.rate:g} images/s to {url}; figures from {watching or url + '/metrics'}", flush=True)
        sender = Sender(client, given.rate)
        began = time.time()
        try:
            display = Display(given.seconds, given.seconds / 2, given.window)
            turned = play(sender, witness, display, given.seconds, given.outliers)
        finally:
            sender.close()
        print(f"{sender.answered} images answered, {sender.failed} failed, {sender.skipped} not sent: too slow")
        if given.picture and isinstance(witness, Prometheus):
            from tests.demo.picture import draw

            draw(given.picture, witness, began, turned, time.time(), given.window)
            print(f"drawn: {given.picture}")


if __name__ == "__main__":
    main()
