"""Post-hoc outlier scores with constants that are fitted once on training images.

A score `name(seen, **constants)` gives [N], larger = more outlying; `fit_name(reference)` gives its constants. Scores
are arithmetic with shapes fixed but for N, so they can be exported; constants are fitted in float64.
"""

from bisect import bisect_right
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

REACT_PERCENTILE = 90
NCI_NORM_WEIGHT = 0.001  # within the 1e-4 … 0.1 that the paper sweeps; fixed, for choosing it would take outliers
VIM_MAX_DIMENSIONS = 1000
KNN_BANK_IMAGES = 4096
BACKGROUND_QUANTILE, BACKGROUND_BELOW = 0.05, 4.0
KNN_SHARE = 0.001  # the paper's K at each of its bank sizes: 50 of 50,000, 10 of 12,800, 1,000 of 1.28 million
TINY = 1e-12


class Seen(NamedTuple):
    """The outputs of the network on N images that scores read."""

    features: Tensor  # [N, F] penultimate
    logits: Tensor  # [N, C] of the classes
    reject: Tensor  # [N, R] reject logits; R = 0 where the network has none


class Reference(NamedTuple):
    """The training images and the linear head on which scores are fitted."""

    features: Tensor  # [N, F]
    logits: Tensor  # [N, C]
    labels: Tensor  # [N] int
    weight: Tensor  # [C, F]
    bias: Tensor  # [C]
    reject: Tensor | None = None  # [N, R], where the network has reject logits


Constants = dict[str, Tensor]
Given = TypeVar("Given", Seen, Reference)


def unit_length(given: Given) -> Given:
    """With features of length 1; a feature vector of zeros stays zero."""
    return given._replace(features=F.normalize(given.features, dim=1))


def _length(rows: Tensor) -> Tensor:
    """Euclidean norms, [N, F] → [N]."""
    return torch.linalg.vector_norm(rows, dim=1)  # type: ignore[no-any-return, unused-ignore]


# ------------------------------------------------------------------------------------------- a background of outliers


def background(seen: Seen, constant: Tensor) -> Tensor:
    """log(Σ e^r + e^c) − logsumexp z: log-odds of the reject classes and of a background of constant density e^c.

    The reject classes know the outliers of training alone. Where an image is like none of those, r is low, and the
    constant still rejects what is unlikely under every class. This project.
    """
    outside = torch.logaddexp(seen.reject.logsumexp(dim=1), constant)
    return outside - seen.logits.logsumexp(dim=1)


def fit_background(reference: Reference) -> Constants:
    """c [], 4 below the 5% quantile of logsumexp z of the training images."""
    mass = reference.logits.double().logsumexp(dim=1)
    low = np.quantile(mass.cpu().numpy(), BACKGROUND_QUANTILE)
    return {"constant": torch.tensor(float(low) - BACKGROUND_BELOW, dtype=torch.float32, device=mass.device)}


# ------------------------------------------------------------------------------------ features against the linear head


def react(seen: Seen, ceiling: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """−logsumexp(W·min(f, c) + b): the energy of clipped features (ReAct, Sun et al. 2021)."""
    return -F.linear(seen.features.minimum(ceiling), weight, bias).logsumexp(dim=1)


def fit_react(reference: Reference) -> Constants:
    """c [], the 90th percentile of all training activations; W [C, F], b [C]."""
    ceiling = np.percentile(reference.features.cpu().numpy(), REACT_PERCENTILE)  # torch.quantile stops at 2^24 values
    ceiling_tensor = torch.tensor(float(ceiling), device=reference.features.device)
    return {"ceiling": ceiling_tensor, "weight": reference.weight, "bias": reference.bias}


def fdbd(seen: Seen, mean: Tensor, inverse: Tensor) -> Tensor:
    """−mean over k ≠ c* of |z_c* − z_k| / ‖w_c* − w_k‖, over ‖f − μ‖; c* = argmax z (fDBD, Liu & Qin 2024)."""
    top, predicted = seen.logits.max(dim=1)
    distances = (top[:, None] - seen.logits) * inverse[predicted]  # (N, C)
    return -distances.sum(dim=1) / _length(seen.features - mean).clamp_min(TINY)


def fit_fdbd(reference: Reference) -> Constants:
    """μ [F]; 1 / ((C − 1)·‖w_i − w_j‖) [C, C], 0 for i = j and where two classes share one row: no boundary there."""
    weight = reference.weight.double()
    norms = torch.stack([_length(weight - row) for row in weight])  # not (C, C, F) at once
    inverse = torch.where(norms > TINY, 1 / norms.clamp_min(TINY), 0) / max(len(weight) - 1, 1)
    return {"mean": reference.features.double().mean(dim=0).float(), "inverse": inverse.float()}


def nci(seen: Seen, mean: Tensor, weight: Tensor) -> Tensor:
    """−w_c*·(f − μ)/‖f − μ‖ − a·‖f‖₁; c* = argmax z, a = 0.001 (NCI, Liu & Qin 2025)."""
    direction = F.normalize(seen.features - mean, dim=1)
    proximity = (weight[seen.logits.argmax(dim=1)] * direction).sum(dim=1)
    return -proximity - NCI_NORM_WEIGHT * seen.features.abs().sum(dim=1)


def fit_nci(reference: Reference) -> Constants:
    """μ [F], W [C, F]."""
    return {"mean": reference.features.double().mean(dim=0).float(), "weight": reference.weight}


# ------------------------------------------------------------------------------------ features against training images


def vim(seen: Seen, origin: Tensor, residual: Tensor, alpha: Tensor) -> Tensor:
    """α·‖Rᵀ(f − u)‖ − logsumexp z: a logit for what lies outside the principal space (ViM, Wang et al. 2022)."""
    return alpha * _length((seen.features - origin) @ residual) - seen.logits.logsumexp(dim=1)


def fit_vim(reference: Reference) -> Constants:
    """u = −W⁺b [F]; R [F, F − D], the eigenvectors of the covariance around u beyond D = min(F/2, 1000); α [].

    α = mean max z / mean ‖Rᵀ(f − u)‖. Where training features have next to no residual (dead features, few images)
    the denominator is at least 1e-4 of ‖f − u‖, or α would magnify rounding.
    """
    features, weight, bias = reference.features.double(), reference.weight.double(), reference.bias.double()
    # a head's rows sum to nearly 0 (softmax ignores the sum, weight decay shrinks it): its rank is taken at float32
    rank_tolerance = max(weight.shape) * torch.finfo(torch.float32).eps
    origin = -torch.linalg.pinv(weight, rtol=rank_tolerance) @ bias
    centred = features - origin
    size = features.shape[1]
    vectors = torch.linalg.eigh(centred.T @ centred / len(centred)).eigenvectors  # columns, eigenvalues ascending
    residual = vectors[:, : size - min(size // 2, VIM_MAX_DIMENSIONS)]
    floor = 1e-4 * _length(centred).mean() + TINY
    alpha = reference.logits.double().amax(dim=1).mean() / _length(centred @ residual).mean().maximum(floor)
    return {"origin": origin.float(), "residual": residual.float(), "alpha": alpha.float()}


def ncm(seen: Seen, means: Tensor) -> Tensor:
    """−max_c cos(f, μ_c): the nearest class mean by angle (Mensink et al. 2013). In [−1, 1]."""
    return -(unit_length(seen).features @ means.T).amax(dim=1)


def fit_ncm(reference: Reference) -> Constants:
    """μ [≤ C, F], the means of the features of length 1 of each class that has images, themselves of length 1."""
    features = unit_length(reference).features.double()
    _, index = torch.unique(reference.labels, return_inverse=True)
    sums = features.new_zeros(int(index.max()) + 1, features.shape[1]).index_add(0, index, features)
    return {"means": F.normalize(sums, dim=1).float()}


def knn(seen: Seen, bank: Tensor) -> Tensor:
    """−(K-th largest cosine to a bank image), K = 0.1% of the bank (KNN, Sun et al. 2022). In [−1, 1].

    It ranks as the distance √(2 − 2·cosine) to the K-th neighbour does.
    """
    neighbours = max(1, round(KNN_SHARE * len(bank)))
    return -(unit_length(seen).features @ bank.T).topk(neighbours, dim=1).values[:, -1]


def fit_knn(reference: Reference) -> Constants:
    """The bank [B, F] of features of length 1."""
    return {"bank": unit_length(reference).features[bank_images(reference.labels)]}


def bank_images(labels: Tensor) -> Tensor:
    """Which images [B] make the bank: as many of each class as there are, up to one cap that keeps B ≤ 4,096.

    So the tail is kept whole and only the head gives way. Within a class they lie evenly over its order, the same at
    each call. With more than 4,096 classes the bank holds one image of each.
    """
    classes, counts = torch.unique(labels, return_counts=True)
    cap = bisect_right(range(KNN_BANK_IMAGES + 1), KNN_BANK_IMAGES, key=lambda c: int(counts.clamp(max=c).sum())) - 1
    chosen = []
    for one in classes:
        members = (labels == one).nonzero().flatten()
        take = min(len(members), max(1, cap))
        chosen.append(members[torch.arange(take, device=labels.device) * len(members) // take])
    return torch.cat(chosen)
