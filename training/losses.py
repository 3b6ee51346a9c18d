"""Classification losses: (logits [N, C], labels int [N], counts [C]) → scalar, the mean over images."""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """−log softmax(z)_y. `counts` is not used: the signature is shared by every loss."""
    return F.cross_entropy(logits, labels)


def logit_adjustment(logits: Tensor, labels: Tensor, counts: Tensor, *, tau: float = 1.0) -> Tensor:
    """Cross entropy of z + τ·log π, π the prior (Menon et al. 2021; τ = 1 is balanced softmax, Ren et al. 2020)."""
    prior = counts.to(logits.dtype) / counts.sum()
    return F.cross_entropy(logits + tau * prior.log(), labels)
