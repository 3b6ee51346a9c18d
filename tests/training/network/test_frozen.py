"""A frozen backbone from an ONNX file to a served answer: features in the place of images, every method on them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from service.contract import bundle
from service.contract.images import load as load_image
from service.inference.engine import Engine
from training import finished, trainer
from training.config import Config
from training.data import loading
from training.data.readers import DataError
from training.methods.methods import METHODS, build_network
from training.network import frozen
from training.network.network import CosineHead, FeatureTrunk
from training.runs import checkpoint

FEATURES = 48


def write_extractor(path: Path) -> None:
    """16 x 16 pixels of each colour in 4 x 4 means: enough for a head to tell digits apart."""
    graph = helper.make_graph(
        [
            helper.make_node("AveragePool", ["x"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4]),
            helper.make_node("Flatten", ["pooled"], ["features"], axis=1),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", FEATURES])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"mean": "0.5,0.5,0.5", "std": "0.25,0.25,0.25"})
    onnx.save(model, path)


@pytest.fixture(scope="module")
def extractor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backbone") / "means.onnx"
    write_extractor(path)
    return path


def config(extractor: Path, **settings: Any) -> Config:
    base: dict[str, Any] = {
        "dataset": "digits", "imbalance": 10, "calibration_fraction": 0.2, "batch_images": 32,
        "stage2_batch_images": 32, "stage2_epochs": 3, "backbone": f"onnx:{extractor}", "threads": 1, "device": "cpu",
    }  # fmt: skip
    return Config(**base | settings)


def test_defaults_are_those_of_a_frozen_backbone(extractor: Path) -> None:
    assert config(extractor).frozen
    assert config(extractor).learning_rate == 0.01
    assert config(extractor, learning_rate=0.5).learning_rate == 0.5
    assert not Config(dataset="digits").frozen
    with pytest.raises(ValueError, match=r"--weights lite0\.pth is for a pretrained backbone"):
        Config(dataset="digits", weights=Path("lite0.pth"))
    assert Config(dataset="digits").epochs == 200


@pytest.mark.parametrize(
    ("images", "given", "batch", "epochs"),
    [
        (12406, {}, 256, 10),  # 48 steps an epoch
        (1000, {}, 256, 134),  # 3 steps an epoch, 402 in all
        (100, {}, 100, 400),  # fewer than a batch: all of them
        (1000, {"epochs": 7}, 256, 7),
        (1000, {"batch_images": 100}, 100, 40),
    ],
)
def test_a_head_takes_400_steps_and_at_least_10_epochs(
    images: int, given: dict[str, Any], batch: int, epochs: int
) -> None:
    made = Config(dataset="digits", backbone="onnx:x", **given).with_schedule(images)
    assert (made.batch_images, made.epochs) == (batch, epochs)
    assert made.with_schedule(5 * images) == made  # a resumed run keeps what it began with
    scratch = Config(dataset="digits").with_schedule(images)
    assert (scratch.batch_images, scratch.epochs) == (256, 200)


@pytest.mark.parametrize("lowest", [0.0, -0.1])
def test_features_are_rooted_where_none_is_negative(lowest: float) -> None:
    features = torch.tensor([[4.0, lowest], [9.0, 1.0], [1.0, 4.0]])
    trunk = FeatureTrunk(2)
    trunk.fit(features)
    expected = features.sqrt() if lowest == 0 else features
    deviation, mean = torch.std_mean(expected, dim=0, correction=0)
    standard = torch.nn.functional.normalize((expected - mean) / deviation, dim=1)
    torch.testing.assert_close(trunk(features), standard, atol=1e-5, rtol=1e-5)
    loaded = FeatureTrunk(2)
    loaded.load_state_dict(trunk.state_dict())
    torch.testing.assert_close(loaded(features), standard, atol=1e-5, rtol=1e-5)
    new = torch.tensor([[-1.0, 0.0]], requires_grad=True)  # below what training saw, and where a root has no slope
    trunk(new).sum().backward()
    assert new.grad is not None
    assert new.grad.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_on_features(extractor: Path, tmp_path: Path, method: str) -> None:
    given = config(extractor, method=method, epochs=4, learning_rate=0.01)
    run = checkpoint.trained(trainer.train(given, tmp_path / "run"))
    assert isinstance(run.scoring.trunk, FeatureTrunk)
    assert run.passes == 1
    assert run.provenance["backbone"]["weights"] == extractor.name
    backbone = frozen.load(given, tmp_path / "run")
    data = backbone.data(loading.load(given, tmp_path / "run", target=backbone.target))
    with torch.no_grad():
        logits, features = run.classifying(torch.from_numpy(np.array(data.test.images)))
    assert features.shape == (len(data.test.labels), FEATURES)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)))
    accuracy = float((logits.argmax(dim=1).numpy() == data.test.labels).mean())
    assert accuracy > 0.5, accuracy  # of eight digits; class means alone have more


def test_heads_begin_at_the_means(extractor: Path) -> None:
    network = build_network(METHODS["tailguard-joint"], 2, 64, features=3)
    features = torch.tensor([[1.0, 0, 0], [3, 0, 0], [0, 2, 0], [0, 0, 1]])
    network.begin_on(features, torch.tensor([0, 0, 1, 1]), torch.tensor([[5.0, 5, 5]]))
    trunk, head = network.trunk, network.head
    assert isinstance(trunk, FeatureTrunk)
    assert isinstance(head, CosineHead)
    roots = features.sqrt()
    deviation, mean = torch.std_mean(roots, dim=0, correction=0)
    torch.testing.assert_close(trunk.mean, mean)
    torch.testing.assert_close(trunk.deviation, deviation)
    standard = torch.nn.functional.normalize((roots - mean) / deviation, dim=1)
    torch.testing.assert_close(head.weight[0], torch.nn.functional.normalize(standard[:2].sum(dim=0), dim=0))
    assert network.reject is not None
    torch.testing.assert_close(
        network.reject.weight[0], torch.nn.functional.normalize((5**0.5 - mean) / deviation, dim=0)
    )
    with torch.no_grad():
        logits, _ = network(features)
    assert float(logits.abs().max()) <= 25.0 + 1e-4


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize("precision", ["fp32"])
def test_from_the_file_to_a_served_answer(extractor: Path, tmp_path: Path, precision: str) -> None:
    run = trainer.train(config(extractor, method="tailguard-joint", learning_rate=0.01), tmp_path / "run")
    finished.Evaluate(run=run).cli_cmd()
    finished.Calibrate(run=run).cli_cmd()
    finished.Export(run=run, out=tmp_path / "models", precision=precision, data_licence="BSD-3-Clause").cli_cmd()  # type: ignore[arg-type]
    folder = tmp_path / "models" / "digits" / "1"
    manifest = bundle.read(folder)
    assert (manifest.input.height_px, manifest.passes) == (16, 1)
    results = json.loads((run / "results.json").read_text())
    # The graph decides on pixels what the head decided on cached features.
    assert manifest.evaluation["accuracy"] == pytest.approx(results["accuracy"], abs=2e-3)
    assert manifest.evaluation["mean"]["auroc"] == pytest.approx(results["mean"]["auroc"], abs=2e-3)
    assert results["accuracy"] > 0.8
    engine = Engine(folder, manifest)
    data = loading.load(config(extractor), run)
    rows = engine.run(data.test.images)
    assert float((rows.probabilities.argmax(axis=1) == data.test.labels).mean()) == pytest.approx(
        results["accuracy"], abs=2e-3
    )
    example = manifest.golden[0]
    pixels = load_image((folder / example.file).read_bytes(), manifest.input, max_pixels=10**8).pixels
    np.testing.assert_allclose(engine.run(pixels[None]).probabilities[0], example.probabilities, atol=1e-4)


def test_another_backbone_than_the_one_trained_on_is_refused(extractor: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.onnx"
    own.write_bytes(extractor.read_bytes())
    run = trainer.train(config(own, method="msp", epochs=1), tmp_path / "run")
    changed = onnx.load(own)
    changed.graph.node[0].attribute[0].ints[:] = [4, 3]
    changed.doc_string = "another"
    onnx.save(changed, own)
    with pytest.raises((DataError, ValueError), match=r"weights_sha256|does not run"):
        finished.Evaluate(run=run).cli_cmd()


@pytest.mark.parametrize(("augment", "views"), [("none", 1), ("crop", 1), ("flip", 2), ("paper", 2), ("photo", 2)])
def test_no_mirror_image_is_learnt_from_where_the_augmentation_has_none(
    extractor: Path, tmp_path: Path, augment: str, views: int
) -> None:
    """`crop` is what the audit recommends where a mirror image is another class: left and right hands."""
    made = frozen.load(config(extractor, augment=augment, dataset="cifar10", data=tmp_path, feature_views=3), tmp_path)
    assert (made.cache.views, made.cache.mirror) == (views + 3, views == 2)


def test_a_digit_is_not_learnt_from_its_mirror_image(extractor: Path, tmp_path: Path) -> None:
    """The data forbid it to a network, and a frozen backbone's views had it: a mirrored 3 is no 3."""
    given = config(extractor, method="oe", augment="paper", feature_views=1)
    backbone = frozen.load(given, tmp_path)
    pixels = loading.load(given, target=backbone.target)
    assert not pixels.flip
    assert not backbone.cache.mirror
    data = backbone.data(pixels)
    assert {data.train.images.shape[1], data.outliers.shape[1]} == {2}  # the image and a crop


def test_a_head_does_not_go_on_with_another_backbone(extractor: Path, tmp_path: Path) -> None:
    """Neither when it is resumed nor in a second stage: the file of weights may be another one under its old name."""
    own = tmp_path / "own.onnx"
    own.write_bytes(extractor.read_bytes())
    run = trainer.train(config(own, method="msp", epochs=1), tmp_path / "run")
    before = checkpoint.load(run)
    checkpoint.save(run, before | {"stage": "stage1", "epoch": 0, "optimizer": None})
    changed = onnx.load(own)
    changed.graph.node.insert(0, helper.make_node("Neg", ["x"], ["turned"]))
    changed.graph.node[1].input[0] = "turned"
    onnx.save(changed, own)
    with pytest.raises(DataError, match="was trained on weights_sha256"):
        trainer.train(config(own, method="msp", epochs=1), run, resume=True)
    checkpoint.save(run, before)
    second = config(own, method="crt", epochs=1, stage1_from=run)
    with pytest.raises(DataError, match="was trained on weights_sha256"):
        trainer.train(second, tmp_path / "second")
    own.write_bytes(extractor.read_bytes())
    assert checkpoint.load(trainer.train(second, tmp_path / "second"))["stage"] == "done"


def test_weights_in_a_file_beside_the_graph_are_weights_too(extractor: Path, tmp_path: Path) -> None:
    """torch.onnx.export writes model.onnx.data: another one leaves the graph the same to the byte."""
    model, own = onnx.load(extractor), tmp_path / "own.onnx"
    model.graph.node.append(helper.make_node("MatMul", ["flat", "weight"], ["features"]))
    model.graph.node[1].output[0] = "flat"

    def write(seed: int) -> None:
        weight = np.random.default_rng(seed).normal(size=(FEATURES, FEATURES)).astype(np.float32)
        made = onnx.ModelProto()
        made.CopyFrom(model)
        made.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
        own.with_suffix(".data").unlink(missing_ok=True)
        onnx.save(made, own, save_as_external_data=True, location="own.data", size_threshold=0)

    write(0)
    graph = own.read_bytes()
    run = trainer.train(config(own, method="msp", epochs=1), tmp_path / "run")
    write(1)
    assert own.read_bytes() == graph
    frozen._loaded.cache_clear()
    with pytest.raises(DataError, match="was trained on external_data_sha256"):
        finished.Evaluate(run=run).cli_cmd()
    write(0)
    frozen._loaded.cache_clear()
    finished.Evaluate(run=run).cli_cmd()


def test_a_resumed_run_computes_no_feature_again(
    extractor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = config(extractor, method="oe", epochs=2)
    run = trainer.train(given, tmp_path / "run")
    cached = {path.name: path.stat().st_mtime_ns for path in (run / "features").glob("*.npy")}
    assert len(cached) >= 5  # train, calibration, test, outliers, held-back outliers
    monkeypatch.setattr("training.network.features.FeatureCache._compute", lambda *_: 1 / 0)
    finished.Evaluate(run=run, ood=[]).cli_cmd()
    assert {path.name: path.stat().st_mtime_ns for path in (run / "features").glob("*.npy")} == cached
