"""The comparison's table, what its virtual environments refuse, and the bundle it serves."""

import json
from pathlib import Path

import pytest

from service.contract import bundle, images
from service.inference.engine import Engine
from tests.bench import command, photos, report, resnet18
from tests.bench.limit import Limit
from tests.bench.peers import table, venvs
from tests.bench.test_bench import a_level


def test_peers_table_says_who_sheds_and_who_could_not_be_measured() -> None:
    few = json.loads(
        report.BenchReport({}, levels=[command.compared(a_level(), Limit("a", 2, 1, 200.0, 10.0, 2.0))]).to_json()
    )
    many = json.loads(report.BenchReport({}, levels=[a_level((("200", 300), ("500", 2)))]).to_json())
    row = {"version": "1.0", "unavailable": None, "at_8": few["levels"][0], "at_256": many["levels"][0]}
    missing = {"name": "B", "version": "", "unavailable": "it would bring a|b"}
    lines = table.markdown({"servers": [{"name": "A", **row}, missing]}).splitlines()
    assert lines[2] == "| A 1.0 | 150.0 | 1.0 | 3.0 | 1.10 | 150.0 | 3 | no, 2 failed | 0.5 | 99 |"
    assert lines[3].startswith("| B | not measured: it would bring a/b |")
    assert len({line.count("|") for line in lines}) == 1


def test_cuda_packages_are_told_from_others() -> None:
    names = ("nvidia-cublas-cu12", "nvidia-cudnn-cu13", "nvidia-cublas", "triton", "nvidia-ml-py", "torch", "numpy")
    assert [venvs.CUDA.fullmatch(name) is not None for name in names] == [True, True, True, True, False, False, False]


def test_resnet18_is_a_bundle_that_loads(tmp_path: Path) -> None:
    folder = resnet18.write(tmp_path / "resnet18" / "1")
    engine = Engine(folder, bundle.read(folder))  # compares with the golden example
    found = engine.run(images.load(photos.photo().data, engine.manifest.input, max_pixels=10**6).pixels[None])
    assert found.probabilities.shape == (1, resnet18.CLASSES)
    assert found.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert found.scores["msp"][0] == pytest.approx(1 - found.probabilities.max(), abs=1e-5)
