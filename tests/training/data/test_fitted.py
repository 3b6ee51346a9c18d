"""training/data/fitted.py: images of files that change while a run goes through them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training import tiny
from training.data import decode, loading
from training.data.readers import DataError


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)


def test_a_file_that_was_changed_since_it_was_read_is_refused(tmp_path: Path) -> None:
    """Features of what is there now were kept as those of what was there, and the label with them."""
    for c, name in enumerate(("ant", "bee")):
        for i in range(4):
            save(tmp_path / "data" / name / f"{i}.png", 10 * c + i)
    for i in range(3):
        save(tmp_path / "strange" / f"{i}.png", 100 + i)
    given = tiny.config(dataset="folder", data=tmp_path / "data", imbalance=None, calibration_fraction=0.25)
    found = loading.load(given, target=decode.square(8))
    strange = loading.ood_sets([tmp_path / "strange"], 8, target=decode.square(8))["strange"]
    rows = np.arange(len(found.train.labels))
    before, unknown = found.train.images[rows], strange[np.arange(3)]
    np.testing.assert_array_equal(found.train.images[rows], before)
    for path in (tmp_path / "data").rglob("*.png"):
        save(path, 50)
    with pytest.raises(DataError, match=r"\.png cannot be read as an image \(it is not the file that was read before"):
        found.train.images[rows]
    save(tmp_path / "strange" / "1.png", 60)
    np.testing.assert_array_equal(strange[np.array([0, 2])], unknown[[0, 2]])
    with pytest.raises(DataError, match=r"1\.png cannot be read as an image \(it is not the file that was read before"):
        strange[np.arange(3)]
