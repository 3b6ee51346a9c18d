"""TERM with requests in flight, a second TERM, and KILL."""

import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor

from tests.hard import giants
from tests.hard.load import Running
from tests.hard.plan import Plan
from tests.hard.pressure import a_photo, warm_up
from tests.hard.report import Report
from tests.hard.server import Server, complaints, serving, wait_until

IN_FLIGHT = 8
GRACE_S = 1.0
DRAIN_S = 30.0
AT_ONCE_S = 2.0  # for a busy machine; the figure is printed
BIG = giants.png_rgb(6000, 6000)  # a third of a second each to decode
SMALL = giants.png(32, 32)


def term(report: Report) -> None:
    """TERM while 8 images are in work: not ready at once, all answered, exit 0; a second TERM ends it at once."""
    settings = {"REQUEST_TIMEOUT_S": "60", "DRAIN_S": str(DRAIN_S), "DRAIN_GRACE_S": str(GRACE_S)}
    with (
        serving(report.wrong, BUNDLE=str(report.bundle), **settings) as server,
        ThreadPoolExecutor(IN_FLIGHT) as pool,
    ):
        waiting = _in_flight(server, pool, report)
        held = server.queued()
        started = time.monotonic()
        server.signal(signal.SIGTERM)
        told = wait_until(lambda: server.ask("GET", "/health/ready")[0] == 503, AT_ONCE_S)
        not_ready_s = time.monotonic() - started
        report.need(told, f"still ready {not_ready_s:.1f} s after TERM")
        report.need(held > 0, "no image was in work at TERM")
        report.need(server.classify(SMALL)[0] == 200, "a request within the grace was refused")
        statuses = [answer.result()[0] for answer in waiting]
        code = server.wait(GRACE_S + DRAIN_S + 10)
        ended_s = time.monotonic() - started
        report.need(statuses == [200] * IN_FLIGHT, f"the {IN_FLIGHT} in flight got {statuses}")
        report.need(code == 0, f"exit code {code}")
        report.need(ended_s <= GRACE_S + DRAIN_S, f"it ended {ended_s:.1f} s after TERM")
        report.need(not server.orphans(), f"processes left: {server.orphans()}")
        report.say(
            f"{statuses.count(200)} of {held} in flight answered, not ready after {1e3 * not_ready_s:.0f} ms, "
            f"exit {code} after {ended_s:.1f} s",
            not_ready_ms=1e3 * not_ready_s, ended_s=ended_s,
        )  # fmt: skip
    _second_term(report)


def _second_term(report: Report) -> None:
    server = Server(BUNDLE=str(report.bundle), REQUEST_TIMEOUT_S="60", DRAIN_GRACE_S="30")
    try:
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            waiting = _in_flight(server, pool, report)
            server.signal(signal.SIGTERM)
            wait_until(lambda: server.ask("GET", "/health/ready")[0] == 503, AT_ONCE_S)
            started = time.monotonic()
            server.signal(signal.SIGTERM)
            code = server.wait()
            seconds = time.monotonic() - started
            broken = sum(answer.exception() is not None for answer in waiting)
        report.need(seconds < AT_ONCE_S, f"it ended {seconds:.1f} s after the second TERM")
        report.need(code != 0, "exit code 0 although requests were broken off")
        report.need(not server.orphans(), f"processes left: {server.orphans()}")
        report.say(f"second TERM: exit {code} after {1e3 * seconds:.0f} ms, {broken} broken off")
    finally:
        server.kill()


def kill(report: Report) -> None:
    """KILL under load leaves no process and no file, and another server starts on the same port."""
    server = Server(BUNDLE=str(report.bundle))
    try:
        warm_up(server, 1)
        pushing = Running(Plan(server.port, [a_photo()], clients=8))
        time.sleep(0.5)
        server.signal(signal.SIGKILL)
        server.wait()
        pushing.stop()
        report.need(not server.orphans(), f"processes left: {server.orphans()}")
        report.need(not server.leftovers(), f"files left: {server.leftovers()}")
        report.wrong += complaints(server.log())
        started = time.monotonic()
        with serving(report.wrong, PORT=str(server.port), BUNDLE=str(report.bundle)) as again:
            status = again.classify(SMALL)[0]
            seconds = time.monotonic() - started
        report.need(status == 200, f"after the restart: {status}")
        report.say(f"nothing left, answering again on the same port after {seconds:.1f} s", restart_s=seconds)
    finally:
        server.kill()


def _in_flight(server: Server, pool: ThreadPoolExecutor, report: Report) -> list[Future[tuple[int, bytes]]]:
    """8 requests, all of them admitted and none answered yet."""
    _ = [server.classify(SMALL) for _ in range(3)]
    waiting = [pool.submit(server.classify, BIG) for _ in range(IN_FLIGHT)]
    full = wait_until(lambda: server.queued() == IN_FLIGHT, 10)
    report.need(full, f"{server.queued()} of {IN_FLIGHT} images were in work at once")
    return waiting
