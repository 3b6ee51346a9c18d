"""Progress in a log file and on a terminal, told by a clock of the test."""

import ast
import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from service.contract import progress
from service.contract.progress import Progress

ROOT = Path(__file__).resolve().parents[3]
LINE = re.compile(r"work: +\d+%\|.{10}\| \d+/1000 \[(\d:)?\d\d:\d\d<(\?|(\d:)?\d\d:\d\d), .+\]")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that tqdm sees, which the test puts forward."""
    monkeypatch.delenv(progress.EVERY, raising=False)
    monkeypatch.setattr(progress.tqdm, "monitor_interval", 0)  # its thread has another clock, and draws when it likes
    if progress.tqdm.monitor is not None:
        progress.tqdm.monitor.exit()
        progress.tqdm.monitor = None
    now = [1e9]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def work(clock: list[float], seconds: float, **more: Any) -> None:
    """A thousand steps in so many seconds, each with a refresh of what it measured."""
    with Progress(total=1000, desc="work", **more) as bar:
        for step in range(1000):
            clock[0] += seconds / 1000
            bar.update()
            bar.set_postfix(loss=step)


def said(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, *given: Any, **more: Any) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    work(*given, **more)
    return stream.getvalue()


def test_a_log_has_a_line_every_half_minute(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    text = said(monkeypatch, io.StringIO(), clock, 3600, dynamic_ncols=True, mininterval=1)
    lines = text.splitlines()
    assert "\r" not in text
    assert text.endswith("\n")
    assert 100 <= len(lines) <= 3600 / progress.EVERY_S + 2
    assert all(LINE.fullmatch(line) for line in lines), lines
    assert lines[0].startswith("work:   0%|")
    assert lines[-1].startswith("work: 100%|")
    assert lines[-1].endswith("loss=999]")
    middle = re.search(r"\[(\d\d):\d\d<(\d\d):", lines[len(lines) // 2])
    assert middle is not None
    assert 58 <= int(middle[1]) + int(middle[2]) <= 60  # minutes: what has passed, and the estimate


def test_iterated_too(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    for _ in Progress(range(1000), desc="work", leave=False, delay=1):
        clock[0] += 0.1
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4  # after 30, 60 and 90 s, and the last one
    assert all(LINE.fullmatch(line) for line in lines)
    assert lines[-1].startswith("work: 100%|")


@pytest.mark.parametrize("brief", [{"leave": False}, {"disable": None}, {"leave": False, "delay": 1}])
def test_short_work_beside_other_work_says_nothing(
    monkeypatch: pytest.MonkeyPatch, clock: list[float], brief: Any
) -> None:
    assert said(monkeypatch, io.StringIO(), clock, 29, **brief) == ""


def test_short_work_that_stays_has_its_beginning_and_its_end(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    lines = said(monkeypatch, io.StringIO(), clock, 3).splitlines()
    assert [line[:10] for line in lines] == ["work:   0%", "work: 100%"]


def test_nothing_where_it_is_switched_off(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    assert said(monkeypatch, io.StringIO(), clock, 3600, disable=True) == ""


def test_the_interval_is_tqdms_variable(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    monkeypatch.setenv(progress.EVERY, "360")
    assert len(said(monkeypatch, io.StringIO(), clock, 3600).splitlines()) in (11, 12)


def test_work_that_breaks_says_how_far_it_came(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    def broken() -> None:
        with Progress(total=1000, desc="work") as bar:
            bar.update(400)
            raise OSError("the disk")

    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    with pytest.raises(OSError, match="the disk"):
        broken()
    assert stream.getvalue().splitlines()[-1].startswith("work:  40%|")


def test_a_terminal_has_what_tqdm_shows(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    found = said(monkeypatch, Terminal(), clock, 60)
    clock[0] = 1e9
    monkeypatch.setattr(progress, "Progress", progress.tqdm)
    monkeypatch.setitem(work.__globals__, "Progress", progress.tqdm)
    assert found == said(monkeypatch, Terminal(), clock, 60)
    assert found.count("\r") > 500


def test_nothing_else_uses_tqdm() -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for side in ("service", "training")
        for path in (ROOT / side).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom | ast.Import)
        for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
        if name.split(".")[0] == "tqdm"
    }
    assert users == {"service/contract/progress.py"}
