"""Features brought to a FeatureTrunk's form once, before a head learns on them, instead of in every step.

The form depends on nothing that learns, and making it takes more than half of the time of a step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from training.data.loading import Data
from training.data.readers import FeatureViews
from training.network.network import FeatureTrunk, Network

ROWS = 256  # at once: so few stay in a cache, which takes a third of the time of 4,096


@contextmanager
def standardised(network: Network, data: Data) -> Iterator[Data]:
    """`data` with training images and outliers as the network's trunk makes them, which it then takes as they are.

    Only meanwhile: afterwards the trunk takes features as a backbone gives them. A network that takes images, with a
    trunk of its own or a backbone that is tuned, and its data, stay as they are.
    """
    trunk = network.trunk
    if not isinstance(trunk, FeatureTrunk) or data.train.images.ndim != 3:
        yield data
        return
    train, outliers = _made(trunk, data.train.images), _made(trunk, data.outliers)
    trunk.given_standardised = True
    try:
        yield replace(data, train=replace(data.train, images=train), outliers=outliers)
    finally:
        trunk.given_standardised = False


@torch.no_grad()
def _made(trunk: FeatureTrunk, features: FeatureViews) -> FeatureViews:
    """float32 [N, V, F] → the same, each view by itself."""
    made = np.empty(features.shape, np.float32)
    for start in range(0, len(features), ROWS):
        rows = torch.from_numpy(np.ascontiguousarray(features[start : start + ROWS])).to(trunk.mean.device)
        made[start : start + ROWS] = trunk.standardised(rows.flatten(0, 1)).reshape(rows.shape).cpu().numpy()
    return made
