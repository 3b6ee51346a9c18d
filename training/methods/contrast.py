"""Contrastive terms: they pull the images of a class together and push outliers away from the tail."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.methods.step import Step
from training.network import distributed

MASKED = -1e9  # exp of it is 0; the logarithm of a row that is masked altogether stays finite, and so its gradient


def pascl(
    view1: Tensor,
    view2: Tensor,
    outliers: Tensor,
    labels: Tensor,
    tail_classes: Tensor,
    *,
    temperature: float,
    partial: bool = True,
    asymmetric: bool = True,
) -> Tensor:
    """Partial and asymmetric supervised contrastive loss (PASCL, Wang et al. 2022).

    For each anchor i, the mean over its positives p (all other views with its label) of
        −log exp(f_i·f_p/T) / (Σ_{j≠i} exp(f_i·f_j/T) + Σ_o exp(f_i·f_o/T)).
    partial: only tail-class images are anchors, positives and negatives; otherwise every in-distribution image is.
    asymmetric: outliers stand in the denominator only; otherwise they form a class of their own, with anchors and
    positives like any other.

    Args:
        view1, view2: unit-norm [N, D], two views of the same N images.
        outliers: unit-norm [M, D].
        labels: int [N].
        tail_classes: bool [C], True for a tail class.
    Returns a scalar; 0 when there is no anchor with a positive.
    """
    inliers = torch.cat([view1, view2])  # (A, D)
    features = torch.cat([inliers, outliers])  # (A + M, D)
    outlier_label = tail_classes.shape[0]  # one past the last class
    everyone = torch.cat([labels, labels, labels.new_full((outliers.shape[0],), outlier_label)])
    anchors = inliers if asymmetric else features
    if anchors.shape[0] == 0:
        return features.sum() * 0

    # head images are masked and not taken out: their number is on the device, and reading it would wait for it
    part = torch.cat([tail_classes, tail_classes.new_ones(1)])[everyone] if partial else everyone >= 0  # (A + M,)
    similarity = anchors @ features.T / temperature  # (A, A + M)
    itself = torch.eye(anchors.shape[0], features.shape[0], dtype=torch.bool, device=features.device)
    left_out = itself | ~part[None, :]
    log_probability = similarity - similarity.masked_fill(left_out, MASKED).logsumexp(dim=1, keepdim=True)
    of_anchors = slice(anchors.shape[0])
    positive = (everyone[of_anchors, None] == everyone[None, :]) & ~left_out & part[of_anchors, None]
    counted = positive.sum(dim=1)
    per_anchor = -(log_probability.masked_fill(~positive, 0)).sum(dim=1) / counted.clamp(min=1)
    return per_anchor.sum() / (counted > 0).sum().clamp(min=1)


def pascl_term(step: Step, *, temperature: float, partial: bool = True, asymmetric: bool = True) -> Tensor:
    """`pascl` of the projected features of a step, over all processes."""
    one, two, outliers = (distributed.gather(p) for p in (*step.projected, step.outlier_projected))
    return pascl(
        one, two, outliers, step.batch_labels, step.tail,
        temperature=temperature, partial=partial, asymmetric=asymmetric,
    )  # fmt: skip


class Prototypes(nn.Module):
    """One learnable prototype per class [C, F]; COCL uses those of the tail."""

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(num_classes, features) / features**0.5)


def tail_prototypes(
    features: Tensor, labels: Tensor, outliers: Tensor, prototypes: Tensor, tail: Tensor, *, temperature: float = 0.07
) -> Tensor:
    """COCL's tail prototype loss (Miao et al. 2024).

    Cross entropy of each tail image to the prototype of its class, among the tail prototypes and the outliers of the
    batch. Similarity: the sum over two halves of the features of their cosines, over T. Features [N, F], labels int
    [N], outliers [M, F], prototypes [C, F], tail bool [C] → scalar; 0 without a tail image.
    """
    chosen = tail[labels]
    if not chosen.any():
        return features.sum() * 0 + prototypes.sum() * 0

    def halves(x: Tensor) -> Tensor:
        return torch.cat([F.normalize(half, dim=1) for half in x.chunk(2, dim=1)], dim=1)

    others = torch.cat([prototypes[tail], outliers])
    place = tail.cumsum(dim=0) - 1  # of a class among the tail prototypes
    similarity = halves(features[chosen]) @ halves(others).T / temperature
    return F.cross_entropy(similarity, place[labels[chosen]])


def head_triplet(heads: Tensor, outliers: Tensor, generator: torch.Generator, *, margin: float = 1.0) -> Tensor:
    """COCL's triplet of outliers and head images (Miao et al. 2024): mean relu(d(o, o⁺) − d(o, h) + margin).

    o⁺ is the farthest outlier of the batch, h a random head image, d Euclidean. [H, F], [M, F] → scalar; 0 when there
    is no head image or fewer than two outliers.
    """
    if len(heads) == 0 or len(outliers) < 2:
        return heads.sum() * 0 + outliers.sum() * 0
    with torch.no_grad():
        farthest = torch.cdist(outliers, outliers).argmax(dim=1)
        drawn = torch.randint(len(heads), (len(outliers),), generator=generator, device=heads.device)
    return F.triplet_margin_loss(outliers, outliers[farthest], heads[drawn], margin=margin)


def cocl(step: Step, *, temperature: float = 0.07, triplet_weight: float = 2.0) -> Tensor:
    """COCL's two terms: tail prototypes + 2 · head triplet (.05 and .1 on CIFAR, so λ2 = .05)."""
    features = distributed.gather(step.features.transpose(0, 1)).flatten(0, 1)  # (N·V, F), image by image
    outliers = distributed.gather(step.outlier_features)
    labels = step.batch_labels.repeat_interleave(len(step.features))
    vectors = step.network.learned["contrast"].vectors
    assert isinstance(vectors, Tensor)
    rank = torch.empty_like(step.counts)
    rank[step.counts.argsort(descending=True, stable=True)] = torch.arange(len(rank), device=rank.device)
    head = rank <= round(0.4 * len(rank))  # ≤: the authors' code takes one class more than 40%
    return tail_prototypes(
        features, labels, outliers, vectors, step.tail, temperature=temperature
    ) + triplet_weight * head_triplet(features[head[labels]], outliers, step.generator)


@dataclass(frozen=True)
class ContrastTerm:
    """A term, its paper, and what it needs: `projects` features through the projection head, `views` of each image.

    `weight` is λ2 and `temperature` T; None: PASCL's by the number of classes (methods.contrast_defaults).
    """

    term: Callable[..., Tensor]
    paper: str
    projects: bool
    views: int
    weight: float | None = None
    temperature: float | None = None
    learned: Callable[[int, int], nn.Module] | None = None


CONTRASTS = {
    "pascl": ContrastTerm(pascl_term, "Wang et al. 2022", projects=True, views=2),
    "cocl": ContrastTerm(
        cocl, "Miao et al. 2024", projects=False, views=1, weight=0.05, temperature=0.07, learned=Prototypes
    ),
}
