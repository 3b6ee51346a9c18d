"""Saturation: health stays quick, and accepted requests keep their latency while 256 clients push."""

import time
from collections.abc import Callable

from tests.bench.photos import photo
from tests.hard import load, plan
from tests.hard.load import Running
from tests.hard.plan import Plan, Sample, Seen
from tests.hard.report import Report
from tests.hard.server import Server, machine_busy_s, serving

HEALTH_MS = 10.0  # p99
POLLS_PER_S = 50
FLAT = 2.0  # p99 of accepted requests at 256 connections, as a multiple of that at 64
KEPT = 0.7  # throughput at 256 connections, as a share of that at 8
SHED = (200, 429)


def a_photo(statuses: tuple[int, ...] = (200,)) -> Sample:
    return Sample("photo", plan.classify(photo().data, "image/jpeg"), statuses)


def warm_up(server: Server, seconds: float = 2.0) -> Seen:
    return load.push(Plan(server.port, [a_photo()], clients=8, seconds=seconds))


def cpu_of(server: Server) -> Callable[[Seen, Report, str], str]:
    """Begin to watch the CPUs; the function given back says how many the server, its clients and others used.

    Others that take much, or clients that take more than the server leaves, make the latencies theirs.
    """
    busy_s, server_s, started = machine_busy_s(), server.cpu_s(), time.monotonic()

    def ended(clients: Seen, report: Report, label: str) -> str:
        seconds = time.monotonic() - started
        own = (server.cpu_s() - server_s) / seconds
        others = max(0.0, (machine_busy_s() - busy_s) / seconds - own - clients.cpu_share)
        report.numbers |= {
            f"{who}_cpus_{label}": round(cpus, 3)
            for who, cpus in (("server", own), ("clients", clients.cpu_share), ("others", others))
        }
        return f"CPUs: server {own:.2f}, clients {clients.cpu_share:.2f}, others {others:.2f}"

    return ended


def saturated_health(report: Report) -> None:
    """GET /health/live and /health/ready, 50 a second each on connections of their own, beside 8 and 64 clients."""
    probes = [Sample(name, plan.request("GET", f"/health/{name}")) for name in ("live", "ready")]
    with serving(report.wrong, BUNDLE=str(report.bundle)) as server:
        warm_up(server)
        for clients in (8, 64):
            pushing = Running(Plan(server.port, [a_photo(SHED)], clients=clients))
            time.sleep(0.5)
            # A pause of this process in user space would count against the server: it comes first on the CPUs.
            polling = Plan(
                server.port, probes, clients=2, own_sample=True, every_s=1 / POLLS_PER_S,
                seconds=report.of(15, 4), nice=0,
            )  # fmt: skip
            cpu = cpu_of(server)
            polled = load.push(polling)
            pushed = pushing.stop()
            cpus = cpu(pushed, report, f"at_{clients}")
            report.need_right(polled, "health")
            report.need_right(pushed, f"{clients} clients")
            found = {name: polled.ms(0.99, name=name) for name in ("live", "ready")}
            for name, p99_ms in found.items():
                report.need(p99_ms < HEALTH_MS, f"{name} p99 {p99_ms:.1f} ms beside {clients} clients")
            report.say(
                f"live p99 {found['live']:.1f} ms, ready p99 {found['ready']:.1f} ms at {clients} connections, "
                f"{pushed.rate():,.0f} req/s ({cpus})",
                **{f"{name}_p99_ms_at_{clients}": p99_ms for name, p99_ms in found.items()},
                **{f"requests_per_s_at_{clients}": pushed.rate()},
            )


def many_connections(report: Report) -> None:
    """8, 64, then 256 clients that ask again at once, whatever Retry-After says."""
    seconds = report.of(20, 5)
    with serving(report.wrong, BUNDLE=str(report.bundle)) as server:
        warm_up(server)
        seen: dict[int, Seen] = {}
        for clients in (8, 64, 256):
            cpu = cpu_of(server)
            seen[clients] = one = load.push(Plan(server.port, [a_photo(SHED)], clients=clients, seconds=seconds))
            report.need_right(one, f"{clients} clients")
            shed = one.rate(429)
            report.say(
                f"{clients}: {one.rate():,.0f} req/s, p99 {one.ms(0.99):.0f} ms"
                + (f", {shed:,.0f} refused/s" if shed else "")
                + f" ({cpu(one, report, f'at_{clients}')})",
                **{f"requests_per_s_at_{clients}": one.rate(), f"p99_ms_at_{clients}": one.ms(0.99)},
                **{f"refused_per_s_at_{clients}": shed},
            )
    grown, kept = seen[256].ms(0.99) / seen[64].ms(0.99), seen[256].rate() / seen[8].rate()
    report.need(grown <= FLAT, f"p99 of accepted requests grew {grown:.2f}-fold from 64 to 256 connections")
    report.need(kept >= KEPT, f"throughput at 256 connections is {kept:.2f} of that at 8")
    report.say(f"p99 ratio {grown:.2f}, throughput kept {kept:.2f}", p99_ratio=grown, throughput_kept=kept)
