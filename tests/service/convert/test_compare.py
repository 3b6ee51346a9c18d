"""How far apart two runtimes may be, and that what is further apart is refused, with its figures."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.contract import bundle
from service.convert import compare, onnx, pictures
from service.convert.compare import Answers
from service.convert.errors import ConvertError
from tests.service import refusing, tiny

COLOURS = np.array([(220, 30, 30), (10, 20, 200), (128, 128, 128), (0, 0, 0)], np.uint8)
IMAGES = np.broadcast_to(COLOURS[:, None, None], (4, tiny.SIDE, tiny.SIDE, 3)).copy()
SIDES = [tiny.SIDE] * 4


def answers(folder: Path) -> Answers:
    return compare.answered(onnx.opened(folder / "model.onnx"), IMAGES)


def moved(one: Answers, name: str, row: int, by: float) -> Answers:
    """The same, with one number of one image changed."""
    values = one[name].copy()
    values[row] += by
    return one | {name: values}


def test_a_batch_may_have_any_size_and_every_image_keeps_its_place(tiny_bundle: Path) -> None:
    sizes: list[int] = []
    run = onnx.opened(tiny_bundle / "model.onnx")

    def counted(batch: NDArray[np.uint8]) -> Answers:
        sizes.append(len(batch))
        return run(batch)

    many = np.concatenate([IMAGES] * 9)[:35]
    found = compare.answered(counted, many)
    assert sizes == [1, 16, 16, 2]
    wanted, scores = tiny.reference(many)
    np.testing.assert_allclose(found["probabilities"], wanted, atol=1e-5)
    np.testing.assert_allclose(found["energy"], scores["energy"], atol=1e-4)


def test_the_same_answers_differ_in_nothing(tiny_bundle: Path) -> None:
    manifest, found = bundle.read(tiny_bundle), answers(tiny_bundle)
    figures = compare.difference(manifest, found, found, SIDES)
    assert figures["decisions_changed"] == figures["class_changed"] == 0
    assert set(figures["by_point"]) == {f"{p}, {s}" for p in ("id95", "ood95") for s in ("group", "global")}
    assert figures["largest_deviation"] == {"probabilities": 0, "energy": 0, "msp": 0}
    assert compare.beyond(figures, compare.limits(manifest, figures)) == []


def test_a_decision_that_changes_at_one_point_and_scope_counts(tiny_bundle: Path) -> None:
    """The red image has energy -8.64 and is in the group many: between -8.0 and it lies only ood95, either scope."""
    manifest, found = bundle.read(tiny_bundle), answers(tiny_bundle)
    other = moved(found, "energy", 0, 1.0)
    figures = compare.difference(manifest, found, other, SIDES)
    assert (figures["decisions_changed"], figures["class_changed"]) == (0.25, 0)
    changed = {name: row["changed"] for name, row in figures["by_point"].items()}
    assert changed == {"id95, group": 0, "id95, global": 0, "ood95, group": 0.25, "ood95, global": 0.25}
    row = figures["by_point"]["ood95, group"]
    assert row["refused_converted"] - row["refused"] == 0.25
    assert figures["largest_deviation"]["energy"] == pytest.approx(1.0, abs=1e-5)
    own = compare.difference(manifest, found, found, SIDES)
    said = compare.beyond(figures, compare.limits(manifest, own))
    assert said[0] == "25.00% of decisions change (at most 0.50% may)"
    assert said[1].startswith("energy is off by up to 1 ")


def test_a_class_that_changes_counts(tiny_bundle: Path) -> None:
    manifest, found = bundle.read(tiny_bundle), answers(tiny_bundle)
    other = moved(found, "probabilities", 1, np.array([1.0, 0, 0]))
    figures = compare.difference(manifest, found, other, SIDES)
    assert figures["class_changed"] == 0.25
    assert figures["decisions_changed"] == 0.25


def test_what_onnxruntime_changes_itself_is_allowed_and_half_a_percent_more(tiny_bundle: Path) -> None:
    manifest, found = bundle.read(tiny_bundle), answers(tiny_bundle)
    own = compare.difference(manifest, found, moved(found, "energy", 0, 1.0), SIDES)
    allowed = compare.limits(manifest, own)
    assert allowed["decisions_changed"] == 0.255
    assert compare.beyond(own, allowed) == []
    more = compare.difference(manifest, found, moved(moved(found, "energy", 0, 1.0), "energy", 1, 2.0), SIDES)
    assert compare.beyond(more, allowed)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_beyond_every_limit(tiny_bundle: Path, value: float) -> None:
    manifest, found = bundle.read(tiny_bundle), answers(tiny_bundle)
    own = compare.difference(manifest, found, found, SIDES)
    figures = compare.difference(manifest, found, moved(found, "msp", 2, value), SIDES)
    assert figures["decisions_changed"] == 0  # msp does not decide
    assert [said.split(" ")[0] for said in compare.beyond(figures, compare.limits(manifest, own))] == ["msp"]


def test_an_unfit_picture_is_refused_by_its_pixels(tmp_path: Path) -> None:
    folder = refusing.write(tmp_path / "refusing" / "1", limits={"brightness": 0.1})
    manifest = bundle.read(folder)
    found = answers(folder)
    black = compare.decided(manifest, found, SIDES).refused["id95, group"][3]
    lit = moved(found, "quality", 3, np.array([1.0, 1.0, 1.0]))
    lit = moved(lit, manifest.deciding_score, 3, -50.0)
    unlit = moved(lit, "quality", 3, np.array([-1.0, 0, 0]))
    assert black
    assert not compare.decided(manifest, lit, SIDES).refused["id95, group"][3]
    assert compare.decided(manifest, unlit, SIDES).refused["id95, group"][3]


@pytest.mark.parametrize("value", [0.2, np.nan])
def test_embeddings_that_point_elsewhere_are_beyond_the_limit(tmp_path: Path, value: float) -> None:
    folder = tiny.write_embedding(tmp_path / "tiny" / "1")
    manifest, found = bundle.read(folder), answers(folder)
    found["embedding"][3] = (1, 0, 0)  # black has no direction
    own = compare.difference(manifest, found, found, SIDES)
    assert own["embedding_cosine"] == pytest.approx(1, abs=1e-6)
    assert compare.beyond(own, compare.limits(manifest, own)) == []
    other = compare.difference(manifest, found, moved(found, "embedding", 0, np.array([-value, 0, 0])), SIDES)
    assert [said.split(" ")[0] for said in compare.beyond(other, compare.limits(manifest, own))] == ["embeddings"]


def test_an_output_that_is_missing_or_of_another_shape_is_named(tiny_bundle: Path) -> None:
    manifest, found = bundle.read(tiny_bundle), answers(tiny_bundle)
    compare.require_outputs(manifest, found, found)
    with pytest.raises(ConvertError, match="'msp'"):
        compare.require_outputs(manifest, {name: found[name] for name in ("probabilities", "energy")}, found)
    with pytest.raises(ConvertError, match="'energy'"):
        compare.require_outputs(manifest, found | {"energy": found["energy"][:, None]}, found)


def test_images_are_those_of_the_bundle_then_a_persons_then_alterations(tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = bundle.read(tiny_bundle)
    alone = pictures.gathered(tiny_bundle, manifest, None)
    assert alone.described() == {"all": 400, "golden": 2, "given": 0, "altered": 398}
    assert alone.pixels.shape == (400, tiny.SIDE, tiny.SIDE, 3)
    assert (alone.pixels[0] == (220, 30, 30)).all()
    assert len(np.unique(alone.pixels.reshape(400, -1), axis=0)) == 400
    assert (alone.pixels == pictures.gathered(tiny_bundle, manifest, None).pixels).all()
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.png").write_bytes(tiny.photo((0, 250, 0), (30, 20)))
    (tmp_path / "note.txt").write_text("no image")
    both = pictures.gathered(tiny_bundle, manifest, tmp_path)
    assert both.described() == {"all": 400, "golden": 2, "given": 1, "altered": 397}
    assert both.sides_px[:3] == [8, 8, 20]
    assert set(both.sides_px) == {8, 20}


def test_of_many_images_some_are_taken_evenly(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MOST_IMAGES", 3)
    monkeypatch.setattr(pictures, "LEAST_IMAGES", 4)
    for k in range(9):
        (tmp_path / f"{k}.png").write_bytes(tiny.photo((k, 0, 0)))
    found = pictures.gathered(tiny_bundle, bundle.read(tiny_bundle), tmp_path)
    assert found.pixels[2:, 0, 0, 0].tolist() == [0, 4, 8]
    assert found.described() == {"all": 5, "golden": 2, "given": 3, "altered": 0}


def test_images_that_cannot_be_had_are_named(tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = bundle.read(tiny_bundle)
    with pytest.raises(ConvertError, match=r"none is no folder"):
        pictures.gathered(tiny_bundle, manifest, tmp_path / "none")
    with pytest.raises(ConvertError, match="holds no image"):
        pictures.gathered(tiny_bundle, manifest, tmp_path)
    (tmp_path / "cut.png").write_bytes(tiny.photo()[:30])
    with pytest.raises(ConvertError, match=r"cut\.png cannot be read"):
        pictures.gathered(tiny_bundle, manifest, tmp_path)
