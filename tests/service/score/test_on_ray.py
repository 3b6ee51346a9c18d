"""`score --on ray` on a real local cluster: the rows of one machine, whatever is killed."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from service.contract.cluster import ClusterError
from service.score.errors import ScoreError
from service.score.on_ray import require_same
from tests.service import tiny
from tests.service.score.test_score import score

ROOT = Path(__file__).resolve().parents[3]
IMAGES = 3000
LIMIT_S = 240.0
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (ray[data])")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many links to three images, one file that is none, one whose name is no UTF-8, one link to nothing."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "of").mkdir()
    for i, colour in enumerate(((220, 30, 30), (10, 200, 20), (128, 128, 128))):
        (folder / "of" / f"{i}.png").write_bytes(tiny.photo(colour))
    (folder / "all").mkdir()
    for i in range(IMAGES):
        (folder / "all" / f"{i:04}.png").symlink_to(folder / "of" / f"{i % 3}.png")
    (folder / "all" / "0005b.png").write_bytes(b"no image")
    os.symlink(folder / "of" / "1.png", os.fsencode(folder / "all") + b"/0007\xff.png")
    (folder / "all" / "0009b.png").symlink_to(folder / "nothing.png")
    return folder / "all"


def command(photos: Path, out: Path, bundle: Path) -> list[str]:
    return [sys.executable, "-m", "service", "score", str(photos), "--all-files", "--out", str(out), "--bundle",
            str(bundle), "--on", "ray", "--threads", "2", "--batch-images", "4"]  # fmt: skip


def run(given: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(given, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip


def workers(actor: str = "Scoring") -> list[int]:
    """Process ids of the actors of this class, whoever has started them."""
    found = []
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if status.read_bytes().startswith(f"ray::MapWorker(Map({actor}))".encode()):
                found.append(int(status.parent.name))
        except OSError:
            continue  # it has ended
    return found


def wait_for_rows(partial: Path, process: subprocess.Popen[str], rows: int) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not partial.exists() or partial.read_bytes().count(b"\n") <= rows:
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(process.communicate()[1])
        time.sleep(0.05)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


@needs_ray
@pytest.mark.timeout(600)
def test_the_rows_of_one_machine_with_a_worker_and_then_the_driver_killed(
    photos: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    here = tmp_path / "here.jsonl"
    assert score(photos, "--all-files", "--out", here, "--bundle", tiny_bundle, "--batch-images", 4) == 0
    out = tmp_path / "ray.jsonl"
    partial = out.with_name("ray.jsonl.partial")

    process = run(command(photos, out, tiny_bundle))
    wait_for_rows(partial, process, 200)
    killed = workers()
    assert len(killed) == 2
    os.kill(killed[0], signal.SIGKILL)
    wait_for_rows(partial, process, partial.read_bytes().count(b"\n") + 400)
    assert killed[0] not in workers()
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C in a terminal reaches every process that the command has started
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 128 + signal.SIGINT, errors
    assert len(errors.splitlines()) < 10, errors
    assert workers() == []
    assert list(Path("/tmp/ray").glob(f"session_*_{process.pid}")) == []
    kept = partial.read_bytes().count(b"\n")
    assert kept > 600

    process = run(command(photos, out, tiny_bundle))
    said, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    assert "of 3003 images are in" in errors
    assert "on Ray" in said
    assert out.read_bytes() == here.read_bytes()
    assert not partial.exists()
    failed = {row["error"] for row in rows(out) if row["error"]}
    assert failed == {"unsupported-media", "not-found"}


def test_a_node_with_other_files_is_refused_by_name(tmp_path: Path) -> None:
    """Its rows would be those of other pictures, or say that there are none, and be kept."""
    path, gone = str(tmp_path / "a.jpg"), str(tmp_path / "gone.jpg")
    Path(path).write_bytes(b"1234")
    require_same([path, gone, "s3://bucket/a.jpg"], [4, None, None], "node-2")
    require_same([gone], [7], "node-2")  # only the workers see that place
    with pytest.raises(ScoreError, match=r"a\.jpg has 4 bytes here, and node-2, .* sees no such file: put the same"):
        require_same([path], [None], "node-2")
    with pytest.raises(ScoreError, match="sees one of 5 bytes"):
        require_same([path], [5], "node-2")


def test_without_ray_nothing_is_begun(
    photos: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"pip install 'tailguard\[ray\]'"):
        score(photos, "--out", tmp_path / "a.csv", "--bundle", tiny_bundle, "--on", "ray")
    assert list(tmp_path.iterdir()) == []
