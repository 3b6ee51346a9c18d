"""What was measured as aligned tables and as JSON, with the machine it was measured on."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from service.process import available_cpus
from service.settings import Settings
from service.settings.places import ROOT
from tests.bench.level import Level
from tests.bench.limit import Limit

REPORT_FORMAT = 1
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "numpy", "pillow", "uvicorn", "uvloop", "httptools", "fastapi")
NO_VALUE = "-"
FAIR = (
    "The load generator runs on the same cores as the service, so req/s falls short of the limit by its share;\n"
    "the ratio of CPU-ms does not, and is the fair one. CPU-ms: of the service per answered request, refusals included."
)
# CPU-ms per request of a body of so many bytes that the service may cost without decoding and the model.
FRAMEWORK_TARGETS_MS = {1_300: 0.25, 197_000: 0.35}


@dataclass
class BenchReport:
    """Everything one run of the bench found."""

    environment: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    drift: dict[str, float] = field(default_factory=dict)  # CPU-ms of the limit, after / before, by image
    levels: list[Level] = field(default_factory=list)
    framework: list[Level] = field(default_factory=list)
    threads: list[Limit] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps({"format": REPORT_FORMAT, **asdict(self)}, indent=1) + "\n"

    def text(self) -> str:
        parts = [_environment_line(self.environment), *self.notes]
        if self.limits:
            parts.append("In-process limit: threads that only decode and run the graph\n" + _limits(self))
        if self.levels:
            parts.append(_levels(self.levels))
            sources = {level.cpu_of for level in self.levels if level.cpu_of}
            parts.append("\n".join([*(f"CPU from {source}." for source in sorted(sources)), FAIR]))
        if self.framework:
            parts.append("Framework share: decoding and the model are no-ops\n" + _framework(self.framework))
        if self.threads:
            parts.append("Inference threads x intra-op threads, in process\n" + _threads(self.threads))
        return "\n\n".join(parts)


def environment(settings: Settings) -> dict[str, Any]:
    """The machine, the versions, the bundle and the commit."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cpus": available_cpus(),
        "load_average_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := installed(name))},
        "bundle": str(settings.bundle),
        "provider": settings.provider,
        "inference_threads": settings.inference_threads,
        "intra_op_threads": settings.intra_op_threads,
        "commit": commit(),
    }


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def commit() -> str | None:
    """The commit of the checkout, "-dirty" when files differ from it; None outside of one."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, capture_output=True, text=True
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned, the first to the left and numbers to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def number(value: float | None, digits: int) -> str:
    return NO_VALUE if value is None else f"{value:,.{digits}f}"


def _environment_line(found: dict[str, Any]) -> str:
    return (
        f"{found['cpus']} CPUs of {found['cpu']}; {found['bundle']} on {found['provider']}, "
        f"{found['inference_threads']} x {found['intra_op_threads']} threads; Python {found['python']}, "
        f"commit {found['commit'] or 'unknown'}; load average before the run {found['load_average_before']}"
    )


def _limits(report: BenchReport) -> str:
    head = ("image", "threads", "images/s", "CPU-ms", "after/before")
    rows = [
        (limit.image, str(limit.threads), number(limit.images_per_s, 1), number(limit.cpu_ms, 3),
         number(report.drift.get(limit.image), 3))
        for limit in report.limits
    ]  # fmt: skip
    return table(head, rows)


def _levels(levels: Sequence[Level]) -> str:
    head = (
        "image", "connections", "req/s", "p50 ms", "p90 ms", "p99 ms", "CPU-ms", "req/s : limit", "CPU : limit",
        "shed", "failed", "broken", "health p99 ms",
    )  # fmt: skip
    rows = [
        (level.image, str(level.connections), number(level.req_s, 1), number(level.tally.p50_ms, 2),
         number(level.tally.p90_ms, 2), number(level.tally.p99_ms, 2), number(level.cpu_ms, 3),
         number(level.limit_req_s_ratio, 3), number(level.limit_cpu_ratio, 3), str(level.tally.shed),
         str(level.tally.failed), str(level.tally.connection_errors), number(level.health_p99_ms, 2))
        for level in levels
    ]  # fmt: skip
    return table(head, rows)


def _framework(levels: Sequence[Level]) -> str:
    head = ("body", "form", "connections", "req/s", "p99 ms", "CPU-ms", "target", "failed")
    targets = {f"{size / 1000:g} KB": target for size, target in FRAMEWORK_TARGETS_MS.items()}
    rows = [
        (level.image, level.body, str(level.connections), number(level.req_s, 1), number(level.tally.p99_ms, 2),
         number(level.cpu_ms, 3), number(targets[level.image], 2),
         str(level.tally.failed + level.tally.shed + level.tally.connection_errors))
        for level in levels
    ]  # fmt: skip
    return table(head, rows)


def _threads(limits: Sequence[Limit]) -> str:
    head = ("threads x intra-op", "images/s", "p50 ms of one image", "CPU-ms")
    rows = [
        (f"{one.threads} x {one.intra_op_threads}", number(one.images_per_s, 1), number(one.p50_ms, 2),
         number(one.cpu_ms, 3))
        for one in limits
    ]  # fmt: skip
    most = max(limits, key=lambda one: one.images_per_s)
    best = f"{most.threads} x {most.intra_op_threads}"
    return f"{table(head, rows)}\nMost images per second: {best} threads x intra-op."
