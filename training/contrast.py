"""Contrastive terms over projected features."""

import torch
from torch import Tensor


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
    if partial:
        tail = tail_classes[labels]
        view1, view2, labels = view1[tail], view2[tail], labels[tail]
    inliers = torch.cat([view1, view2])  # (A, D)
    anchor_labels = torch.cat([labels, labels])
    features = torch.cat([inliers, outliers])  # (A + M, D)
    outlier_label = tail_classes.shape[0]  # one past the last class
    everyone = torch.cat([anchor_labels, anchor_labels.new_full((outliers.shape[0],), outlier_label)])
    anchors = inliers if asymmetric else features
    if anchors.shape[0] == 0:
        return features.sum() * 0

    similarity = anchors @ features.T / temperature  # (A, A + M)
    itself = torch.eye(anchors.shape[0], features.shape[0], dtype=torch.bool, device=features.device)
    log_probability = similarity - similarity.masked_fill(itself, -torch.inf).logsumexp(dim=1, keepdim=True)
    positive = (everyone[: anchors.shape[0], None] == everyone[None, :]) & ~itself
    counted = positive.sum(dim=1)
    per_anchor = -(log_probability.masked_fill(~positive, 0)).sum(dim=1) / counted.clamp(min=1)
    return per_anchor.sum() / (counted > 0).sum().clamp(min=1)
