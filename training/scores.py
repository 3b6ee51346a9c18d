"""Outlier scores of logits [N, C] → [N]; larger = more outlying, here only. Each can stand in an exported graph."""

from collections.abc import Callable

from torch import Tensor


def msp(logits: Tensor) -> Tensor:
    """1 − max_k softmax(z)_k (maximum softmax probability, Hendrycks & Gimpel 2017). In [0, 1)."""
    return 1 - logits.softmax(dim=1).amax(dim=1)


def energy(logits: Tensor) -> Tensor:
    """−T·logsumexp_k(z_k / T) with T = 1 (Liu et al. 2020). Any real number."""
    return -logits.logsumexp(dim=1)


SCORES: dict[str, Callable[[Tensor], Tensor]] = {"energy": energy, "msp": msp}
FORMULAS = {"energy": "-T*logsumexp(z/T), z the stage-1 logits", "msp": "1 - max softmax(z), z the stage-1 logits"}
