"""Markdown tables of speed and of the hard tests, from the JSON that the measurements wrote."""

from typing import Any

from tests.bench.load import SHED

# What each hard test does, for the short table; tests/hard has one module for each.
ABUSE = {
    "saturated-health": "health checks while every CPU is busy",
    "256-connections": "256 connections that never pause",
    "300-mib-bodies": "bodies of 300 MiB",
    "slow-clients": "300 clients that send slowly or nothing",
    "bombs": "images of up to 1.6 gigapixels",
    "term": "TERM with requests in flight",
    "kill": "KILL",
    "swaps": "100 swaps of the bundle under load",
    "soak": "50,000 good, bad and oversized requests",
    "cancel-storm": "2,000 clients that leave early",
}


def bench(service: dict[str, Any], resnet: dict[str, Any], framework: dict[str, Any]) -> str:
    """The levels of `python -m tests.bench` on two bundles, and `--framework`."""
    lines = [
        "| bundle | connections | req/s | p50 ms | p90 ms | p99 ms | refused/s | CPU-ms/request | CPU : limit | "
        "health p99 ms |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, report in (("embedded (int8, 32 px)", service), ("ResNet-18 (fp32, 224 px)", resnet)):
        lines += [_level(name, level) for level in report["levels"] if level["image"] == "640x427"]
    limits = [limit for report in (service, resnet) for limit in report["limits"] if limit["image"] == "640x427"]
    environment = service["environment"]
    lines += [
        "",
        f"{environment['cpus']} cores of {environment['cpu']}, which the load generator shares. A 640 x 427 JPEG of "
        "155 KB. *CPU : limit* compares the service's CPU per answered request with threads that only decode and run "
        f"the graph in a loop ({limits[0]['cpu_ms']:.2f} and {limits[1]['cpu_ms']:.1f} ms an image); refusing costs "
        "CPU too, so it rises at 256.",
        "",
        "| CPU-ms per request of the service itself (decoding and model are no-ops) | raw body | form |",
        "|---|---:|---:|",
    ]
    shares: dict[str, dict[str, float]] = {}
    for level in framework["framework"]:
        shares.setdefault(level["image"], {})[level["body"]] = level["cpu_ms"]
    lines += [f"| {image} | {share['raw']:.2f} | {share['form']:.2f} |" for image, share in shares.items()]
    return "\n".join(lines)


def hard(results: dict[str, Any]) -> str:
    """One line per hard test, as `python -m tests.hard.run` prints them."""
    lines = ["| test | passed | figures |", "|---|---|---|"]
    for name, test in results["tests"].items():
        lines.append(f"| {name} | {'yes' if test['passed'] else 'no'} | {'; '.join(test['figures'])} |")
    return "\n".join(lines)


def _level(name: str, level: dict[str, Any]) -> str:
    tally = level["tally"]
    cells = [
        name, str(level["connections"]), f"{level['req_s']:,.0f}",
        *(f"{tally[f'p{p}_ms']:.1f}" for p in (50, 90, 99)),
        f"{_refused_per_s(tally):,.0f}",
        f"{level['cpu_ms']:.2f}", f"{level['limit_cpu_ratio']:.2f}", f"{level['health_p99_ms']:.1f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def in_short(service: dict[str, Any]) -> str:
    """The embedded bundle alone, by number of connections."""
    lines = ["| connections | req/s | p50 ms | p99 ms | refused/s | CPU-ms/request |", "|---:" * 6 + "|"]
    for level in service["levels"]:
        if level["image"] == "640x427":
            tally = level["tally"]
            lines.append(
                f"| {level['connections']} | {level['req_s']:,.0f} | {tally['p50_ms']:.1f} | {tally['p99_ms']:.1f} | "
                f"{_refused_per_s(tally):,.0f} | {level['cpu_ms']:.2f} |"
            )
    return "\n".join(lines)


def abuse(results: dict[str, Any]) -> str:
    """One line per hard test: what is done, and the first thing that was measured."""
    lines = ["| what is done | passed | what was measured |", "|---|---|---|"]
    for name, test in results["tests"].items():
        figure = test["figures"][0].split(" (CPUs")[0].split("; ")[0]
        lines.append(f"| {ABUSE[name]} | {'yes' if test['passed'] else 'no'} | {figure} |")
    return "\n".join(lines)


def _refused_per_s(tally: dict[str, Any]) -> float:
    return float(sum(tally["statuses"].get(str(status), 0) for status in SHED) / tally["seconds"])
