"""Terms that teach the network from images that belong to no class."""

from torch import Tensor


def outlier_exposure(outlier_logits: Tensor) -> Tensor:
    """Outlier Exposure (Hendrycks et al. 2019): mean over outliers of logsumexp_k z_k − mean_k z_k.

    This is the cross entropy from the uniform distribution to softmax(z). Logits [M, C] → scalar; 0 for M = 0.
    """
    if outlier_logits.shape[0] == 0:
        return outlier_logits.sum()
    return (outlier_logits.logsumexp(dim=1) - outlier_logits.mean(dim=1)).mean()
