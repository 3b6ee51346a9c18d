"""2,000 clients that leave at random moments, beside 8 whose answers must be those of their own images."""

import asyncio
import contextlib
import random

from tests.hard import load, plan
from tests.hard.lasting import png
from tests.hard.load import Running
from tests.hard.plan import Plan, Sample
from tests.hard.pressure import a_photo
from tests.hard.report import Report
from tests.hard.server import MIB, Server, serving, wait_until

AT_ONCE = 32  # with the 8 fewer than the queue holds, so that nobody is refused
LONGEST_STAY_S = 0.06  # after the whole request was sent


def cancel_storm(report: Report) -> None:
    count = report.of(2_000, 200)
    with serving(report.wrong, BUNDLE=str(report.bundle)) as server:
        samples = known(server)
        load.push(Plan(server.port, samples, clients=8, count=500))
        server.queued()  # the first rendering of the metrics starts the thread that renders them
        before, threads, descriptors = server.rss(), server.threads(), server.descriptors()
        staying = Running(Plan(server.port, samples, clients=8))
        left = asyncio.run(_storm(server.port, a_photo().request, count))
        seen = staying.stop()
        report.need_right(seen, "those who stayed")
        report.need(seen.statuses().get(200, 0) >= count // 10, f"only {seen.statuses()} answers beside the storm")
        empty = wait_until(lambda: server.queued() == 0, 5)
        report.need(empty, f"{server.queued()} images are still counted as queued")
        report.need(server.threads() == threads, f"{threads} threads became {server.threads()}")
        closed = wait_until(lambda: server.descriptors() <= descriptors, 5)
        report.need(closed, f"{descriptors} descriptors became {server.descriptors()}")
        report.say(
            f"{count:,} left ({', '.join(f'{n:,} {when}' for when, n in left.items())}), "
            f"{seen.statuses().get(200, 0):,} answers beside them all right, queue {server.queued()}, "
            f"RSS {before / MIB:.0f} → {server.rss() / MIB:.0f} MiB",
        )


def known(server: Server) -> list[Sample]:
    """16 images of different sizes and colours, with the label and score that the model gives each when alone."""
    rng = random.Random(0)
    samples = []
    for i in range(16):
        colour = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
        image = png(40 + i, 90 - i, colour)
        status, answer = server.classify(image)
        assert status == 200, answer
        label = answer[answer.index(b'"label":') : answer.index(b',"class_index"')]
        size = f'"image":{{"width_px":{40 + i},"height_px":{90 - i}}}'.encode()
        samples.append(Sample(f"image {i}", plan.classify(image), holds=(label, size)))
    return samples


async def _storm(port: int, request: bytes, count: int) -> dict[str, int]:
    """How many left when: before the body, in it, and before the answer."""
    rng, limit = random.Random(1), asyncio.Semaphore(AT_ONCE)
    head = request.index(b"\r\n\r\n") + 4
    left = {"before the body": 0, "in the body": 0, "before the answer": 0}

    async def leave(when: str, cut: int, stay_s: float, reset: bool) -> None:
        async with limit:
            with contextlib.suppress(ConnectionError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(request[:cut])
                await writer.drain()
                await asyncio.sleep(stay_s)
                if reset:
                    writer.transport.abort()
                writer.close()
                left[when] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            when = rng.choice(list(left))
            cut = {"before the body": rng.randrange(head + 1), "in the body": rng.randrange(head + 1, len(request))}
            stay_s = rng.random() * LONGEST_STAY_S * (when == "before the answer")
            group.create_task(leave(when, cut.get(when, len(request)), stay_s, rng.random() < 0.5))
    return left
