"""What the tests of learning share."""

from typing import Any

import numpy as np
import pytest

from training.network.looks import Looks


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each look through a backbone took, from now on."""
    counts: list[int] = []
    view = Looks.view

    def counted(looks: Looks, pixels: np.ndarray, *rest: Any) -> np.ndarray:
        counts.append(len(pixels))
        return view(looks, pixels, *rest)

    monkeypatch.setattr(Looks, "view", counted)
    return counts
