"""What a request wants beyond probabilities and scores: service/inference/{wanted,opened,engine,neighbours}.py."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.contract import bundle
from service.errors import EngineError
from service.inference import opened
from service.inference.engine import Engine
from service.inference.gpu import Buckets
from service.inference.neighbours import Neighbours
from service.inference.pipeline import Dials, Pipeline
from service.inference.wanted import NOTHING, Wanted
from tests.service import tiny

EMBEDDING, MAP = Wanted(embedding=True), Wanted(heat_map=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_whole(tmp_path_factory.mktemp("whole") / "tiny" / "1")


def images(count: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, tiny.SIDE, tiny.SIDE, 3), np.uint8)


def engine(folder: Path, **options: Any) -> Engine:
    return Engine(folder, bundle.read(folder), **options)


def test_what_is_wanted_together() -> None:
    assert NOTHING | NOTHING is NOTHING
    assert EMBEDDING | MAP == MAP | EMBEDDING == Wanted(True, True)
    assert NOTHING | MAP == MAP


def test_a_run_gives_what_it_wants_and_no_more(whole: Path) -> None:
    """And the same probabilities and scores, whatever else is wanted."""
    made, pixels = engine(whole), images()
    plain = made.run(pixels)
    assert (plain.embedding, plain.heat_map) == (None, None)
    for wanted in (EMBEDDING, MAP, Wanted(True, True)):
        found = made.run(pixels, wanted)
        assert (found.embedding is not None, found.heat_map is not None) == tuple(wanted)
        np.testing.assert_allclose(found.probabilities, plain.probabilities, atol=1e-6)
        assert set(found.scores) == set(plain.scores)
    best = plain.probabilities.argmax(axis=1)
    by_hand = np.stack([tiny.GAIN / 255 * image[..., c].astype(float) for image, c in zip(pixels, best, strict=True)])
    heat = made.run(pixels, MAP).heat_map
    assert heat is not None
    np.testing.assert_allclose(heat, by_hand, rtol=1e-5)


def test_the_map_costs_nothing_until_it_is_asked_for(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph without it is the only one that is opened; then that with it, once, whoever asks."""
    sessions: list[Any] = []
    real = opened.providers.session

    def counted(*given: Any, **options: Any) -> Any:
        sessions.append(real(*given, **options))
        return sessions[-1]

    monkeypatch.setattr(opened.providers, "session", counted)
    made = engine(whole)
    made.run(images(), EMBEDDING)
    assert len(sessions) == 1
    assert "heat_map" not in [output.name for output in sessions[0].get_outputs()]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: made.run(images(), MAP), range(16)))
    assert len(sessions) == 2


def test_an_engine_that_keeps_gives_the_embedding_with_a_map_too(whole: Path) -> None:
    made = engine(whole, embedding=True)
    assert made.run(images()).embedding is not None
    assert made.run(images(), MAP).embedding is not None


def test_what_a_bundle_lacks_is_an_error_and_a_closed_engine_too(whole: Path, tiny_bundle: Path) -> None:
    with pytest.raises(EngineError, match="tiny 1 has no heat map"):
        engine(tiny_bundle).run(images(), MAP)
    made = engine(whole)
    made.run(images(), MAP)
    made.close()
    for wanted in (NOTHING, MAP):
        with pytest.raises(EngineError, match="is closed"):
            made.run(images(), wanted)


def test_a_heat_map_is_verified(whole: Path, tmp_path: Path) -> None:
    engine(whole).verify_heat_map()
    where = {"file": "heat_map.onnx", "height": 4, "width": 8, "made_from": "the pixels"}
    other = tiny.write_whole(tmp_path / "tiny" / "2", heat_map=where)
    with pytest.raises(EngineError, match=r"gives a heat map \(2, 8, 8\), its manifest needs .* \[N, 4, 8\]"):
        engine(other).verify_heat_map()


def test_a_manifest_names_the_file_of_its_map(tmp_path: Path) -> None:
    where = {"file": "other.onnx", "height": 8, "width": 8, "made_from": "the pixels"}
    with pytest.raises(bundle.BundleError, match=r"'other.onnx' is not among the files"):
        tiny.write_whole(tmp_path / "tiny" / "1", heat_map=where)


def test_buffers_of_a_device_give_what_is_asked_for(whole: Path) -> None:
    made = engine(whole)
    assert made._graph is not None
    shapes = {"probabilities": (3,), "energy": (), "embedding": (3,)}
    buckets = Buckets(
        made._graph.session, made.shape, shapes, device="cpu", max_batch_images=4, always=["probabilities", "energy"]
    )
    pixels = images(7)
    expected = made.run(pixels, EMBEDDING)
    probabilities, energy = buckets.run(pixels)
    (embedding,) = buckets.run(pixels, ["embedding"])
    np.testing.assert_allclose(probabilities, expected.probabilities, atol=1e-6)
    np.testing.assert_allclose(energy, expected.scores["energy"], atol=1e-5)
    np.testing.assert_allclose(embedding, expected.embedding, atol=1e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_images_of_one_batch_may_want_different_things(whole: Path, fused: bool) -> None:
    dials = Dials(
        max_pixels=10_000, queue_images=50, max_batch_images=8, decode_threads=1, inference_threads=1, fused=fused
    )
    pipeline = Pipeline(engine(whole), dials)
    wants = [NOTHING, MAP, EMBEDDING, Wanted(True, True)] * 6

    async def body() -> list[Any]:
        deadline = asyncio.get_running_loop().time() + 30
        return await asyncio.gather(*(pipeline.submit(tiny.photo(), deadline, wanted) for wanted in wants))

    rows = asyncio.run(body())
    pipeline.close()
    for row, wanted in zip(rows, wants, strict=True):
        assert not wanted.embedding or row.embedding.tolist() == pytest.approx([0.982, 0.134, 0.134], abs=1e-3)
        assert not wanted.heat_map or row.heat_map.shape == (8, 8)


def test_neighbours_by_hand(whole: Path) -> None:
    known = Neighbours(whole, bundle.read(whole))
    near = known.near(np.array([0.8, 0.6, 0], np.float32), 3)
    assert [(one.exemplar, one.class_index) for one in near] == [(1, 0), (0, 0), (2, 1)]
    assert [one.distance for one in near] == pytest.approx([0.04, 0.2, 0.4], abs=1e-3)
    names = [one.thumbnail for one in near]
    assert names[0] is None  # it has no picture
    assert known.thumbnail(str(names[1])) == tiny.photo((255, 0, 0), form="JPEG")
    assert known.thumbnail("none") is None
