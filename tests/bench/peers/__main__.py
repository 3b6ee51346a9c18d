"""python -m tests.bench.peers --out tests/bench/peers/results.json: measure all, write the results, print the table.

Every server gets the same multipart upload of the same 640 x 427 photo, at 8 and at 256 connections, and uses all CPUs
with one intra-op thread each. Between two servers the in-process limit is measured; a server's ratio is to the mean of
the limits before and after it.
"""

import argparse
import http.client
import json
import os
import socket
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from service import process, settings
from service.settings import Settings
from service.settings.places import ROOT
from tests.bench import command, level, limit, photos, report, resnet18
from tests.bench.level import Level, Load
from tests.bench.limit import Limit
from tests.bench.peers import venvs
from tests.bench.peers.table import markdown
from tests.bench.processes import BenchError, started

FOLDER = Path.home() / ".cache" / "tailguard-bench"
SECONDS = 10.0
WARMUP_S = {8: 2.0, 256: 6.0}  # at 256 a server that sheds nothing needs seconds to answer its first queue


@dataclass(frozen=True)
class Peer:
    """A server: its venv and packages, the arguments of its Python, its health route."""

    name: str
    package: str
    packages: tuple[str, ...]
    arguments: tuple[str, ...]
    health: str
    environ: dict[str, str] = field(default_factory=dict)


TAILGUARD = Peer("TailGuard", "", (), ("-m", "service", "serve"), "/health/live")
LITSERVE = ("litserve", "python-multipart")
PEERS = (
    Peer("LitServe, batching", "litserve", LITSERVE, ("-m", "tests.bench.peers.litserve_server"), "/health",
         {"PEER_BATCH": "8"}),
    Peer("LitServe", "litserve", LITSERVE, ("-m", "tests.bench.peers.litserve_server"), "/health"),
    Peer("FastAPI script", "fastapi", ("fastapi", "uvicorn", "uvloop", "httptools", "python-multipart"),
         ("-m", "tests.bench.peers.fastapi_server"), "/health"),
    Peer("BentoML", "bentoml", ("bentoml",),
         ("-m", "bentoml", "serve", "tests.bench.peers.bentoml_service:Classify"), "/readyz"),
)  # fmt: skip


def measure(peer: Peer, python: Path, given: Settings, seconds: float) -> dict[int, Level]:
    """A level of load by its connections. Raises BenchError when the server does not start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ = command.own_environ(given, TAILGUARD_PORT=str(port))
    cpus = str(process.available_cpus())
    environ |= {
        "PYTHONPATH": str(ROOT), "PEER_PORT": str(port), "PEER_CPUS": cpus, "PEER_BUNDLE": str(given.bundle),
        "BENTOML_DO_NOT_TRACK": "true", "BENTOML_HOST": "127.0.0.1", "BENTOML_PORT": str(port),
        "BENTOML_HOME": str(FOLDER / "bentoml-home"), **peer.environ,
    }  # fmt: skip
    request = photos.form_request(command.ROUTE, photos.photo())
    with started([str(python), *peer.arguments], environ, _answers(port, peer.health), ROOT) as server:
        return {
            connections: level.measure(
                server, Load("640x427", "form", request, connections, warmup_s, seconds), health=peer.health
            )
            for connections, warmup_s in WARMUP_S.items()
        }


def _answers(port: int, health: str) -> Callable[[str], tuple[str, int] | None]:
    """For `started`: does the health route say 200 by now?"""

    def find(_: str) -> tuple[str, int] | None:
        with (
            suppress(OSError, http.client.HTTPException),
            closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection,
        ):
            connection.request("GET", health)
            if connection.getresponse().status == 200:
                return "127.0.0.1", port
        return None

    return find


def compare(peers: list[Peer], given: Settings, folder: Path, seconds: float) -> dict[str, Any]:
    """The results as they are written to the JSON file."""

    def limits() -> Limit:
        threads, intra = limit.threads_of(given), given.intra_op_threads
        return limit.measure([photos.photo()], command.own_environ(given), threads, intra, seconds)[0]

    rows, found = [], [limits()]
    for peer in peers:
        _say(peer.name)
        row: dict[str, Any] = {"name": peer.name, "version": "", "unavailable": None}
        try:
            python = venvs.ready(folder, peer.package, peer.packages) if peer.package else Path(sys.executable)
            row["version"] = venvs.version_in(python, peer.package) if peer.package else ""
            levels = measure(peer, python, given, seconds)
            if silent := [one.tally.statuses for one in levels.values() if not one.tally.answered]:
                raise BenchError(f"it answered nothing, statuses {silent}")
        except (venvs.Unavailable, BenchError) as error:
            row["unavailable"] = " ".join(str(error).split())[:500]
        else:
            found.append(limits())
            between = limit.between(found[-2], found[-1])
            row |= {f"at_{n}": asdict(command.compared(one, between)) for n, one in levels.items()}
        rows.append(row)
    return {
        "environment": report.environment(given),
        "seconds": seconds,
        "limits": [asdict(one) for one in found],
        "servers": rows,
    }


def _say(what: str) -> None:
    print(f"measuring {what} ...", file=sys.stderr, flush=True)


def main() -> int:
    names = [peer.package for peer in PEERS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    parser.add_argument("--markdown", action="store_true", help="print the table of the file --out, measure nothing")
    parser.add_argument("--bundle", type=Path, help="default: an fp32 ResNet-18 with random weights")
    parser.add_argument("--venvs", type=Path, default=FOLDER, help=f"folder of the virtual environments, {FOLDER}")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of each level, default {SECONDS:g}")
    parser.add_argument("--only", choices=names, nargs="+", default=names, help="peers beside TailGuard")
    args = parser.parse_args()
    if args.markdown:
        if args.out is None:
            parser.error("--markdown needs --out, the file to read")
        print(markdown(json.loads(args.out.read_text(encoding="utf-8"))))
        return 0
    folder = args.bundle or args.venvs / "resnet18" / "1"
    if args.bundle is None and not folder.exists():
        resnet18.write(folder)
    os.environ["TAILGUARD_BUNDLE"] = str(folder)
    peers = [TAILGUARD, *(peer for peer in PEERS if peer.package in args.only)]
    results = compare(peers, settings.load(), args.venvs, args.seconds)
    if args.out is not None:
        command.write(args.out, json.dumps(results, indent=1) + "\n")
    print(markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
