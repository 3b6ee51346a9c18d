"""The second stage: which parameters learn again, from in-distribution images only, and with which loss."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from training import losses
from training.network import Network


@dataclass(frozen=True)
class Stage2:
    """A decoupled stage: `learns` picks parameters and modules of a copy of the stage-1 network."""

    learns: Callable[[Network], list[nn.Module]]
    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    passes: int  # through the trunk at inference: 2 when the trunk's own state changes


def norms_and_head(network: Network) -> list[nn.Module]:
    """Every BatchNorm of the trunk, and the head."""
    return [m for m in network.trunk.modules() if isinstance(m, nn.BatchNorm2d)] + [network.head]


def head_only(network: Network) -> list[nn.Module]:
    return [network.head]


# Auxiliary branch finetuning (PASCL, Wang et al. 2022): BN + head from logit-adjusted cross entropy.
ABF = Stage2(norms_and_head, losses.logit_adjustment, passes=2)
# The same over the head alone: the trunk is shared, so an image needs one pass.
ABF_HEAD = Stage2(head_only, losses.logit_adjustment, passes=1)


def prepare(network: Network, stage: Stage2) -> list[nn.Parameter]:
    """Freeze everything but what learns, and set train mode there only, so that only its BN statistics move."""
    network.requires_grad_(False).eval()
    learning = stage.learns(network)
    for module in learning:
        module.requires_grad_(True).train()
    return [p for module in learning for p in module.parameters()]
