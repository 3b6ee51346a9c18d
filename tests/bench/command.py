"""What `python -m tests.bench` does with its arguments."""

import argparse
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from urllib.parse import urlsplit

from service import process, settings
from service.contract import bundle
from service.settings import PREFIX, Settings
from service.settings.places import ROOT
from tests.bench import level, limit, photos, report
from tests.bench.level import Level, Load
from tests.bench.limit import Limit
from tests.bench.photos import Photo
from tests.bench.processes import BenchError, Endpoint, started
from tests.bench.report import FRAMEWORK_TARGETS_MS, BenchReport

SECONDS = 5.0
QUICK_SECONDS = 2.0
LONGEST_WARMUP_S = 1.0
CONCURRENCY = (1, 8, 64, 256)
FRAMEWORK_CONCURRENCY = (8,)
ROUTE = "/classify"
NOTHING = "nothing was answered in the time: measure longer with --seconds"
BODIES = {"raw": photos.raw_request, "form": photos.form_request}


def run(args: argparse.Namespace) -> int:
    """Measure, print, write; the exit code. Raises BenchError and SettingsError, each with one clear line."""
    given = settings.load()
    seconds = args.seconds or (QUICK_SECONDS if args.quick else SECONDS)
    found = BenchReport(report.environment(given))
    if args.threads:
        found.threads = _threads(args, given, seconds)
    elif args.framework:
        found.framework = _framework(args, given, seconds)
    else:
        _full(args, given, seconds, found)
    found.notes += [
        f"{one.image}, {one.connections} connections: "
        + (f"not all was answered or shed, statuses {one.tally.statuses}" if one.tally.failed else NOTHING)
        for one in (*found.levels, *found.framework)
        if one.tally.failed or not one.tally.answered
    ]
    print(found.text())
    if args.json is not None:
        write(args.json, found.to_json())
    return 1 if any(not one.tally.answered for one in (*found.levels, *found.framework)) else 0


def write(path: Path, text: str) -> None:
    """The whole file or none. Raises BenchError when it cannot be written."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise BenchError(f"{path} cannot be written: {error.strerror}") from error


def own_environ(given: Settings, **changes: str) -> dict[str, str]:
    """The environment for a service of our own: that of this process, on a free port of the loopback."""
    fixed = {f"{PREFIX}BUNDLE": str(given.bundle), f"{PREFIX}HOST": "127.0.0.1", f"{PREFIX}PORT": "0"}
    grace = {f"{PREFIX}DRAIN_GRACE_S": "0"}  # there is no balancer to wait for
    return {**os.environ, **fixed, **grace, **changes}


def _full(args: argparse.Namespace, given: Settings, seconds: float, found: BenchReport) -> None:
    """Limit, levels, limit again: the ratios are to the mean of both."""
    sent, key, environ = _photos(args), _key(args, given), own_environ(given)
    threads, intra = limit.threads_of(given), given.intra_op_threads

    def limits() -> list[Limit]:
        _say("in-process limit")
        return limit.measure(sent, environ, threads, intra, seconds)

    with _server(args, environ, "service", "serve") as server:
        if (note := _other_model(server, key, given)) is not None:
            found.notes.append(note)
        before = [] if note else limits()
        for photo in sent:
            request = photos.raw_request(ROUTE, photo, key)
            for connections in args.concurrency or CONCURRENCY:
                load = Load(
                    photo.name, "raw", request, connections, _warmup_s(seconds), seconds, args.ignore_retry_after
                )
                _say(f"{photo.name}, {connections} connections")
                found.levels.append(level.measure(server, load, key=key))
        after = [] if note else limits()
    found.limits = [limit.between(a, b) for a, b in zip(before, after, strict=True)]
    found.drift = {a.image: b.cpu_ms / a.cpu_ms for a, b in zip(before, after, strict=True)}
    by_image = {one.image: one for one in found.limits}
    found.levels = [compared(one, by_image.get(one.image)) for one in found.levels]


def compared(found: Level, to: Limit | None) -> Level:
    """The level with its ratios to the limit of the same image."""
    if to is None:
        return found
    cpu = None if found.cpu_ms is None else found.cpu_ms / to.cpu_ms
    return replace(found, limit_req_s_ratio=found.req_s / to.images_per_s, limit_cpu_ratio=cpu)


def _framework(args: argparse.Namespace, given: Settings, seconds: float) -> list[Level]:
    """CPU per request, decode and model replaced by no-ops, for two sizes as a raw body and as a form."""
    if args.url:
        raise BenchError("--framework starts a service with no-ops itself: leave --url out")
    key, found = _key(args, given), []
    with _server(args, own_environ(given), "tests.bench.noop") as server:
        for size, source in zip(FRAMEWORK_TARGETS_MS, (photos.small(), photos.photo()), strict=True):
            photo = photos.padded(source, size)
            for (body, made), connections in product(BODIES.items(), args.concurrency or FRAMEWORK_CONCURRENCY):
                load = Load(photo.name, body, made(ROUTE, photo, key), connections, _warmup_s(seconds), seconds)
                _say(f"{photo.name}, {body}, {connections} connections")
                found.append(level.measure(server, load, key=key))
    return found


def _threads(args: argparse.Namespace, given: Settings, seconds: float) -> list[Limit]:
    """The first image through every combination of threads that fills the CPUs."""
    photo, found = _photos(args)[0], []
    for threads, intra in limit.combinations(process.available_cpus()):
        _say(f"{threads} x {intra} threads")
        found += limit.measure([photo], own_environ(given), threads, intra, seconds)
    return found


@contextmanager
def _server(args: argparse.Namespace, environ: dict[str, str], *module: str) -> Iterator[Endpoint]:
    """The service at --url, or one of our own."""
    if args.url:
        where = urlsplit(args.url)
        if where.scheme != "http" or where.hostname is None or where.path not in ("", "/"):
            raise BenchError(f"--url {args.url} is not of the form http://HOST:PORT")
        yield Endpoint(where.hostname, where.port or 80, None)
        return
    with started([sys.executable, "-m", *module], environ, cwd=ROOT) as server:
        yield server


def _other_model(server: Endpoint, key: str | None, given: Settings) -> str | None:
    """Why the in-process limit would say nothing about this server; None when it serves the bundle of the settings."""
    if server.pid is not None or bundle.read(given.bundle).sha256 in level.metrics(server, key):
        return None
    return (
        f"No in-process limit: the service at http://{server.host}:{server.port} does not say in GET /metrics that it "
        f"serves {given.bundle}: set {PREFIX}BUNDLE to its bundle."
    )


def _photos(args: argparse.Namespace) -> list[Photo]:
    if not args.image:
        return [photos.photo()] if args.quick else [photos.photo(), photos.small()]
    try:
        return [photos.from_file(path) for path in args.image]
    except OSError as error:
        raise BenchError(f"--image {error.filename} cannot be read: {error.strerror}") from error


def _key(args: argparse.Namespace, given: Settings) -> str | None:
    if args.key is not None:
        return str(args.key)
    return None if given.api_key is None else given.api_key.get_secret_value()


def _warmup_s(seconds: float) -> float:
    return min(LONGEST_WARMUP_S, 0.3 * seconds)


def _say(what: str) -> None:
    print(f"measuring {what} ...", file=sys.stderr, flush=True)
