"""100 bundles put in service one after another while 8 clients ask: no request notices but by the version it names."""

import json
import shutil
import tempfile
import time
from pathlib import Path

from service.contract import bundle
from tests.bench.photos import photo
from tests.hard import load, plan
from tests.hard.load import Running
from tests.hard.plan import Plan, Sample
from tests.hard.report import Report
from tests.hard.server import MIB, Server, serving

ADMIN_KEY = "hard-test-admin"
GROWTH = 0.10
BAD_EVERY = 10  # swaps
SETTLE_S = (15, 3)  # full and quick: the last models drain, and their memory goes back


def swaps(report: Report) -> None:
    count = report.of(100, 10)
    with tempfile.TemporaryDirectory() as folder:
        good = {"1": report.bundle, "other": other_version(report.bundle, Path(folder) / "other")}
        bad = [Path(folder) / "missing", _damaged(report.bundle, Path(folder) / "damaged")]
        names = tuple(f'"version":"{bundle.read(path).version}"'.encode() for path in good.values())
        image = plan.classify(photo().data, "image/jpeg", X_API_Key=ADMIN_KEY)
        sample = Sample("photo", image, either=names)
        keys = {"ADMIN_KEYS": f"ops={ADMIN_KEY}"}
        with serving(report.wrong, BUNDLE=str(report.bundle), **keys) as server:
            load.push(Plan(server.port, [sample], clients=8, seconds=report.of(8, 3)))
            before = server.rss()
            pushing = Running(Plan(server.port, [sample], clients=8))
            started = time.monotonic()
            for i in range(count):
                if i % BAD_EVERY == BAD_EVERY // 2:
                    _refused(report, server, bad[i // BAD_EVERY % len(bad)], list(good)[i % 2])
                _swapped(report, server, list(good.values())[(i + 1) % 2])
            seconds = time.monotonic() - started
            seen = pushing.stop()
            after = _settled(server, before, report.of(*SETTLE_S))
            report.need_right(seen, "clients")
            report.need(set(seen.either) == set(names), f"answers named {dict(seen.either)}")
            grown = after / before - 1
            report.need(grown < GROWTH, f"RSS grew by {grown:.1%}")
            report.say(
                f"{count} swaps in {seconds:.1f} s under {seen.rate():,.0f} req/s, {seen.unexpected + seen.lost} of "
                f"{sum(seen.statuses().values()):,} requests failed, RSS {before / MIB:.0f} → {after / MIB:.0f} MiB "
                f"({grown:+.1%})",
                swap_s=seconds / count, rss_before_mib=before / MIB, rss_after_mib=after / MIB, rss_grown=grown,
            )  # fmt: skip


def other_version(source: Path, target: Path) -> Path:
    """The same bundle under version `other`, in the format that it has."""
    shutil.copytree(source, target)
    manifest = target / bundle.MANIFEST_FILE
    fields = json.loads(manifest.read_text(encoding="utf-8")) | {"version": "other"}
    manifest.write_text(json.dumps(fields), encoding="utf-8")
    return target


def _damaged(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    graph = target / bundle.GRAPH_FILE
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    return target


def _put(server: Server, path: Path) -> tuple[int, bytes]:
    headers = {"X-API-Key": ADMIN_KEY, "Content-Type": "application/json"}
    return server.ask("PUT", "/admin/bundle", json.dumps({"path": str(path)}).encode(), headers)


def _swapped(report: Report, server: Server, path: Path) -> None:
    status, answer = _put(server, path)
    right = status == 200 and json.loads(answer)["version"] == bundle.read(path).version
    report.need(right, f"PUT {path}: {status} {answer[:200].decode(errors='replace')}")


def _refused(report: Report, server: Server, path: Path, in_force: str) -> None:
    status, answer = _put(server, path)
    report.need(status == 409, f"PUT {path.name}: {status} {answer[:200].decode(errors='replace')}")
    model = json.loads(server.ask("GET", "/model", headers={"X-API-Key": ADMIN_KEY})[1])
    report.need(model["version"] == in_force, f"{path.name} changed the version to {model['version']}")


def _settled(server: Server, wanted: int, longest_s: float) -> int:
    """RSS once it is back, or after a while."""
    deadline = time.monotonic() + longest_s
    while (now := server.rss()) > wanted * (1 + GROWTH / 2) and time.monotonic() < deadline:
        time.sleep(0.2)
    return now
