"""tests/loop/tail_or_unknown.py by hand: four refused images, two of them alike and far from every class."""

import math

import numpy as np
import pytest

from tests.loop import tail_or_unknown
from tests.loop.tail_or_unknown import Refused


def refused(tail: tuple[bool, ...] = (True, True, False, False)) -> Refused:
    rows = np.array([[1, 0, 0], [0.8, 0.6, 0], [0, 0, 1], [0, 0.6, 0.8]], np.float32)
    flags = np.array([False, False, True, True])
    return Refused(rows, np.array([3, 1, 2, 4], np.float32), flags, np.array(tail))


def test_signs_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_or_unknown, "NEIGHBOURS", 1)
    known = np.array([[1, 0, 0]], np.float32)
    found = tail_or_unknown.signs(refused(), known, np.array([-1, -1, 0, 0]))
    assert found.keys() == tail_or_unknown.SIGNS.keys()
    np.testing.assert_allclose(found["class"], [0, 0.2, 1, 1], atol=1e-6)
    np.testing.assert_allclose(found["alone"], [-0.2, -0.2, -0.2, -0.2], atol=1e-6)
    np.testing.assert_allclose(found["both"], [-0.2, 0, 0.8, 0.8], atol=1e-6)
    assert found["size"].tolist() == [1, 1, 2, 2]
    np.testing.assert_allclose(found["group"], [0, 0.2, 1, 1], atol=1e-6)
    auroc = tail_or_unknown.aurocs(refused(), found)
    assert (auroc["class"], auroc["size"]) == (1, 1)
    assert auroc["score"] == 0.75  # of (3, 1) against (2, 4): 3 of 4 pairs


def test_without_tail_images_there_is_nothing_to_tell() -> None:
    found = {"score": refused().score}
    assert math.isnan(tail_or_unknown.aurocs(refused((False,) * 4), found)["score"])
