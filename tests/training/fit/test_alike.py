"""training/fit/alike.py: parts that share bursts, which is said before anything is trained."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training import tiny
from training import audit
from training.data import photographs
from training.data.photographs import CACHE, SCAN_FILE
from training.fit import alike


def scene(seed: int) -> Image.Image:
    """64 x 48 px, each its own."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for p, part in enumerate(("train", "val", "test")):
        for c, name in enumerate(("ant", "bee")):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(6):
                scene(100 * p + 10 * c + i).save(tmp_path / "data" / part / name / f"{i}.png")
    return tmp_path / "data"


def notes(data: Path) -> list[str]:
    given = tiny.config(dataset="folder", data=data, imbalance=None, backbone="onnx:x")
    found = photographs.list_files(given, cache=data.parent / CACHE)
    return [*found.notes, *alike.notes(found, data.parent / CACHE / SCAN_FILE)]


@pytest.mark.parametrize(
    ("part", "purpose", "why"),
    [("val", "calibrate", "more is refused in service than they promise"), ("test", "test", "better than the truth")],
)
def test_frames_of_one_scene_in_two_parts_are_named(data: Path, part: str, purpose: str, why: str) -> None:
    assert not any("near duplicates of training" in note for note in notes(data))
    brighter = Image.fromarray(np.clip(np.asarray(scene(3)).astype(int) + 4, 0, 255).astype(np.uint8))
    brighter.save(data / part / "ant" / "next frame.jpg", quality=85)
    [note] = [note for note in notes(data) if "near duplicates of training" in note]
    assert note.startswith(f"1 of 13 images to {purpose} on are near duplicates of training images")
    assert "next frame.jpg and " in note
    assert "ant/3.png" in note
    assert why in note


def test_copies_of_training_images_among_those_to_calibrate_on_are_named(data: Path) -> None:
    (data / "val" / "ant" / "copy.png").write_bytes((data / "train" / "ant" / "3.png").read_bytes())
    assert [note for note in notes(data) if "1 validation images are training images too" in note]


def test_a_photograph_saved_anew_in_another_class_is_named(data: Path) -> None:
    """Near duplicates are looked for within a class, so nothing told of it: it was learned as the one and as the other,
    and could be on both sides of the split."""
    assert not any("two classes" in note for note in notes(data))
    for i in (1, 2):
        scene(i).resize((48, 36), Image.Resampling.LANCZOS).save(data / "train" / "bee" / f"again {i}.jpg", quality=70)
    (data / "train" / "bee" / "copy.png").write_bytes((data / "train" / "ant" / "3.png").read_bytes())
    [note] = [note for note in notes(data) if "of two classes look like one photograph" in note]
    assert note.startswith("2 pairs of training images")
    assert "ant/1.png and " in note or "ant/2.png and " in note
    [told] = [note for note in notes(data) if "have two labels" in note]  # as before
    assert told.split(": ")[1].startswith("1 images")
    report = audit.audit(data, dataset=None, measure=False)
    assert any("2 pairs of training images of two classes look like one photograph" in note for note in report.notes)
