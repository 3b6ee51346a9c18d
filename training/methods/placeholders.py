"""Outliers made of the training images themselves: mixtures of two classes."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from training.methods.step import Step

LEAST_SHARE = 0.35  # of the smaller part: a mixture is to lie between the classes


def with_placeholders(step: Step) -> Step:
    """`step` with data placeholders among its outliers (PROSER, Zhou et al. 2021): mixtures of two classes' features.

    Of the first view's features f, x = λ·f_i + (1 − λ)·f_j for images i, j of different classes, at the length between
    theirs; λ is uniform in [.35, .65] here, of a Beta distribution there. What lies between two classes, as a near
    outlier does, is otherwise accepted as the more alike.
    """
    mixed = mixtures(step.features[0], step.labels, step.generator)
    network = step.network
    projected = network.project(mixed) if step.outlier_projected.shape[1] else mixed[:, :0]
    return replace(
        step,
        outlier_logits=torch.cat([step.outlier_logits, network.head(mixed).float()]),
        outlier_reject=torch.cat([step.outlier_reject, network.rejects(mixed).float()]),
        outlier_features=torch.cat([step.outlier_features, mixed]),
        outlier_projected=torch.cat([step.outlier_projected, projected]),
    )


def mixtures(features: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Mixtures [m, F], m ≤ n, of features [n, F] with labels int [n]: of each image and another one, drawn, where their
    classes differ."""
    device = features.device
    other = torch.randperm(len(features), generator=generator, device=device)
    share = LEAST_SHARE + (1 - 2 * LEAST_SHARE) * torch.rand((len(features), 1), generator=generator, device=device)
    length = features.norm(dim=1, keepdim=True)
    mixed = F.normalize(share * features + (1 - share) * features[other], dim=1)
    mixed = mixed * (share * length + (1 - share) * length[other])
    differ: Tensor = mixed[labels != labels[other]]
    return differ
