"""docker/keys.py: keys that the service takes, made once, and shown only when asked for."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from service.settings import Settings
from service.web.access import Keys
from service.web.keys_file import ALL_ROLES, USUAL_ROLES
from tests.containers.files import ROOT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for reader in ("service", "people", "prometheus", "grafana"):
        (tmp_path / reader).mkdir()
    return tmp_path


def keys(folder: Path, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "docker/keys.py"), *arguments]
    done = subprocess.run(command, env=os.environ | {"KEYS": str(folder)}, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def test_making_keys_prints_none_and_the_service_takes_them(folder: Path) -> None:
    assert keys(folder) == ""
    found = Keys(Settings(keys_file=folder / "service/keys.toml"))
    who = {
        path: found.identify((folder / path).read_bytes())
        for path in ("people/client_key", "people/admin_key", "prometheus/metrics_key")
    }
    assert {path: (key.name, key.roles) for path, key in who.items() if key is not None} == {
        "people/client_key": ("client", USUAL_ROLES),
        "people/admin_key": ("admin", ALL_ROLES),
        "prometheus/metrics_key": ("prometheus", {"metrics"}),
    }


def test_the_service_is_handed_digests_only(folder: Path) -> None:
    keys(folder)
    handed = (folder / "service/keys.toml").read_text()
    for path in ("people/client_key", "people/admin_key", "prometheus/metrics_key"):
        assert (folder / path).read_text() not in handed


def test_a_second_start_changes_nothing(folder: Path) -> None:
    keys(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    keys(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert len(before) == 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in before} == {0o444}


def test_a_start_that_was_cut_off_is_made_good(folder: Path) -> None:
    keys(folder)
    (folder / "service/keys.toml").unlink()  # it is written last
    keys(folder)
    found = Keys(Settings(keys_file=folder / "service/keys.toml"))
    key = found.identify((folder / "people/client_key").read_bytes())
    assert key is not None
    assert key.name == "client"


def test_show_prints_what_people_need(folder: Path) -> None:
    shown = keys(folder, "show")
    for path in ("people/client_key", "people/admin_key", "grafana/grafana_password"):
        assert (folder / path).read_text() in shown
    assert (folder / "prometheus/metrics_key").read_text() not in shown
    assert re.search(r"^grafana_password \(user admin\): \S{32}$", shown, re.MULTILINE)
