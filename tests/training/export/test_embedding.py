"""training/export/embedding.py and exemplars.py: by hand, and in bundles that the service loads."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image

from service.contract import bundle
from service.contract import exemplars as contract
from service.inference.engine import Engine
from tests.training import tiny
from training import trainer
from training.data import loading
from training.evaluation import measure, predict
from training.export import bundle as export
from training.export import embedding, exemplars
from training.export.about import AboutData
from training.runs import checkpoint
from training.runs.files import jsonable

CPU = torch.device("cpu")


def test_main_directions_are_those_of_the_largest_squares() -> None:
    rows = np.array([[0, 3, 0], [0, -3, 0], [1, 0, 0], [0, 0, 2]], np.float32)
    found = embedding.main_directions(rows, 2)
    np.testing.assert_allclose(np.abs(found), [[0, 0], [1, 0], [0, 1]], atol=1e-6)


def test_reduced_rows_have_length_1() -> None:
    directions = np.array([[1, 0], [0, 1], [0, 0]], np.float32)
    rows = torch.tensor([[3.0, 4.0, 100.0], [0.0, 0.0, 5.0]])
    np.testing.assert_allclose(embedding.Reduced(directions)(rows), [[0.6, 0.8], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(embedding.Reduced()(rows.half())[1], [0, 0, 1], atol=1e-6)


def test_likeness_by_hand() -> None:
    known, labels = np.array([[1, 0], [0, 1], [-1, 0]], np.float32), np.array([0, 1, 0])
    queries = embedding.unit(np.array([[1, 0.1], [0.9, 1]], np.float32))
    found = embedding.likeness(queries, np.array([0, 1]), known, labels)
    assert sorted(found.nearest.tolist()) == [True, True]
    # pairs of one class: .995, -.995, .743; others: .0995, .669, -.669. Of 9 comparisons 6 are won
    assert found.pairs == pytest.approx(6 / 9)


@pytest.mark.parametrize(("right", "pairs", "lost"), [(100, 0.9, 0), (100, 0.8, 0.1), (90, 0.9, 0.07), (99, 0.9, 0)])
def test_what_is_lost(right: int, pairs: float, lost: float) -> None:
    """10 of 100 neighbours lost have a standard error of .03; one of 100 is no loss that is sure."""
    full = embedding.Likeness(np.ones(100, bool), 0.9)
    assert full.lost(embedding.Likeness(np.arange(100) < right, pairs)) == pytest.approx(lost, abs=1e-4)


def test_at_most_so_many_of_a_class_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "MOST_PER_CLASS", 3)
    labels = np.array([1, 0, 0, 0, 0, 0, 1])
    assert embedding.looked_at(labels).tolist() == [0, 1, 3, 5, 6]


def test_exemplars_cover_their_class() -> None:
    """Two clusters and a class of two: the larger cluster first, then one of the other; the small class whole."""
    angles = np.radians([0, 1, 2, 90, 91, 200, 300])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    labels = np.array([0, 0, 0, 0, 0, 1, 1])
    assert exemplars.choose(rows, labels, 2).tolist()[:2] in ([2, 4], [2, 3])
    assert sorted(exemplars.choose(rows, labels, 2).tolist()[2:]) == [5, 6]
    assert sorted(exemplars.choose(rows, labels, 9).tolist()) == list(range(7))


def test_how_many_fit() -> None:
    assert exemplars.of_each_class(10, 256) == 32
    assert exemplars.of_each_class(10, 256, 8) == 8
    assert exemplars.of_each_class(1000, 256, 8) == 7
    assert exemplars.of_each_class(1000, 256) == 7
    assert exemplars.of_each_class(50_000, 256) == 1


def test_thumbnails_are_small_and_bounded() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 120, 200, 3), np.uint8)
    labels = np.array([0, 0, 0, 1])
    files = exemplars.thumbnails([images[:3], images[3:]], labels, 10**6)
    assert [Image.open(io.BytesIO(f)).size for f in files] == [(96, 58)] * 4
    room = sum(map(len, (files[0], files[3], files[1])))
    assert exemplars.thumbnails([images], labels, room) == [files[0], files[1], b"", files[3]]
    assert exemplars.thumbnails([images], labels, 0) == [b""] * 4


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    config = tiny.config()
    run = checkpoint.trained(trainer.train(config, tmp_path_factory.mktemp("run")))
    loaded = loading.load(run.config, run.folder)
    module = predict.torch_predict(predict.deployed(run, 1.0), CPU)
    measured = measure.measure(module, loaded, loaded.ood, score="msp", temperature=1.0, scope="group")
    return run, loaded, jsonable({"score": "msp", "temperature": 1.0, **measured})


def reduced(patch: pytest.MonkeyPatch, most_lost: float) -> None:
    """Features of 64 numbers, which are few already, are reduced to 16."""
    patch.setattr(embedding, "MOST_DIMENSIONS", 16)
    patch.setattr(embedding, "MOST_LOST", most_lost)


def test_few_features_stay_as_they_are(prepared: Any) -> None:
    run, loaded, _ = prepared
    found = embedding.fit(run, loaded, CPU)
    assert found.module.directions is None
    assert found.record["dimensions"] == 64
    assert "all of them" in found.record["made_from"]
    assert "of the branch that accepts or rejects" in found.record["made_from"]  # pascl-abf has two
    features = embedding.unit(predict.embed(run.scoring, loaded.train.images[found.index], CPU))
    np.testing.assert_allclose(found.rows, features, atol=1e-6)


@pytest.mark.parametrize(("most_lost", "dimensions"), [(1.0, 16), (-2.0, 64)])
def test_they_are_reduced_only_where_little_is_lost(
    prepared: Any, monkeypatch: pytest.MonkeyPatch, most_lost: float, dimensions: int
) -> None:
    reduced(monkeypatch, most_lost)
    found = embedding.fit(*prepared[:2], CPU)
    assert found.record["dimensions"] == dimensions == found.rows.shape[1] == found.held.shape[1]
    assert ("would lose too much" in found.record["made_from"]) == (dimensions == 64)


def test_features_without_any_direction_are_refused(prepared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "embed", lambda network, images, device: np.zeros((len(images), 64), np.float32))
    with pytest.raises(ValueError, match="the same features, all 0"):
        embedding.fit(*prepared[:2], CPU)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_bundle_with_embedding_and_exemplars(
    prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any
) -> None:
    """In any precision the projection is in float32, and each exemplar is what the service makes of its image."""
    run, loaded, record = prepared
    reduced(monkeypatch, 1.0)
    folder = tmp_path / "digits" / "1"
    about = AboutData("digits", "digits", "BSD-3-Clause")
    with tiny.quick_export(200):
        manifest = export.export(
            run, loaded, {}, record, folder, precision=precision, about=about, thumbnails=precision == "int8"
        )
    assert manifest.embedding is not None
    assert manifest.exemplars is not None
    assert manifest.embedding.dimensions == 16
    found = contract.read(folder, bundle.read(folder))
    assert found is not None
    assert found.class_index.tolist() == sorted(found.class_index.tolist())
    wanted = np.minimum(loaded.train.counts, exemplars.MOST_OF_A_CLASS)
    assert np.bincount(found.class_index, minlength=8).tolist() == wanted.tolist()

    engine = Engine(folder, manifest, embedding=True)  # which checks dimensions and length
    index = embedding.fit(run, loaded, CPU)
    taken = exemplars.choose(index.rows, loaded.train.labels[index.index], exemplars.MOST_OF_A_CLASS)
    served = engine.run(loaded.train.images[index.index[taken]]).embedding
    assert served is not None
    np.testing.assert_allclose(served, found.embedding, atol=2e-3)
    assert (found.nearest(served)[1] < 1e-3).all()

    graph = onnx.load(folder / "model.onnx").graph
    maker = {name: node for node in graph.node for name in node.output}
    node = maker["embedding"]
    while node.op_type not in ("MatMul", "Gemm"):
        node = maker[node.input[0]]
    weights = {i.name: numpy_helper.to_array(i) for i in graph.initializer}[node.input[1]]
    assert weights.dtype == np.float32
    assert weights.shape == (64, 16)

    card = (folder / "CARD.md").read_text()
    assert "## Embedding and exemplars" in card
    pictures = len(found.thumbnails)
    assert pictures == (len(found.class_index) if precision == "int8" else 0)
    assert ("thumbnails of training images, under BSD-3-Clause" in card) == bool(pictures)
    assert ("the bundle holds no image of its data set" in card) != bool(pictures)


def test_thumbnails_without_a_licence_are_refused(prepared: Any, tmp_path: Path) -> None:
    run, loaded, record = prepared
    with pytest.raises(ValueError, match="name their terms with --data-licence"):
        export.export(run, loaded, {}, record, tmp_path / "d" / "1", precision="fp32", thumbnails=True)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_with_another_embedding_than_torch_is_refused(
    prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, loaded, record = prepared
    honest = embedding.fit(run, loaded, CPU)
    turned = embedding.Reduced(np.eye(64, dtype=np.float32))

    def graph_of_another(module: Any, *rest: Any) -> bytes:
        other = torch.nn.Module.__new__(type(module))
        other.__dict__ = dict(module.__dict__) | {"_modules": dict(module._modules)}
        other.embedding = embedding.Reduced(np.roll(np.eye(64, dtype=np.float32), 1, axis=0))
        return to_onnx(other, *rest)

    to_onnx = export.to_onnx
    monkeypatch.setattr(export, "to_onnx", graph_of_another)
    monkeypatch.setattr(export, "fit_embedding", lambda *given: replace(honest, module=turned))
    with tiny.quick_export(200), pytest.raises(export.ExportError, match="embeddings of cosine"):
        export.export(run, loaded, {}, record, tmp_path / "d" / "1", precision="fp32")
    assert list(tmp_path.iterdir()) == []
