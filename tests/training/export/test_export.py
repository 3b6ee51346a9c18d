"""The graph contract, the refusal to ship what decides differently, and thresholds of the very graph that ships."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from service.contract import bundle
from service.contract.calibration.groups import group_classes
from tests.training.half import check_halved
from training import trainer
from training.config import Config
from training.data import loading
from training.evaluation import measure, predict
from training.export import bundle as export
from training.export import graph as graph_module
from training.runs import checkpoint
from training.runs.files import jsonable
from training.scores.scores import fitted

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[checkpoint.Run, loading.Data, dict[str, Any]]:
    """(run, data, calibration record) of a short two-pass run on the digits."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    config = Config(
        dataset="digits", imbalance=4, width=8, epochs=2, stage2_epochs=1, batch_images=32, stage2_batch_images=32,
        calibration_fraction=0.2, threads=1, device="cpu",
    )  # fmt: skip
    trainer.train(config, out)
    run, loaded = checkpoint.trained(out), loading.load(config)
    module = predict.torch_predict(predict.deployed(run, 1.3), CPU)
    measured = measure.measure(module, loaded, loaded.ood, score="msp", temperature=1.3, scope="group")
    return run, loaded, json.loads(json.dumps(jsonable({"score": "msp", "temperature": 1.3, **measured})))


@pytest.fixture(scope="module")
def shipped(prepared: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run, loaded, record = prepared
    out = tmp_path_factory.mktemp("models") / "digits" / "1"
    export.export(run, loaded, loaded.ood, record, out, precision="int8")
    return out


def test_the_graph_keeps_the_contract(shipped: Path) -> None:
    model = onnx.load(io.BytesIO((shipped / "model.onnx").read_bytes()))
    assert bundle.read(shipped).sha256 in (shipped / "CARD.md").read_text()
    (images,) = model.graph.input
    assert images.name == "images"
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    sizes = images.type.tensor_type.shape.dim
    assert sizes[0].dim_param
    assert [d.dim_value for d in sizes[1:]] == [16, 16, 3]
    assert [o.name for o in model.graph.output] == ["probabilities", *predict.ALWAYS, "embedding"]
    assert {n.op_type for n in model.graph.node} >= {"QuantizeLinear", "DequantizeLinear"}


@pytest.mark.parametrize("method", ["pascl", "pascl-abf", "pascl-abf-head"])
def test_onnx_gives_what_torch_gives_for_any_n(prepared: Any, method: str) -> None:
    run, loaded, _ = prepared
    passes = {"pascl": 1, "pascl-abf": 2, "pascl-abf-head": 1}[method]
    classifying = run.scoring if method == "pascl" else run.classifying
    scores = {name: fitted(name, None, has_reject=False) for name in predict.ALWAYS}
    module = predict.Deployed(run.scoring, classifying, scores, passes=passes, temperature=1.3).eval()
    graph = graph_module.onnx_predict(graph_module.to_onnx(module, loaded.size_px))
    for n in (1, 7):
        one, two = predict.torch_predict(module, CPU)(loaded.test.images[:n]), graph(loaded.test.images[:n])
        np.testing.assert_allclose(one.probabilities, two.probabilities, atol=1e-5)
        np.testing.assert_allclose(one.probabilities.sum(axis=1), 1, atol=1e-5)
        for name in predict.ALWAYS:
            np.testing.assert_allclose(one.scores[name], two.scores[name], atol=1e-4)


def test_thresholds_are_those_of_the_very_graph_that_ships(prepared: Any, shipped: Path) -> None:
    _, loaded, _ = prepared
    manifest = bundle.read(shipped)
    graph = graph_module.onnx_predict((shipped / "model.onnx").read_bytes())
    out = graph(loaded.calibration.images)
    scores = out.scores["msp"].astype(np.float64)
    refused = scores > manifest.operating_points["id95"].threshold
    assert refused.sum() == len(scores) - -(-95 * (len(scores) + 1) // 100)  # all but the ⌈.95·(n + 1)⌉ smallest
    assert manifest.calibration.id_scores == tuple(sorted(float(s) for s in out.scores["msp"]))
    groups = group_classes(loaded.train.counts + loaded.calibration.counts)
    assert [c.group for c in manifest.classes] == groups.of_class.tolist()
    assert manifest.groups == groups.groups
    assert manifest.format == 2
    test = graph(loaded.test.images)
    assert manifest.evaluation["accuracy"] == pytest.approx((test.predictions == loaded.test.labels).mean())
    assert set(manifest.evaluation["int8_against_fp32"]) == {"accuracy", "auroc", "fpr95", "decisions_changed"}


def test_decisions_that_differ_are_refused_and_nothing_is_written(
    prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, loaded, record = prepared
    honest = export.onnx_predict

    def lying(graph: bytes, *rest: Any, **options: Any) -> predict.Predict:
        def wrong(images: Any) -> predict.Outputs:
            out = honest(graph, *rest, **options)(images)
            swapped = out.probabilities.copy()
            swapped[:5] = np.roll(swapped[:5], 1, axis=1)  # 5 of 2,000 classes change: 0.25%
            return predict.Outputs(swapped, out.scores)

        return wrong

    monkeypatch.setattr(export, "onnx_predict", lying)
    with pytest.raises(export.ExportError, match=r"0\.25% of 2000 images"):
        export.export(run, loaded, loaded.ood, record, tmp_path / "m" / "1", precision="fp32")
    assert list(tmp_path.iterdir()) == []


def test_a_version_is_never_overwritten(prepared: Any, shipped: Path) -> None:
    run, loaded, record = prepared
    before = (shipped / "manifest.json").read_bytes()
    with pytest.raises(export.ExportError, match="exists already"):
        export.export(run, loaded, loaded.ood, record, shipped, precision="fp32")
    assert (shipped / "manifest.json").read_bytes() == before


def test_more_scores_stand_in_the_graph_fitted_on_training_images(prepared: Any, tmp_path: Path) -> None:
    run, loaded, record = prepared
    more, out = ["vim", "knn", "rmds-pp", "fdbd", "react", "nci"], tmp_path / "digits" / "2"
    manifest = export.export(run, loaded, loaded.ood, record, out, precision="fp32", scores=more)
    assert list(manifest.scores) == ["energy", "msp", *more]
    assert manifest.deciding_score == "msp"
    served = graph_module.onnx_predict((out / "model.onnx").read_bytes())(loaded.test.images[:50])
    module = predict.deployed(run, 1.3, scores=["msp", *more], train=loaded.train)
    expected = predict.torch_predict(module, CPU)(loaded.test.images[:50])
    for name in manifest.scores:
        np.testing.assert_allclose(served.scores[name], expected.scores[name], rtol=1e-3, atol=1e-3)
        assert np.ptp(served.scores[name]) > 0
    with pytest.raises(ValueError, match="There is no score 'vym'"):
        predict.deployed(run, scores=["vym"])
    the_trunk_alone_is_in_fp16((out / "model.onnx").read_bytes(), run, loaded.test.images[:50])


def the_trunk_alone_is_in_fp16(graph: bytes, run: checkpoint.Run, images: Any) -> None:
    trunks = [network.trunk for network in (run.scoring, run.classifying)[: run.passes]]
    weights = sum(p.numel() for trunk in trunks for name, p in trunk.named_parameters() if p.ndim == 4)
    model = onnx.load_from_string(check_halved(graph, images, weights))
    kinds = {i.name: i.data_type for i in model.graph.initializer}
    convolutions = [n for n in model.graph.node if n.op_type == "Conv"]
    assert len(convolutions) > 15
    assert {kinds[n.input[1]] for n in convolutions} == {onnx.TensorProto.FLOAT16}
    heads = [n for n in model.graph.node if n.op_type == "Gemm"]
    assert onnx.TensorProto.FLOAT16 not in {kinds.get(name) for head in heads for name in head.input}
