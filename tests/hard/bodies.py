"""Bodies that are too large, or that never come."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator

from tests.hard import plan
from tests.hard.load import Running
from tests.hard.plan import Plan
from tests.hard.pressure import a_photo, warm_up
from tests.hard.report import Report
from tests.hard.server import MIB, Server, serving

GROWTH = 32 * MIB
PIECE = 1 << 16
BODY = 300 * MIB
TIMEOUT_S = 2  # of a request, so that the test is short
HEAD_TIMEOUT_S = 10  # service/web/connection.py
SLACK_S = 5.0  # a busy machine


def big_bodies(report: Report) -> None:
    """300 MiB with Content-Length, the same with a client that does not wait for its answer, and chunked."""
    count = report.of(BODY, 64 * MIB)
    kinds = {
        "plain": (f"Content-Length: {count}", b""),
        "chunked": ("Transfer-Encoding: chunked", f"{PIECE:x}\r\n".encode()),
    }
    with serving(report.wrong, BUNDLE=str(report.bundle)) as server:
        warm_up(server, 1)
        for name, (header, before) in kinds.items():
            rss = server.rss()
            server.forget_peak()
            answer, sent, closed = upload(server, header, before, count)
            grown = server.peak_rss() - rss
            status = answer[9:12].decode()
            report.need(status == "413", f"{name}: the answer is {answer[:100]!r}")
            report.need(closed, f"{name}: the connection stayed open")
            report.need(grown < GROWTH, f"{name}: the peak is {grown / MIB:.0f} MiB over what it was")
            report.say(
                f"{name} {status} after {sent / MIB:.0f} of {count / MIB:.0f} MiB, +{grown / MIB:.1f} MiB",
                **{f"{name}_grown_mib": grown / MIB, f"{name}_sent_mib": sent / MIB},
            )
        report.need(server.ask("GET", "/health/ready")[0] == 200, "not ready afterwards")


def upload(server: Server, header: str, before: bytes, count: int) -> tuple[bytes, int, bool]:
    """Send `count` zero bytes as fast as they are taken, reading meanwhile: the answer, bytes sent, server closed."""
    answer, closed = bytearray(), threading.Event()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:

        def read() -> None:
            with contextlib.suppress(OSError):
                while data := connection.recv(PIECE):
                    answer.extend(data)
            closed.set()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        head = f"POST /classify HTTP/1.1\r\nHost: hard\r\nContent-Type: image/png\r\n{header}\r\n\r\n"
        connection.sendall(head.encode())
        piece = before + bytes(PIECE) + (b"\r\n" if before else b"")
        sent = 0
        with contextlib.suppress(OSError):
            while sent < count and not closed.is_set():
                connection.sendall(piece)
                sent += PIECE
        reader.join(30)
    return bytes(answer), sent, closed.is_set()


def slow_clients(report: Report) -> None:
    """Clients that send a byte a second of their body, of their headers, or nothing, beside ordinary ones."""
    each = report.of(100, 20)
    with serving(report.wrong, BUNDLE=str(report.bundle), REQUEST_TIMEOUT_S=str(TIMEOUT_S)) as server:
        warm_up(server, 1)
        ordinary = Running(Plan(server.port, [a_photo()], clients=2))
        time.sleep(0.2)
        bodies, heads, silent = asyncio.run(_slow(server.port, each))
        seen = ordinary.stop()
        report.need_right(seen, "ordinary clients")
        answers = [answer[9:12] for answer, _ in bodies]
        report.need(answers == [b"408"] * each, f"slow bodies got {set(answers)}")
        _in_time(report, "slow bodies", TIMEOUT_S, bodies)
        _in_time(report, "slow headers", HEAD_TIMEOUT_S, heads)
        _in_time(report, "silent clients", HEAD_TIMEOUT_S, silent)
        report.say(f"{seen.rate():,.0f} req/s beside them", requests_per_s=seen.rate())


def _in_time(report: Report, who: str, after_s: float, ended: list[tuple[bytes, float]]) -> None:
    low, high = min(s for _, s in ended), max(s for _, s in ended)
    right = after_s - 0.5 <= low and high <= after_s + SLACK_S
    report.need(right, f"{who} were ended after {low:.1f} to {high:.1f} s, not about {after_s}")
    report.say(f"{len(ended)} {who} ended after {low:.1f} to {high:.1f} s", **{who.replace(" ", "_") + "_s": high})


async def _slow(port: int, each: int) -> list[list[tuple[bytes, float]]]:
    """What each slow client was sent, and the seconds until its connection was closed; by kind."""
    whole = plan.classify(bytes(10_000))
    head_bytes = whole.index(b"\r\n\r\n") + 4
    starts = (whole[: head_bytes + 1], whole[:20], b"")
    rests = (whole[head_bytes + 1 :], whole[20:head_bytes], b"")
    kinds = [
        [_drip(port, start, iter(rest), i / 100) for i in range(each)]
        for start, rest in zip(starts, rests, strict=True)
    ]
    return [await asyncio.gather(*kind) for kind in [[asyncio.ensure_future(c) for c in kind] for kind in kinds]]


async def _drip(port: int, start: bytes, rest: Iterator[int], delay_s: float) -> tuple[bytes, float]:
    await asyncio.sleep(delay_s)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    started = time.monotonic()
    writer.write(start)

    async def drip() -> None:
        for byte in rest:
            await asyncio.sleep(1)
            writer.write(bytes([byte]))

    dripping = asyncio.ensure_future(drip())
    answer = b""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(60):
            while data := await reader.read(PIECE):  # a reset after the answer must not take the answer along
                answer += data
    seconds = time.monotonic() - started
    dripping.cancel()
    writer.close()
    return answer, seconds
