"""The real steps: their commands parse, their figures are right by hand, and the rehearsal runs."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic_settings import CliApp

from service.inference import providers
from service.settings.places import ROOT
from tests.bench import __main__ as bench
from tests.gpu import __main__ as check
from tests.gpu import extraction, figures, found, graph, weights
from tests.gpu.step import LIMIT_S, Command, Given, Json, output, write
from tests.gpu.steps import STEPS
from tests.service import tiny
from training import __main__ as training
from training import tables

PARSERS: dict[str, Callable[[list[str]], Any]] = {
    "tests.bench": bench.parse, "tests.gpu.graph": graph.parse, "tests.gpu.extraction": extraction.parse,
    "tests.gpu.weights": weights.parse,
}  # fmt: skip
DATA = ("cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/test_batch", "cifar-100-python/train",
        "cifar-100-python/test", "outliers/some.npy", "ood/textures.npy")  # fmt: skip


@pytest.fixture
def given(tmp_path: Path) -> Given:
    """On a GPU, with all data."""
    for name in DATA:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return Given(tmp_path / "out", data=tmp_path / "data")


def parsed(command: Command, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The arguments as the command itself reads them; those it does not know end the test."""
    module, arguments = command.argv[2], command.argv[3:]
    if module != "training":
        return PARSERS[module](arguments)
    monkeypatch.setattr(training.Command, "cli_cmd", lambda self: None)
    return CliApp.run(training.Command, arguments)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_what_no_rehearsal_runs_is_understood_by_the_commands(
    step: Any, given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [command.name for command in step.commands(given, given.work(step.name))]
    assert len(set(names)) == len(names)
    for command in step.commands(given, given.work(step.name)):
        assert command.argv[:2] == [sys.executable, "-m"]
        if command.argv[2] != "tests.bench.resnet18":
            parsed(command, monkeypatch)


def test_the_recipe_is_the_full_one(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    step = next(step for step in STEPS if step.name == "cifar10-oe-pascl-abf")
    table = parsed(step.commands(given, given.work(step.name))[0], monkeypatch).table
    assert (table.budget, table.methods, table.at_once, table.device) == ("full", ["oe", "pascl-abf"], 2, "cuda")
    jobs = table._jobs(tables.find("comparison"), 100.0, table.methods)
    assert [job.config.method for job in jobs] == ["oe", "pascl", "pascl-abf"]  # the last takes the stage 1 before it
    assert {(j.config.width, j.config.epochs, j.config.batch_images, j.config.imbalance) for j in jobs} == {
        (64, 200, 256, 100)
    }
    everything = table._jobs(tables.find("comparison"), 100.0)
    assert {job.folder for job in jobs} < {job.folder for job in everything}  # any other table finds these runs


def test_order_of_worth_begins_with_what_is_short() -> None:
    names = [step.name for step in STEPS]
    assert names[0] == "service-fp16"
    assert names.index("cifar10-oe-pascl-abf") < names.index("cifar10-msp-tailguard") < names.index(
        "cifar100-oe-pascl-abf"
    )  # fmt: skip
    assert len(set(names)) == len(names)


def test_what_is_missing_can_be_said_without_torch_and_onnxruntime() -> None:
    code = "import sys; from tests.gpu import __main__; print(sorted({'torch', 'onnxruntime'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- Figures ----


def said(work: Path, command: str, found: Json) -> None:
    write(output(work, command), f"a line before\n{json.dumps(found)}\n")


GRAPH = {"alone": {"1": 50.0, "2": 200.0}, "bound": {"1": 45.0, "2": 170.0}, "plain": {"1": 40.0, "2": 100.0},
         "bound_share": {"1": 0.9, "2": 0.85}}  # fmt: skip


def test_the_service_as_shares_of_the_graph_alone(given: Given, tmp_path: Path) -> None:
    said(tmp_path, "graph-fp16", GRAPH)
    said(tmp_path, "graph-fp32", GRAPH | {"alone": {"1": 100.0}})
    level: Json = {"image": "640x427", "tally": {"p99_ms": 9.0}, "connections": 8, "req_s": 100.0}
    load = {"levels": [level, level | {"req_s": 160.0, "connections": 64}],
            "limits": [{"image": "640x427", "images_per_s": 320.0}]}  # fmt: skip
    (tmp_path / "load-fp16.json").write_text(json.dumps(load))
    measured = figures.service(given, tmp_path)
    assert measured["graph alone, images/s"] == 200
    assert measured["batches from the host over IO binding : graph alone"] == 0.85
    assert measured["IO binding : plain session"] == 1.7
    assert measured["service, 640x427 JPEG : graph alone"] == 0.8
    assert measured["service, 640x427 JPEG : decoding and graph in a bare loop"] == 0.5
    assert measured["service, 640x427 JPEG, p99 ms at 64 connections"] == 9.0
    assert measured["fp16 : fp32, graph alone"] == 2.0


def test_extraction_says_what_its_weights_are_worth(given: Given, tmp_path: Path) -> None:
    said(tmp_path, "weights", {"file": "x", "source": weights.RANDOM})
    said(tmp_path, "extraction", {"fp16": GRAPH, "fp32": GRAPH, "fed": 100.0, "product": 20.0})
    measured = figures.extraction(given, tmp_path)
    assert measured["weights"] == "random weights: speed only, no accuracy"
    assert measured["photographs : graph alone, fp16"] == 0.5
    assert measured["photographs into the fp16 graph : extraction by train"] == 5.0


@pytest.mark.parametrize(("source", "shown"), [(weights.RANDOM, False), ("vit.pth, sha256 12", True)])
def test_accuracy_is_shown_of_trained_weights_alone(given: Given, tmp_path: Path, source: str, shown: bool) -> None:
    said(tmp_path, "weights", {"file": "x", "source": source})
    said(tmp_path, "graph-fp16", GRAPH)
    (tmp_path / "load-fp16.json").write_text(json.dumps({"levels": [], "limits": []}))
    (tmp_path / "log.txt").write_text("stage1: 10%| images_s=90]\rstage1: 20%| images_s=123]")
    (tmp_path / "run").mkdir()
    results = {"accuracy": 0.9, "group_accuracy": {"few": 0.8}}
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    measured = figures.fine_tuning(given, tmp_path)
    assert measured["training, images/s (the last shown)"] == 123
    assert measured.get("accuracy on test images") == (0.9 if shown else None)
    assert measured.get("accuracy, few") == (0.8 if shown else None)
    assert measured["fp16 bundle: graph alone, images/s"] == 200


def test_the_time_of_the_recipe_by_hand(given: Given, tmp_path: Path) -> None:
    said(tmp_path, "alone", {"trainer_images_s": 10_000.0, "ratio": 0.9, "precision": "bf16"})
    said(tmp_path, "together-2", {"at_once": 2, "gain": 1.5})
    said(tmp_path, "together-4", {"at_once": 4, "gain": 1.25})
    measured = figures.at_once(given, tmp_path)
    assert (measured["2 runs at once : one"], measured["4 runs at once : one"]) == (1.5, 1.25)
    # 200 epochs of 44 steps: 2 x 256 images for MSP, 256 outliers more for the others
    seconds = {"msp": 200 * 44 * 512 / 1e4, "oe": 200 * 44 * 768 / 1e4}
    assert measured["estimate: msp on cifar10-LT alone, min"] == round(seconds["msp"] / 60, 1)
    assert measured["estimate: oe on cifar10-LT alone, min"] == round(seconds["oe"] / 60, 1)
    assert measured["estimate: calls for all four on cifar10-LT"] == 4  # 2478 s, of which 1.5 run in one second
    assert LIMIT_S == 540


def test_two_runs_are_trained_side_by_side_where_that_is_faster(given: Given) -> None:
    assert figures.worth_two(given)
    assert not figures.worth_two(Given(given.out, device="cpu"))
    for gain, worth in ((1.5, True), (1.0, False)):
        write(given.result("runs-at-once"), json.dumps({"measured": {"2 runs at once : one": gain}}))
        assert figures.worth_two(given) == worth


def test_a_table_gives_the_figures_of_its_own_rows(given: Given, tmp_path: Path) -> None:
    mean = {"auroc": 0.9, "aupr": 0.8, "fpr95": 0.3}
    for method in ("oe", "msp"):
        result = {"method": method, "seed": 0, "accuracy": 0.7, "mean": mean}
        write(tmp_path / "results" / f"{method}.json", json.dumps(result))
    measured = figures.comparison(("oe", "pascl-abf"))(given, tmp_path)
    assert measured == {"oe, accuracy (seed 0)": 0.7} | {f"oe, {k} (seed 0)": v for k, v in mean.items()}
    with pytest.raises(ValueError, match="no result of tailguard"):
        figures.comparison(("tailguard",))(given, tmp_path)


# ---- Measuring ----

OUTPUTS = {"probabilities": (3,), "energy": (), "msp": ()}


def test_a_graph_is_measured_alone_bound_and_plain() -> None:
    measured = graph.measure(tiny.graph(), "cpu", (8, 8, 3), OUTPUTS, 4, 0.03)
    assert all(set(measured[kind]) == {"1", "2", "4"} for kind in ("alone", "bound", "plain", "bound_share"))
    assert all(rate > 0 for kind in ("alone", "bound", "plain") for rate in measured[kind].values())
    assert measured["bound_share"]["4"] == pytest.approx(measured["bound"]["4"] / measured["alone"]["4"], abs=1e-3)


def test_a_run_alone_is_the_run_of_the_whole_batch() -> None:
    session = providers.session(tiny.graph(), "cpu")
    batch = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    binding = graph.resident(session, batch, OUTPUTS, "cpu")
    graph.run(session, binding)
    np.testing.assert_allclose(binding.get_outputs()[0].numpy(), tiny.reference(batch)[0], atol=1e-5)


@pytest.mark.skipif(not tiny.HAS_CUDA, reason="needs onnxruntime-gpu and a GPU")
def test_a_graph_on_cuda() -> None:
    measured = graph.measure(tiny.graph(), "cuda", (8, 8, 3), OUTPUTS, 4, 0.03)
    assert measured["alone"]["4"] > 0


def test_random_weights_say_so_and_fit_their_model(tmp_path: Path) -> None:
    if importlib.util.find_spec("timm") is None:
        pytest.skip("needs timm")
    from training.network import backbones

    made = weights.prepare("convnext_atto", tmp_path / "w.pth", None, 32, random=True)
    assert made == {"file": str(tmp_path / "w.pth"), "source": weights.RANDOM}
    assert backbones.load("convnext_atto", weights=tmp_path / "w.pth", size_px=32).features == 320
    given = weights.prepare("convnext_atto", tmp_path / "other.pth", tmp_path / "w.pth", 32, random=False)
    assert given["file"] == str(tmp_path / "w.pth")
    assert not (tmp_path / "other.pth").exists()
    assert given["source"].startswith("w.pth, sha256 ")


# ---- The rehearsal ----


def test_a_rehearsal_of_a_real_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--device", "cpu", "--small", "--out", str(tmp_path), "--steps", "service-fp16"]
    code = check.main(arguments)
    assert code == 0, (tmp_path / "work" / "service-fp16" / "log.txt").read_text()[-2000:]
    measured = Given(tmp_path).measured("service-fp16")
    assert measured["graph fp16"]["precision"] == "fp16"
    assert measured["graph fp32"]["precision"] == "fp32"
    assert measured["service, 640x427 JPEG, req/s"] > 0
    assert "A rehearsal: these figures mean nothing." in capsys.readouterr().out
    assert found.missing(Given(tmp_path, device="cpu", small=True), {"gpu", "cifar10"}) == {}
