"""Classification losses: (logits [N, K], labels int [N], counts [C]) → scalar, the mean over images.

Logits are float32; `counts` holds the training images n_c of each class. K may exceed C: the logits past C belong to
reject classes that no label here names. They stay in every softmax and are left as they are by what counts decide.
"""

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from training.network import distributed

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

BETA = 0.9999  # class-balanced weights, as in Cui et al. 2019 and LDAM's code


def cross_entropy(logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """−log softmax(z)_y. `counts` is not used: the signature is shared by every loss."""
    return F.cross_entropy(logits, labels)


# ------------------------------------------------------------------------------------------------ a weight per class


def weighted_softmax(logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Σ w_y·CE / Σ w_y over the batch, w_c ∝ 1/n_c with Σ_c w_c = C (the reweighting baseline of Cao et al. 2019)."""
    return _weighted(logits, labels, _pad(_weights(_like(counts, logits)), logits, 1))


def class_balanced(logits: Tensor, labels: Tensor, counts: Tensor, *, beta: float = BETA) -> Tensor:
    """Σ w_y·CE / Σ w_y, w_c ∝ (1 − β)/(1 − β^n_c) with Σ_c w_c = C, 0 < β < 1 (Cui et al. 2019)."""
    return _weighted(logits, labels, _effective_weights(logits, counts, beta))


def focal(logits: Tensor, labels: Tensor, counts: Tensor, *, gamma: float = 1.0) -> Tensor:
    """(1 − p_y)^γ · −log p_y (Lin et al. 2017), γ ≥ 1: below, the gradient has no limit as p_y goes to 1.

    γ = 1 as in LDAM's comparison. `counts` is not used.
    """
    loss = F.cross_entropy(logits, labels, reduction="none")  # (N,) = −log p_y
    return ((-(-loss).expm1()) ** gamma * loss).mean()  # 1 − p without cancellation near p = 1


# ------------------------------------------------------------------------------------------------ a margin per class


def ldam(logits: Tensor, labels: Tensor, counts: Tensor, *, scale: float = 30.0, largest: float = 0.5) -> Tensor:
    """Label-distribution-aware margins (Cao et al. 2019): cross entropy with s·m_y taken off z_y.

    m_c = const · n_c^(−1/4), the rarest class at `largest`. The logits are s·cosine already, from a cosine head.
    """
    return F.cross_entropy(_with_margins(logits, labels, counts, scale, largest), labels)


def ldam_class_balanced(
    logits: Tensor, labels: Tensor, counts: Tensor, *, scale: float = 30.0, largest: float = 0.5, beta: float = BETA
) -> Tensor:
    """LDAM with the weights of `class_balanced`: the late phase of deferred re-weighting (DRW, Cao et al. 2019)."""
    with_margins = _with_margins(logits, labels, counts, scale, largest)
    return _weighted(with_margins, labels, _effective_weights(logits, counts, beta))


# --------------------------------------------------------------------------------------------- a shift of the logits


def balanced_softmax(logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Cross entropy of z + log n (Ren et al. 2020). A reject class is shifted by 0 = log 1: as if it had one image."""
    return F.cross_entropy(logits + _pad(_at_least_one(counts, logits).log(), logits, 0), labels)


def logit_adjustment(logits: Tensor, labels: Tensor, counts: Tensor, *, tau: float = 1.0) -> Tensor:
    """Cross entropy of z + τ·log π, π the prior (Menon et al. 2021; τ = 1 is balanced softmax, Ren et al. 2020).

    A reject class is shifted by 0, its prior taken as 1. With K > C this is where the two losses differ: from
    `balanced_softmax` by log N in the shift of the reject classes against all others.
    """
    prior = _at_least_one(counts, logits) / counts.sum()
    return F.cross_entropy(logits + _pad(tau * prior.log(), logits, 0), labels)


LOSSES: dict[str, Loss] = {
    "cross-entropy": cross_entropy,
    "weighted-softmax": weighted_softmax,
    "class-balanced": class_balanced,
    "focal": focal,
    "ldam": ldam,
    "ldam-class-balanced": ldam_class_balanced,
    "balanced-softmax": balanced_softmax,
    "logit-adjustment": logit_adjustment,
}


def _weighted(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Σ w_y·CE / Σ w_y with weights [K], where the second sum is over the batch of all processes."""
    of_images = weights[labels]
    loss = of_images * F.cross_entropy(logits, labels, reduction="none")  # (N,)
    return loss.sum() / distributed.mean(of_images.sum())


# -------------------------------------------------------------------------------------------------- from the counts


def _like(counts: Tensor, logits: Tensor) -> Tensor:
    return counts.to(logits.device, logits.dtype)


def _at_least_one(counts: Tensor, logits: Tensor) -> Tensor:
    """Counts whose logarithm is finite: a class without images stands as one of a single image."""
    return _like(counts, logits).clamp(min=1)


def _pad(per_class: Tensor, logits: Tensor, value: float) -> Tensor:
    """[C] → [K]: `value` for the reject classes."""
    return F.pad(per_class, (0, logits.shape[1] - per_class.shape[0]), value=value)


def _weights(sizes: Tensor) -> Tensor:
    """Weights ∝ 1/size with sum C; 0, not infinity, for a class of size 0, which no label names."""
    inverse = (1 / sizes).masked_fill(sizes == 0, 0)
    return inverse * (len(sizes) / inverse.sum())


def _effective_weights(logits: Tensor, counts: Tensor, beta: float) -> Tensor:
    """[K]: 1 over the effective number (1 − β^n)/(1 − β); the constant 1 − β goes in normalising."""
    sizes = -(_like(counts, logits) * math.log(beta)).expm1()  # 1 − β^n: float32 keeps 4 digits of it written plainly
    return _pad(_weights(sizes), logits, 1)


def _with_margins(logits: Tensor, labels: Tensor, counts: Tensor, scale: float, largest: float) -> Tensor:
    """Logits with scale · m_y taken off the label's own. [N, K] → [N, K]."""
    sizes = _like(counts, logits)
    rarity = sizes.pow(-0.25).masked_fill(sizes == 0, 0)  # a class without images must not set the largest margin
    margins = _pad(largest * rarity / rarity.max(), logits, 0)
    return logits - scale * margins * F.one_hot(labels, logits.shape[1])
