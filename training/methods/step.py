"""The tensors of one stage-1 step, from which the terms of its loss are computed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from training.network.network import Network


@dataclass(frozen=True)
class Step:
    """One forward pass over V views of n images and one view of m outliers; this process's share of the batch.

    C classes, R reject logits (0 where the method has none), F features, D projected features. All are float32,
    whatever the precision of the pass: modules that a term trains beside the network run outside autocast.
    """

    network: Network
    logits: Tensor  # [V, n, C]
    reject: Tensor  # [V, n, R]
    features: Tensor  # [V, n, F]
    labels: Tensor  # int [n]
    outlier_logits: Tensor  # [m, C]
    outlier_reject: Tensor  # [m, R]
    outlier_features: Tensor  # [m, F]
    projected: Tensor  # [V, n, D], unit norm; empty unless the contrast term asks for it
    outlier_projected: Tensor  # [m, D]
    batch_labels: Tensor  # int [N]: of the whole batch, over all processes
    counts: Tensor  # int [C]: training images per class
    tail: Tensor  # bool [C]
    generator: torch.Generator

    @property
    def inliers(self) -> Tensor:
        """Logits [V·n, C], view after view."""
        return self.logits.flatten(0, 1)

    @property
    def inlier_labels(self) -> Tensor:
        """int [V·n], as in `inliers`."""
        return self.labels.repeat(len(self.logits))

    @property
    def outlier_joint(self) -> Tensor:
        """[m, C + R]: class logits, then reject logits."""
        return torch.cat([self.outlier_logits, self.outlier_reject], dim=1)
