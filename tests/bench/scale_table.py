"""What `python -m tests.bench.scale` has measured, as a table, with the machine it was measured on."""

import json
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from service.process import available_cpus
from tests.bench.report import commit, cpu_model, installed

QUIET_LOAD = 0.5  # of others: below, a figure is the machine's own
INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx_vnni": "AVX-VNNI", "amx_int8": "AMX"}
NAMES = {
    "one": "`score`, one thread",
    "all": "`score`, all cores",
    "ray": "`score --on ray`, the same cores",
    "replicas": "three replicas behind nginx",
}


@dataclass(frozen=True)
class Way:
    """Images a second while they come, CPU of all processes an image, the largest sum of their PSS; seconds until the
    first image, and of all of it with beginning and end."""

    images_per_s: float
    cpu_ms: float
    memory_mb: float
    start_s: float
    whole_s: float


def facts(bundle: Path, images: int, seconds: float, connections: int) -> dict[str, Any]:
    """The machine before the run, and what will be done."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit(), "bundle": str(bundle),
        "cpu": cpu_model(), "instructions": instructions(), "cpus": available_cpus(),
        "load_before": round(os.getloadavg()[0], 2), "images": images, "seconds": seconds, "connections": connections,
        "packages": {name: installed(name) for name in ("onnxruntime", "ray", "pillow")},
    }  # fmt: skip


def instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Those that decide how fast int8 and fp32 graphs run here."""
    try:
        found = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        found = None
    flags = set(found[1].split()) if found else set()
    return ", ".join(name for flag, name in INSTRUCTIONS.items() if flag in flags) or "no AVX2"


def markdown(result: dict[str, Any]) -> str:
    """A line for each way: the medians of the rounds, and ratios to one process of the same round."""
    rounds = result["rounds"]
    lines = [
        "| | images/s | times | CPU-ms/image | times | memory MB | s until the first image |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for key, name in NAMES.items():
        middle = {field: median(one[key][field] for one in rounds) for field in Way.__annotations__}
        times = {
            field: median(one[key][field] / one["one"][field] for one in rounds) for field in ("images_per_s", "cpu_ms")
        }
        lines.append(
            f"| {name} | {middle['images_per_s']:.1f} | {times['images_per_s']:.2f} | {middle['cpu_ms']:.1f} | "
            f"{times['cpu_ms']:.2f} | {middle['memory_mb']:,.0f} | {middle['start_s']:.1f} |"
        )
    load = result["load_before"]
    other = "" if load <= QUIET_LOAD else ": other work took part of the machine, and rates and times are not its own"
    lines += [
        "",
        f"{result['bundle']}, a generated 640 x 427 JPEG of 155 KB; {result['cpus']} cores of {result['cpu']} "
        f"({result['instructions']}), load before {load}{other}. Medians of {len(rounds)} interleaved rounds of "
        f"{result['images']} files, and of {result['seconds']:g} s of `POST /classify` on {result['connections']} "
        "connections, whose load generator shares the cores. CPU and memory (PSS) are of all processes: Ray's own and "
        f"nginx too. Ray {result['packages']['ray']}; `python -m tests.bench.scale`.",
    ]
    return "\n".join(lines)


def to_json(result: dict[str, Any]) -> str:
    return json.dumps({"format": 1, **result}, indent=1) + "\n"
