"""fp16: half the file, the trunk alone, hardly a decision changed; auto: int8 where it can be, else fp32, said."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from service.contract import bundle
from service.inference.engine import Engine
from tests.training import tiny
from tests.training.network.test_frozen import config
from tests.training.network.test_quantized import SIDE, Attention, Body, graph_of, pictures
from training import finished, table, trainer
from training.evaluation import predict
from training.evaluation.cross_fit import NAMED
from training.export import bundle as export
from training.export import precision
from training.export.half import HalfError, halved
from training.export.precision import at_precision, compare, require_precision
from training.network.onnx_graph import chained, exported
from training.network.preprocessing import BackboneError


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with tiny.quick_export(200):
        yield


# ------------------------------------------------------------------------------------------------ what becomes fp16


def test_what_stands_in_front_of_a_chain_is_in_fp16_and_rounded_once() -> None:
    """Logits of the head are those of features rounded by the trunk, with nothing rounded after it."""
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 3)
    back = exported(head, torch.zeros(2, 8), takes="trunk_features", gives=["logits"])
    made = onnx.load_from_string(halved(chained(graph_of(Attention()), back, "features", "trunk_features")))
    assert {n.op_type for n in made.graph.node} >= {"Conv", "MatMul", "Gemm"}
    casts = [n for n in made.graph.node if n.op_type == "Cast" and n.attribute[0].i == TensorProto.FLOAT]
    assert len(casts) == 1
    with pytest.raises(HalfError, match="no convolution and no backbone"):
        halved(back)


# ---------------------------------------------------------------------------------------------------- auto, refusals


def test_a_trunk_beyond_the_range_of_fp16_is_refused() -> None:
    values = np.array([1.0, np.nan], np.float32)
    with pytest.raises(export.ExportError, match="in fp16 the graph gives values that are not finite"):
        export.require_finite(predict.Outputs(np.ones((2, 3), np.float32), {"msp": values}), "fp16")
    export.require_finite(predict.Outputs(np.ones((2, 3), np.float32), {"msp": values[:1]}), "fp16")


class Pixels:
    """As much of Data as the choice of a precision needs."""

    def __init__(self) -> None:
        self.train = type("Train", (), {"images": pictures(64)})


def test_auto_is_int8_where_it_can_be_and_else_fp32_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    pixels: Any = Pixels()
    transformer = graph_of(Attention())
    assert at_precision(transformer, "auto", pixels, None) == (transformer, "fp32")
    assert "exported in fp32, because int8 is for convolutional networks" in capsys.readouterr().err
    with pytest.raises(BackboneError, match="int8 is for convolutional networks"):
        at_precision(transformer, "int8", pixels, None)
    assert at_precision(transformer, "fp16", pixels, None)[1] == "fp16"
    assert "gains on a GPU only" in capsys.readouterr().err
    require_precision("fp16", None)


def test_a_change_of_precision_is_measured_on_the_sets_that_both_have_seen() -> None:
    """Beside a set that came after the calibration, int8 on it would be called a change of int8."""
    a, other = {"images": 9, "auroc": 0.9, "fpr95": 0.3}, {"images": 5, "auroc": 0.5, "fpr95": 0.9}
    full = {"accuracy": 0.8, "ood": {"a": a}, "mean": a}
    made = {
        "accuracy": 0.79, "ood": {"a": a | {"auroc": 0.89, "fpr95": 0.33}, "b": other},
        "mean": {"auroc": 0.695, "fpr95": 0.615},
    }  # fmt: skip
    found = compare(full, made, 0.02)
    assert found == pytest.approx({"accuracy": -0.01, "auroc": -0.01, "fpr95": 0.03, "decisions_changed": 0.02})
    both = full | {"ood": {"a": a, "b": other}}
    assert compare(both, made, 0.02)["auroc"] == pytest.approx(-0.005)
    # cross-fitted figures are of heads that no graph holds: they cannot change with its precision
    crossed = made | {"figures": NAMED}
    assert compare(crossed, crossed, 0.02) == {"decisions_changed": 0.02}
    for none in ({}, {"ood": {"b": other | {"images": 6}}}, {"ood": {}}):  # of another size: another set of that name
        assert set(compare({"accuracy": 0.8} | none, made, 0.02)) == {"accuracy", "decisions_changed"}


# ------------------------------------------------------------------------------------------------------ a served run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated run on a frozen extractor of a few convolutions."""
    folder = tmp_path_factory.mktemp("frozen")
    torch.manual_seed(0)
    (folder / "own.onnx").write_bytes(exported(Body(), torch.zeros(2, 3, SIDE, SIDE), takes="x", gives=["features"]))
    given = config(folder / "own.onnx", method="msp", epochs=8, backbone_mean=(0.5,) * 3, backbone_std=(0.25,) * 3)
    made = trainer.train(given, folder / "run")
    finished.Calibrate(run=made).cli_cmd()
    return made


def test_fp16_is_served_and_the_card_says_what_it_changed(run: Path, tmp_path: Path) -> None:
    finished.Export(run=run, out=tmp_path, name="half", precision="fp16").cli_cmd()
    folder = tmp_path / "half" / "1"
    manifest = bundle.read(folder)
    assert manifest.precision == "fp16"
    assert manifest.evaluation["parity"]["fp16_against_onnx_decisions_changed"] < 0.05  # of a random trunk
    answers = Engine(folder, manifest).run(pictures(4))  # which checks the golden examples
    assert answers.probabilities.dtype == np.float32
    card = (folder / "CARD.md").read_text()
    for said in (
        "## fp16 against fp32", "## Pretrained backbone", "| precision | fp16, what follows it fp32 |",
        "| use | frozen: a head was trained on its features |", f"| input | {SIDE} x {SIDE} pixels, ",
        "What the weights were trained on is not recorded",
    ):  # fmt: skip
        assert said in card


def test_int8_that_decides_otherwise_is_not_taken(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges taken from one grey leave out what photographs give: auto exports fp32 and says why, int8 is refused."""
    monkeypatch.setattr(precision, "quantization_sample", lambda images: np.full((4, SIDE, SIDE, 3), 127, np.uint8))
    with pytest.raises(export.ExportError, match=r"int8 would change \d+\.\d% of the decisions .*--precision fp32, or"):
        finished.Export(run=run, out=tmp_path, name="grey", precision="int8").cli_cmd()
    assert not (tmp_path / "grey").exists()
    finished.Export(run=run, out=tmp_path, name="grey").cli_cmd()
    assert "exported in fp32, because int8 would change" in capsys.readouterr().err
    manifest = bundle.read(tmp_path / "grey" / "1")
    assert manifest.precision == "fp32"
    assert manifest.evaluation["parity"]["int8_against_onnx_decisions_changed"] > precision.MOST_MOVED
    assert "int8 against fp32" not in (tmp_path / "grey" / "1" / "CARD.md").read_text()


def test_pareto_compares_runs_on_frozen_backbones(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table.Pareto(runs=[run], out=tmp_path / "pareto.json").cli_cmd()
    (row,) = json.loads((tmp_path / "pareto.json").read_text())
    assert row["trunk"].endswith("own.onnx")
    assert row["precision"] == "int8"
    assert row["ms_per_image"] > 0
    assert row["bytes"] > 0
    assert 0 <= row["decisions_changed_by_precision"] < 0.2
    assert "own.onnx" in capsys.readouterr().out
