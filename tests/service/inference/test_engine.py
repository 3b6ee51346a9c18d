"""service/inference/engine.py: right numbers, and every mismatch of graph, manifest and machine refused."""

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.contract import bundle
from service.errors import EngineError
from service.inference.engine import Engine
from service.inference.providers import PROVIDERS
from tests.service import tiny


def load(folder: Path, **options: Any) -> Engine:
    return Engine(folder, bundle.read(folder), **options)


@pytest.mark.parametrize(("count", "threads"), [(1, 1), (7, 1), (7, 2)])
def test_outputs_are_those_of_numpy(tiny_bundle: Path, count: int, threads: int) -> None:
    images = np.random.default_rng(count).integers(0, 256, (count, tiny.SIDE, tiny.SIDE, 3), np.uint8)
    engine = load(tiny_bundle, intra_op_threads=threads)
    assert engine.provider == "CPUExecutionProvider"
    outputs = engine.run(images)
    probabilities, scores = tiny.reference(images)
    np.testing.assert_allclose(outputs.probabilities, probabilities, atol=1e-5)
    assert outputs.scores.keys() == scores.keys()
    for name, values in scores.items():
        np.testing.assert_allclose(outputs.scores[name], values, atol=1e-5)


def test_close_frees_and_refuses(tiny_bundle: Path) -> None:
    engine = load(tiny_bundle)
    assert engine._graph is not None
    freed = weakref.ref(engine._graph.session)
    engine.close()
    engine.close()
    assert freed() is None
    with pytest.raises(EngineError, match="the engine of tiny 1 is closed"):
        engine.run(np.zeros((1, tiny.SIDE, tiny.SIDE, 3), np.uint8))


def test_with_a_device_the_engine_runs_its_buckets(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a GPU with its buffers on the CPU: goldens pass, odd batches too, and closing ends it."""
    monkeypatch.setitem(PROVIDERS, "cpu", PROVIDERS["cpu"]._replace(device="cpu"))
    engine = Engine(tiny_bundle, bundle.read(tiny_bundle), max_batch_images=4)
    images = np.random.default_rng(0).integers(0, 256, (7, tiny.SIDE, tiny.SIDE, 3), np.uint8)
    np.testing.assert_allclose(engine.run(images).scores["energy"], tiny.reference(images)[1]["energy"], atol=1e-5)
    with pytest.raises(EngineError, match=r"shape \(1, 9, 8, 3\)"):
        engine.run(np.zeros((1, 9, 8, 3), np.uint8))
    engine.close()
    with pytest.raises(EngineError, match="is closed"):
        engine.run(images)


def test_wrong_shape_is_an_engine_error(tiny_bundle: Path) -> None:
    with pytest.raises(EngineError, match=r"shape \(1, 9, 8, 3\)"):
        load(tiny_bundle).run(np.zeros((1, 9, 8, 3), np.uint8))


def test_graph_that_is_none(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "1", files=tiny.files() | {"model.onnx": b"not a graph"})
    with pytest.raises(EngineError, match="cannot be loaded by onnxruntime") as refused:
        load(folder)
    assert "\n" not in str(refused.value)


def test_graph_of_another_size(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "1", files=tiny.files() | {"model.onnx": tiny.graph(side=9)})
    with pytest.raises(EngineError, match=r"its manifest needs images uint8 \[N, 8, 8, 3\]"):
        load(folder)


def test_graph_without_a_score(tmp_path: Path) -> None:
    files = tiny.files() | {"model.onnx": tiny.graph(outputs=("probabilities", "energy"))}
    with pytest.raises(EngineError, match="needs msp"):
        load(tiny.write(tmp_path / "1", files=files))


def test_graph_with_other_classes(tmp_path: Path) -> None:
    manifest = tiny.manifest()
    fewer = {"classes": manifest["classes"][:2], "calibration": manifest["calibration"] | {"class_shares": [0.5, 0.5]}}
    with pytest.raises(EngineError, match="has 2 classes"):
        load(tiny.write(tmp_path / "1", **fewer, golden=[]))


def changed(**changes: Any) -> dict[str, Any]:
    return tiny.golden("examples/red.png", (220, 30, 30)) | changes


@pytest.mark.parametrize(
    ("golden", "message"),
    [
        (changed(probabilities=[0.99, 0.005, 0.005]), r"examples/red\.png: a probability is off by 0\.00"),
        (changed(scores={"energy": -8.7, "msp": 0.00116}), "energy is -8.62861, expected -8.7"),
        (changed(scores={"energy": -8.62861, "msp": 0.01}), "msp is"),
        (changed(label="blue"), "the label is 'red', expected 'blue'"),
        (changed(label="violet"), "'violet' is none of the classes"),
    ],
)
def test_failed_golden_example(tmp_path: Path, golden: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        load(tiny.write(tmp_path / "1", golden=[golden]))


def test_int8_is_given_the_room_its_kernels_need(tmp_path: Path) -> None:
    """A percent of probability and of the energy's scale passes for int8, not for fp32; a wrong answer never does."""
    p = tiny.golden("examples/red.png", (220, 30, 30))["probabilities"]
    off = changed(probabilities=[p[0] - 0.01, p[1] + 0.01, p[2]], scores={"energy": -8.55, "msp": 0.011})
    assert load(tiny.write(tmp_path / "int8", golden=[off], precision="int8")).provider
    with pytest.raises(EngineError):
        load(tiny.write(tmp_path / "fp32", golden=[off]))
    with pytest.raises(EngineError):
        load(tiny.write(tmp_path / "wrong", golden=[changed(probabilities=p[::-1])], precision="int8"))


def test_damaged_golden_image(tmp_path: Path) -> None:
    files = tiny.files() | {"examples/red.png": b"no image"}
    with pytest.raises(EngineError, match=r"examples/red\.png cannot be read"):
        load(tiny.write(tmp_path / "1", files=files))


@pytest.mark.parametrize("device", [None, "cpu"])
def test_embedding_is_given_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str | None) -> None:
    """Plainly and through the buckets of a GPU; the other answers are the same."""
    monkeypatch.setitem(PROVIDERS, "cpu", PROVIDERS["cpu"]._replace(device=device))
    folder = tiny.write_embedding(tmp_path / "1")
    images = np.random.default_rng(0).integers(0, 256, (7, tiny.SIDE, tiny.SIDE, 3), np.uint8)
    plain, asked = (load(folder, embedding=e, max_batch_images=4).run(images) for e in (False, True))
    assert plain.embedding is None
    assert asked.embedding is not None
    means = images.mean(axis=(1, 2))
    np.testing.assert_allclose(asked.embedding, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_array_equal(plain.probabilities, asked.probabilities)
    assert plain.scores.keys() == asked.scores.keys()


def test_embedding_asked_of_a_bundle_without(tiny_bundle: Path) -> None:
    images = np.zeros((2, tiny.SIDE, tiny.SIDE, 3), np.uint8)
    assert load(tiny_bundle, embedding=True).run(images).embedding is None


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": tiny.files()}, "gives no embedding, its manifest needs one"),
        ({"embedding": {"dimensions": 4, "made_from": ""}}, r"embedding float32 \(2, 3\).*float32 \[N, 4\]"),
        ({"files": tiny.files() | {"model.onnx": tiny.graph(outputs=tiny.WITH_EMBEDDING, unit="mean")}}, "length"),
    ],
)
def test_graph_with_another_embedding(tmp_path: Path, changes: dict[str, Any], message: str, asked: bool) -> None:
    """Refused at load also where nobody asks for the embedding."""
    with pytest.raises(EngineError, match=message):
        load(tiny.write_embedding(tmp_path / "1", **changes), embedding=asked)
