"""The scale bench: real runs on a tiny bundle, and the table's arithmetic by hand."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import photos, scale, scale_table
from tests.bench.processes import BenchError
from tests.replicas import proxies
from tests.service import tiny


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """200 photographs, and a tiny bundle in the place of the real one."""
    monkeypatch.setattr(scale, "BUNDLE", tiny.write(tmp_path / "tiny" / "1"))
    found = tmp_path / "photos"
    found.mkdir()
    for i in range(200):
        (found / f"{i:03}.jpg").write_bytes(photos.photo().data)
    return found


def test_a_folder_is_scored_and_its_whole_process_counted(folder: Path) -> None:
    way = scale.scored(folder, 200, "--threads", "1", "--batch-images", "8")
    assert 0 < way.start_s < way.whole_s
    assert way.images_per_s > 200 / way.whole_s  # without the start
    assert way.cpu_ms > 1  # a 640 x 427 JPEG is decoded
    assert way.memory_mb > 30


def test_what_fails_or_is_too_short_is_no_figure(folder: Path) -> None:
    with pytest.raises(BenchError, match=r"ended with 2: (.|\n)*--no-such"):
        scale.scored(folder, 200, "--no-such")
    with pytest.raises(BenchError, match="too few: give more --images"):
        scale.scored(folder, 200, "--batch-images", "200")


@pytest.mark.skipif(proxies.missing("nginx") is not None, reason=proxies.missing("nginx") or "")
def test_three_replicas_answer_behind_nginx(folder: Path) -> None:
    way = scale.replicas(1.0)
    assert way.images_per_s > 1
    assert way.cpu_ms > 1
    assert way.memory_mb > 100  # of three services


def test_memory_is_that_of_the_whole_tree_at_its_peak() -> None:
    hungry = "import time; held = bytearray(b'x') * 150_000_000; time.sleep(1); del held; time.sleep(1)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hungry!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent])
    with scale.Peak(process.pid) as peak:
        process.wait()
    assert 150e6 < peak.bytes < 300e6


def test_the_table_has_medians_and_ratios_of_the_same_round() -> None:
    def made(rate: float) -> dict[str, dict[str, float]]:
        one = {"images_per_s": rate, "cpu_ms": 10.0, "memory_mb": 100.0, "start_s": 2.0, "whole_s": 9.0}
        ray = {"images_per_s": 2 * rate, "cpu_ms": 15.0, "memory_mb": 1500.0, "start_s": 8.0, "whole_s": 9.0}
        return {"one": one, "all": one, "ray": ray, "replicas": one}

    result = {"rounds": [made(10), made(20), made(90)], "load_before": 0.2, "bundle": "b", "cpus": 2, "cpu": "c",
              "instructions": "AVX2", "images": 5, "seconds": 3.0, "connections": 12,
              "packages": {"ray": "2"}}  # fmt: skip
    lines = scale_table.markdown(result).splitlines()
    assert lines[2] == "| `score`, one thread | 20.0 | 1.00 | 10.0 | 1.00 | 100 | 2.0 |"
    assert lines[4] == "| `score --on ray`, the same cores | 40.0 | 2.00 | 15.0 | 1.50 | 1,500 | 8.0 |"
    assert "other work" not in lines[-1]
    assert "other work took part" in scale_table.markdown(result | {"load_before": 3.0})


def test_the_instructions_are_read_from_the_flags(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("model name : x\nflags\t\t: fpu avx2 avx512f avx512_vnni\n")
    assert scale_table.instructions(info) == "AVX2, AVX-512, VNNI"
    info.write_text("flags : fpu sse2\n")
    assert scale_table.instructions(info) == scale_table.instructions(tmp_path / "none") == "no AVX2"
