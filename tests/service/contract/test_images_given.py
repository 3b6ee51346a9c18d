"""The pictures of ../shared/cases/images, each with its right pixels beside it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.contract.images import load
from tests.service.contract.test_images import LIMIT, target

FOLDER = Path(__file__).resolve().parents[4] / "shared" / "cases" / "images"
CASES = json.loads((FOLDER / "cases.json").read_text()) if (FOLDER / "cases.json").is_file() else []
# A profile's colours were rounded once when the file was made and once here; 12 bits may be cut or rounded to 8.
SLACK = {"embedded": 2, "PNG gAMA": 4, "TIFF grey of 12 bits": 1}


@pytest.mark.skipif(not CASES, reason=f"no given pictures in {FOLDER}")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["file"])
def test_given_pictures_are_read_right(case: dict[str, str]) -> None:
    right = np.asarray(Image.open(FOLDER / case["right"]).convert("RGB"))
    data = (FOLDER / case["file"]).read_bytes()
    found = load(data, target(right.shape[1], right.shape[0]), max_pixels=LIMIT).pixels
    slack = next((value for words, value in SLACK.items() if case["kind"].startswith(words)), 0)
    np.testing.assert_allclose(found.astype(int), right, atol=slack)
