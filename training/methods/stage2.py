"""The second stage: a copy of the stage-1 network, part of which is trained again or whose head is computed."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.methods import losses
from training.network.network import FROZEN_SCALE, CosineHead, FeatureTrunk, Network


class Solving(NamedTuple):
    """The inputs of a head in closed form."""

    weight: Tensor  # [C, F], of stage 1's head
    bias: Tensor  # [C]
    counts: Tensor  # int [C]: training images per class
    features: Tensor  # [M, F], of the calibration images
    labels: Tensor  # int [M]


@dataclass(frozen=True)
class Stage2:
    """One row of STAGES: `learns` picks the modules that are trained, or `solve` computes a linear head instead.

    `rebuild` changes the structure of the copy before it is trained or before its saved state is loaded.
    """

    paper: str
    learns: Callable[[Network], list[nn.Module]] | None = None
    solve: Callable[[Solving], tuple[Tensor, Tensor]] | None = None
    rebuild: Callable[[Network], None] | None = None
    loss: Callable[[Tensor, Tensor, Tensor], Tensor] = losses.cross_entropy
    sampler: str = "natural"
    on_features: bool = False  # trained on SMOTE's features [N', F] instead of images
    learning_rate: float = 5e-4
    passes: int = 1  # through the trunk at inference: 2 when the trunk's own state changes
    needs_calibration_images: bool = False


# ---- The modules that are trained ----


def norms_and_head(network: Network) -> list[nn.Module]:
    """Every BatchNorm of the trunk, and the head."""
    return [m for m in network.trunk.modules() if isinstance(m, nn.BatchNorm2d)] + [network.head]


def head_only(network: Network) -> list[nn.Module]:
    return [network.head]


def linear_head(network: Network) -> None:
    """A linear head with new random weights."""
    weight, _ = network.linear()
    network.head = nn.Linear(weight.shape[1], weight.shape[0]).to(weight.device)


def fresh_head(network: Network) -> None:
    """A head with new random weights, a cosine head where the network stands on a frozen backbone."""
    linear_head(network)
    if isinstance(network.trunk, FeatureTrunk):
        weight, _ = network.linear()
        network.head = CosineHead(weight.shape[1], weight.shape[0], FROZEN_SCALE).to(weight.device)


class ClassScales(nn.Module):
    """s_c · z_c of logits [N, C] (learnable weight scaling, Kang et al. 2020)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.ones(num_classes))

    def forward(self, logits: Tensor) -> Tensor:
        return self.scales * logits


def scaled_head(network: Network) -> None:
    weight, _ = network.linear()
    network.head = nn.Sequential(network.head, ClassScales(len(weight)).to(weight.device))


def scales_only(network: Network) -> list[nn.Module]:
    assert isinstance(network.head, nn.Sequential)
    return [network.head[1]]


# ---- Closed forms: (weight [C, F], bias [C]) of the new head ----


def tau_norm(at: Solving) -> tuple[Tensor, Tensor]:
    """w_c / ‖w_c‖^τ without bias (Kang et al. 2020); τ from 0, .1, … 2 by mean class accuracy on calibration images."""
    norms = at.weight.norm(dim=1, keepdim=True).clamp(min=1e-12)
    truth = F.one_hot(at.labels, len(at.counts)).double()
    images = truth.sum(dim=0)

    def mean_class_accuracy(weight: Tensor) -> float:
        hit = (at.features @ weight.T).argmax(dim=1) == at.labels
        return ((truth * hit[:, None]).sum(dim=0) / images)[images > 0].mean().item()

    heads = [at.weight / norms ** (step / 10) for step in range(21)]
    return max(heads, key=mean_class_accuracy), torch.zeros_like(at.bias)  # of equal ones the smallest τ


def prior_correction(at: Solving) -> tuple[Tensor, Tensor]:
    """z − log π: logit adjustment after training (Menon et al. 2021, τ = 1)."""
    return at.weight, at.bias - (at.counts / at.counts.sum()).log()


STAGES = {
    # Auxiliary branch finetuning: BN + head from logit-adjusted cross entropy.
    "abf": Stage2("Wang et al. 2022", norms_and_head, loss=losses.logit_adjustment, passes=2),
    # The same over the head alone: the trunk is shared, so an image needs one pass.
    "abf-head": Stage2("Wang et al. 2022", head_only, loss=losses.logit_adjustment),
    "crt": Stage2("Kang et al. 2020", head_only, rebuild=fresh_head, sampler="balanced", learning_rate=5e-3),
    "crt-smote": Stage2("Chawla et al. 2002", head_only, rebuild=fresh_head, on_features=True, learning_rate=5e-3),
    "lws": Stage2("Kang et al. 2020", scales_only, rebuild=scaled_head, sampler="balanced", learning_rate=5e-3),
    "tau-norm": Stage2("Kang et al. 2020", rebuild=linear_head, solve=tau_norm, needs_calibration_images=True),
    "la-posthoc": Stage2("Menon et al. 2021", rebuild=linear_head, solve=prior_correction),
}


def branch(network: Network, stage: Stage2) -> Network:
    """A copy of `network` in the structure that `stage` gives it."""
    made = copy.deepcopy(network)
    if stage.rebuild:
        stage.rebuild(made)
    return made


def prepare(network: Network, stage: Stage2) -> list[nn.Parameter]:
    """Freeze all but the trained modules and set train mode there alone, so that only their BN statistics change.

    Those of a pretrained trunk do not change.
    """
    assert stage.learns is not None
    network.requires_grad_(False).eval()
    learning = stage.learns(network)
    for module in learning:
        module.requires_grad_(True).train(not isinstance(network.trunk, FeatureTrunk))
    return [p for module in learning for p in module.parameters()]
