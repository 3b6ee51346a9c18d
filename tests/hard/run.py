"""The hard tests in turn, each against a server process of its own: one line each, with figures and PASS or FAIL.

    python -m tests.hard.run [--only NAME,NAME] [--quick] [--bundle DIR] [--json FILE]

The exit code is 1 when any fails. The clients run on the same machine at nice 5; where CPUs are few, they take theirs
from the server, so lines with latencies say how much CPU the generator used.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__" and __package__ in (None, ""):  # python tests/hard/run.py
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.hard import bodies, bombs, cancels, ending, held, lasting, pressure, swaps
from tests.hard.report import Report
from tests.hard.server import BUNDLE

TESTS: dict[str, Callable[[Report], None]] = {
    "saturated-health": pressure.saturated_health,
    "256-connections": pressure.many_connections,
    "300-mib-bodies": bodies.big_bodies,
    "slow-clients": bodies.slow_clients,
    "held-connections": held.held_connections,
    "trailers": held.trailers,
    "parts": held.parts,
    "departed-large": held.departed_large,
    "bounded-memory": held.bounded_memory,
    "bombs": bombs.bombs,
    "term": ending.term,
    "kill": ending.kill,
    "swaps": swaps.swaps,
    "soak": lasting.soak,
    "cancel-storm": cancels.cancel_storm,
}
BUSY = 0.3  # CPUs' load before the start, as a share of all, from which figures are not to be trusted


def one(name: str, quick: bool, bundle: Path) -> Report:
    """Run one test. What it could not finish is a failure as well."""
    report = Report(quick=quick, bundle=bundle)
    try:
        TESTS[name](report)
    except Exception as error:
        report.wrong.append(f"{type(error).__name__}: {error}")
    return report


def line(name: str, report: Report) -> str:
    verdict = "FAIL" if report.wrong else "PASS"
    parts = ["; ".join(report.figures), *(f"✗ {wrong}" for wrong in report.wrong)]
    return f"{name:<18} {verdict}   " + "; ".join(filter(None, parts))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"some of {', '.join(TESTS)}")
    parser.add_argument("--quick", action="store_true", help="small counts")
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    given = parser.parse_args(arguments)
    names = given.only.split(",") if given.only else list(TESTS)
    if unknown := set(names) - set(TESTS):
        parser.error(f"{', '.join(sorted(unknown))}: none of {', '.join(TESTS)}")
    load_before, cpus = os.getloadavg()[0], os.cpu_count() or 1
    if load_before > BUSY * cpus:
        print(f"note: the load is {load_before:.1f} on {cpus} CPUs before the start: latencies are not to be trusted")
    found: dict[str, Any] = {}
    for name in names:
        started = time.monotonic()
        report = one(name, given.quick, given.bundle.resolve())
        print(line(name, report), flush=True)
        found[name] = {
            "passed": not report.wrong, "seconds": round(time.monotonic() - started, 1), "figures": report.figures,
            "wrong": report.wrong, **report.numbers,
        }  # fmt: skip
    if given.json:
        given.json.write_text(json.dumps({"cpus": cpus, "load_before": load_before, "tests": found}, indent=1) + "\n")
    return 0 if all(result["passed"] for result in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
