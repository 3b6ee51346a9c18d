"""The measurements that a person starts by hand: each runs once, small, so that none stops working unseen."""

import importlib
import sys
from pathlib import Path

import pytest

from tests.bench.keeping import picture
from tests.service import tiny


def run(name: str, given: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", [name, *given])
    importlib.import_module(f"tests.bench.{name}").main()
    return capsys.readouterr().out


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, path in (("ON_THE_PATH", "keeping"), ("AT_ONCE", "ledger")):
        monkeypatch.setattr(importlib.import_module(f"tests.bench.{path}"), name, 50)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("keeping", ["--rows", "1000", "--images", "100"], "| kept, dropped, failed | 100 0 0 |"),
        ("ledger", ["--rows", "1000"], "| rows dropped; attempts that failed | 0; 0 |"),
        ("grouping", ["--images", "300", "--dimensions", "8", "--classes", "3"], "300 images of 3 classes"),
    ],
)
def test_ledger_store_and_groups(
    name: str, given: list[str], expected: str, small: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert expected in run(name, given, monkeypatch, capsys)


def test_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(picture(0))
    given = [str(tiny.write(tmp_path / "1")), "--photo", str(photo), "--rounds", "5"]
    shown = run("asked", given, monkeypatch, capsys)
    assert "nothing" in shown
    assert "embedding: " in shown  # which this bundle has not: the reason is printed, and the rest measured
