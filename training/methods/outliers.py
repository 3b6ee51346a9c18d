"""Terms that teach the network from images that belong to no class: Step → scalar."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data.readers import ImageSet
from training.methods.step import Step
from training.network import distributed
from training.network.network import Network, to_input

OECC_BATCH, OECC_OUTLIERS = 128, 256  # Papadopoulos et al. sum over batches of these sizes
MEASURED_IMAGES = 256  # at once, for the training accuracy


def outlier_exposure(step: Step) -> Tensor:
    """Outlier Exposure (Hendrycks et al. 2019): mean over outliers of logsumexp_k z_k − mean_k z_k.

    This is the cross entropy from the uniform distribution to softmax(z).
    """
    z = step.outlier_logits
    return _mean(z.logsumexp(dim=1) - z.mean(dim=1))


def energy_margins(step: Step, *, out_above: float = -5.0) -> Tensor:
    """EnergyOE (Liu et al. 2020): mean relu(E_in − m_in)² + mean relu(m_out − E_out)², E = −logsumexp_k z_k.

    m_in is −23 below 50 classes and −27 from there on (CIFAR-10 and CIFAR-100), m_out = `out_above`.
    """
    in_below = -23.0 if step.logits.shape[-1] < 50 else -27.0
    inside, outside = -step.inliers.logsumexp(dim=1), -step.outlier_logits.logsumexp(dim=1)
    return _mean(F.relu(inside - in_below).square()) + _mean(F.relu(out_above - outside).square())


class EnergyScale(nn.Linear):
    """w and b of `energy_logistic`: w = 1, b = -log C to begin with, so that logits of 0 stand between in and out."""

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__(1, 1)
        nn.init.ones_(self.weight)
        nn.init.constant_(self.bias, -math.log(num_classes))


def energy_logistic(step: Step) -> Tensor:
    """Logistic regression of in and out on the energy (Du et al. 2022, eq. 6), w and b learned: free of any scale.

    −mean_in log sigmoid(w·s + b) − mean_out log sigmoid(−w·s − b), s = logsumexp_k z_k. EnergyOE's margins were made
    for the energies of a finished network of another recipe; here the network's own say where the limit lies.
    """
    scale = step.network.learned["outlier"]
    inside, outside = (scale(z.logsumexp(dim=1, keepdim=True)) for z in (step.inliers, step.outlier_logits))
    return _mean(F.softplus(-inside)) + _mean(F.softplus(outside))


def oecc(step: Step, *, confidence_weight: float = 0.07, uniform_weight: float = 0.05) -> Tensor:
    """OECC (Papadopoulos et al. 2021): λ1 Σ_in (max p − A)² + λ2 Σ_out Σ_k |p_k − 1/C|.

    Their sums run over 128 images and 256 outliers; here they are means times those sizes, so that the batch size does
    not change the weights. A is a constant: the training accuracy of the baseline, when the term begins.
    """
    logits = step.inliers
    accuracy = step.network.learned["outlier"].value
    assert isinstance(accuracy, Tensor)
    confidence = (logits.softmax(dim=1).amax(dim=1) - accuracy).square()
    distance = (step.outlier_logits.softmax(dim=1) - 1 / logits.shape[1]).abs().sum(dim=1)
    return (
        confidence_weight * OECC_BATCH * _mean(confidence) + uniform_weight * OECC_OUTLIERS * _mean(distance)
    )  # fmt: skip


class TrainingAccuracy(nn.Module):
    """OECC's A: the accuracy of the network on its training images, measured once; below 0 until then."""

    value: Tensor

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(-1.0))


@torch.no_grad()
def measure_accuracy(network: Network, train: ImageSet) -> None:
    """Set the network's TrainingAccuracy unless it is set: on the images as they are, in eval mode."""
    kept = network.learned["outlier"]
    assert isinstance(kept, TrainingAccuracy)
    if kept.value >= 0:
        return
    network.eval()
    right = torch.zeros_like(kept.value)
    for start in range(0, len(train.labels), MEASURED_IMAGES):
        part = slice(start, start + MEASURED_IMAGES)
        images, labels = (torch.from_numpy(a[part]).to(right.device) for a in (train.images, train.labels))
        right += (network(to_input(images))[0].argmax(dim=1) == labels).sum()
    kept.value.copy_(right / len(train.labels))
    network.train()


def outlier_class(step: Step) -> Tensor:
    """Cross entropy of the outliers to the one reject class beside the C classes (NTOM, COCL)."""
    z = step.outlier_joint
    return _mean(z.logsumexp(dim=1) - z[:, -1])


def outlier_class_adjusted(step: Step) -> Tensor:
    """Cross entropy of the outliers to the reject class, log π added to the logits of the C classes.

    With the logit-adjusted class loss (Menon et al. 2021) this is one model of C + 1 outcomes, p(k | x) ∝ π_k·e^z_k and
    p(out | x) ∝ e^r: z is the log of a class's density up to one constant, and is read without a prior. This project.
    """
    z = torch.cat([step.outlier_logits + (step.counts / step.counts.sum()).log(), step.outlier_reject], dim=1)
    return _mean(z.logsumexp(dim=1) - z[:, -1])


def sofl(step: Step) -> Tensor:
    """SOFL (Mohseni et al. 2020): cross entropy of each outlier to a reject class.

    The reject class is the one it falls into, or a random one while it falls into a class that is not for outliers.
    """
    z, classes = step.outlier_joint, step.outlier_logits.shape[1]
    rejects = step.outlier_reject.shape[1]
    best = z.argmax(dim=1)
    batch = (len(best) * distributed.world(),)  # drawn for the batch of all processes, as one process draws
    drawn = distributed.share(torch.randint(rejects, batch, generator=step.generator, device=z.device)) + classes
    target = torch.where(best >= classes, best, drawn)
    return _mean(z.logsumexp(dim=1) - z.gather(1, target[:, None]).squeeze(1))


class LogGamma(nn.Linear):
    """ImOOD's log γ(x): C numbers from the features, their bias starting at 0."""

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__(features, num_classes)
        nn.init.zeros_(self.bias)


def imood(step: Step) -> Tensor:
    """ImOOD (Liu et al. 2024), training form: L_bin + L_β with g the one reject logit, P(in) = sigmoid(g).

    β(x) = mean_k γ_k(x)·p(k|x)/π_k; p is the smoothed label (.2) inside and the network's own softmax outside.
        L_β   = mean relu(log β + log sigmoid(g)), g held fixed: keeps β·P(in) ≤ 1
        δ     = clamp(β + (β − 1)·e^g, .1, 10), at least 1 inside and at most 1 outside, held fixed
        L_bin = BCE(sigmoid(g − log δ), in)
    """
    inside, labels = step.inliers, step.inlier_labels
    num_classes = inside.shape[1]
    smoothed = F.one_hot(labels, num_classes).float() * 0.8 + 0.2 / num_classes
    posterior = torch.cat([smoothed, step.outlier_logits.detach().softmax(dim=1)])
    features = torch.cat([step.features.flatten(0, 1), step.outlier_features]).float()
    g = torch.cat([step.reject.flatten(0, 1), step.outlier_reject])[:, 0]
    is_in = torch.arange(len(g), device=g.device) < len(inside)
    gamma = step.network.learned["outlier"](features).exp().clamp(min=1e-4)
    prior = step.counts / step.counts.sum()
    beta = (gamma * posterior / prior).mean(dim=1)
    bound = F.relu(beta.log() + F.logsigmoid(g.detach())).mean()
    delta = (beta + (beta - 1) * g.exp()).detach().clamp(0.1, 10)
    delta = torch.where(is_in, delta.clamp(min=1), delta.clamp(max=1))
    return F.binary_cross_entropy_with_logits(g - delta.log(), is_in.float()) + bound


@dataclass(frozen=True)
class OutlierTerm:
    """A term, its paper, its default weight λ1, the score it trains, and the reject logits it adds to the network.

    `joint`: the reject logits share the softmax of the classes, so that the class loss pushes them down. `begin` is
    called with the network and the training set before the term's first step, and again after a resume.
    """

    term: Callable[[Step], Tensor]
    paper: str
    weight: float
    score: str = "msp"
    reject: Callable[[int], int] = lambda num_classes: 0
    joint: bool = True
    learned: Callable[[int, int], nn.Module] | None = None
    begin: Callable[[Network, ImageSet], None] | None = None


OUTLIER_TERMS = {
    "oe": OutlierTerm(outlier_exposure, "Hendrycks et al. 2019", 0.5),
    "energy-margins": OutlierTerm(energy_margins, "Liu et al. 2020", 0.1, "energy"),
    "energy-logistic": OutlierTerm(energy_logistic, "Du et al. 2022", 0.1, "energy", learned=EnergyScale),
    "oecc": OutlierTerm(
        oecc,
        "Papadopoulos et al. 2021",
        1.0,
        learned=TrainingAccuracy,
        begin=measure_accuracy,
    ),
    "outlier-class": OutlierTerm(outlier_class, "Chen et al. 2021", 1.0, "reject-mass", reject=lambda c: 1),
    "outlier-class-adjusted": OutlierTerm(
        outlier_class_adjusted, "this project", 0.5, "reject-mass", reject=lambda c: 1
    ),
    "sofl": OutlierTerm(sofl, "Mohseni et al. 2020", 5.0, "reject-mass", reject=lambda c: 5 if c < 50 else 10),
    "imood": OutlierTerm(imood, "Liu et al. 2024", 0.5, "in-or-out", reject=lambda c: 1, joint=False, learned=LogGamma),
}


def _mean(values: Tensor) -> Tensor:
    """The mean, and 0 (not NaN) of nothing."""
    return values.mean() if len(values) else values.sum()
