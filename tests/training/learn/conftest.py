"""What the tests of learning share."""

from typing import Any

import numpy as np
import pytest

from training.network.features import FeatureCache


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each look through a backbone took, from now on."""
    counts: list[int] = []
    view = FeatureCache._view

    def counted(cache: FeatureCache, pixels: np.ndarray, *rest: Any) -> np.ndarray:
        counts.append(len(pixels))
        return view(cache, pixels, *rest)

    monkeypatch.setattr(FeatureCache, "_view", counted)
    return counts
