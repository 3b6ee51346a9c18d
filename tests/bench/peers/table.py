"""The comparison as a markdown table, for the terminal and for the README."""

from typing import Any

from tests.bench.load import SHED


def markdown(results: dict[str, Any]) -> str:
    """The table of what `python -m tests.bench.peers --out` wrote; a peer that could not be measured says why."""
    head = (
        "| server | req/s | p50 ms | p99 ms | CPU : in-process | at 256: req/s | p99 ms | shed | health p50 ms | MB |"
    )
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *map(_row, results["servers"])])


def _row(server: dict[str, Any]) -> str:
    name = f"{server['name']} {server['version']}".strip()
    if server["unavailable"]:
        return f"| {name} | not measured: {server['unavailable'].replace('|', '/')} |" + " |" * 8
    few, many = server["at_8"], server["at_256"]
    cells = [
        _number(few["req_s"], 1),
        _number(few["tally"]["p50_ms"], 1),
        _number(few["tally"]["p99_ms"], 1),
        _number(few["limit_cpu_ratio"], 2),
        _number(many["req_s"], 1),
        _number(many["tally"]["p99_ms"], 0),
        _shed(many["tally"]),
        _number(many["health_p50_ms"], 1),
        _number(many["memory_mb"], 0),
    ]
    return f"| {name} | " + " | ".join(cells) + " |"


def _shed(tally: dict[str, Any]) -> str:
    """Whether it refused what was too much, and how many requests ended in another way than answered or refused."""
    shed = sum(tally["statuses"].get(str(status), 0) for status in SHED)
    failed = sum(tally["statuses"].values()) - tally["answered"] - shed + tally["connection_errors"]
    return ("yes" if shed else "no") + (f", {failed} failed" if failed else "")


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
