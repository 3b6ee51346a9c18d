"""service/contract/outcomes.py: what is written is read, and every damaged or hostile file is refused by name."""

import io
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.contract import bundle, outcomes
from service.contract.bundle import BundleError
from service.contract.outcomes import Outcomes
from tests.service import tiny

GOOD = Outcomes(np.array([0, 1, 2, -1]), np.array([0, 1, 1, 0]), np.array([-9.0, -8, -7, -1]), np.ones(4))


def npz(**changes: Any) -> bytes:
    """A good file but for `changes`; None leaves an array out."""
    arrays = {name: np.asarray(getattr(GOOD, name), dtype) for name, dtype in outcomes.REQUIRED.items()} | changes
    buffer = io.BytesIO()
    np.savez(buffer, **{name: value for name, value in arrays.items() if value is not None})
    return buffer.getvalue()


def test_what_is_written_is_read_back():
    found = outcomes.decode(outcomes.encode(GOOD), 3)
    for name in outcomes.REQUIRED:
        np.testing.assert_array_equal(getattr(found, name), getattr(GOOD, name))
    assert found.known.tolist() == [True, True, True, False]
    assert outcomes.encode(GOOD) == outcomes.encode(GOOD)
    assert (found.unfit, found.refused_anyway.tolist()) == (None, [False] * 4)  # as earlier versions wrote it
    told = outcomes.decode(outcomes.encode(replace(GOOD, unfit=np.array([False, True, False, True]))), 3)
    assert told.unfit is not None
    assert told.unfit.dtype == bool
    assert told.refused_anyway.tolist() == [False, True, False, True]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no .npz file"),
        (npz(label=None), "it holds"),
        (npz(more=np.zeros(4, np.float32)), "it holds"),
        (npz(label=np.array([0, 1, 2, 3], np.int32)), "label runs from 0 to 3, of 3 classes"),
        (npz(label=np.array([0, 1, 2, -2], np.int32)), "label runs from -2"),
        (npz(predicted=np.array([0, 1, 2, -1], np.int32)), "predicted runs from -1"),
        (npz(label=np.full(4, -1, np.int32)), "no in-distribution image"),
        (npz(score=np.array([0, 1, 2, np.nan], np.float32)), "not finite"),
        (npz(weight=np.array([1, 1, 1, -1], np.float32)), "below 0"),
        (npz(unfit=np.array([0, 1, 2, 0], np.uint8)), "unfit holds more than 0 and 1"),
        (npz(unfit=np.zeros(4, bool)), "unfit is [|]b1"),
        (npz(unfit=np.zeros(5, np.uint8)), "the same length"),
        (npz(score=np.zeros(4)), "score is <f8"),
        (npz(score=np.zeros(3, np.float32)), "the same length"),
        (npz(**{name: np.zeros((2, 2), dtype) for name, dtype in outcomes.DTYPES.items()}), "the same length"),
        (npz(score=np.array([{}] * 4, object)), "score is [|]O"),
    ],
)
def test_a_bad_file_is_refused(content, reason):
    with pytest.raises(ValueError, match=reason):
        outcomes.decode(content, 3)


def test_a_header_that_claims_more_than_there_is_is_not_believed():
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(npz())) as good, zipfile.ZipFile(out, "w") as bad:
        for info in good.infolist():
            content = good.read(info)
            if info.filename == "score.npy":
                file = io.BytesIO()
                np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)})
                content = file.getvalue()
            bad.writestr(info.filename, content)
    with pytest.raises(ValueError, match="score says that it is"):
        outcomes.decode(out.getvalue(), 3)


def test_a_bundle_with_outcomes_is_read_and_one_that_says_otherwise_is_refused(tmp_path: Path):
    files = tiny.files() | {outcomes.FILE: outcomes.encode(GOOD)}
    said = GOOD.described().model_dump()
    assert said == {"file": "calibration.npz", "in_distribution_images": 3, "outlier_images": 1}
    good = tiny.write(tmp_path / "good", files=files, outcomes=said)
    found = outcomes.read(good, bundle.read(good))
    assert found is not None
    assert found.label.tolist() == [0, 1, 2, -1]
    bad = tiny.write(tmp_path / "bad", files=files, outcomes=said | {"outlier_images": 2})
    with pytest.raises(BundleError, match="holds 3 images and 1 outliers, its manifest says 3 and 2"):
        outcomes.read(bad, bundle.read(bad))
    with pytest.raises(BundleError, match=r"'calibration\.npz' is not among the files"):
        tiny.write(tmp_path / "none", outcomes=said)
    plain = tiny.write(tmp_path / "plain")
    assert outcomes.read(plain, bundle.read(plain)) is None
