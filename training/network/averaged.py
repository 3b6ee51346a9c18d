"""Several heads on the same features, which learn from one start in another order each, and the mean of their logits.

Heads of several seeds differ most in the classes of the tail. Their mean depends less on the seed and is more accurate
than each of them. It costs nothing at inference: on features that stand still it is one linear head.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from training.network.network import CosineHead, Network

STATE = "averaged"


def turns(network: Network, state: dict[str, Any], number: int) -> Iterator[int]:
    """The number of each of `number` heads that is still to learn, `network` at the start of that; then it is the mean.

    What has learnt is kept in the run's `state`, so that a turn that was interrupted goes on where it was.
    """
    if number == 1:
        yield 0
        return
    kept = state.setdefault(STATE, {"start": _parameters(network), "learnt": []})
    for turn in range(len(kept["learnt"]), number):
        yield turn
        kept["learnt"].append(_parameters(network) | _rows(network))
        state.update(epoch=0, step=0, optimizer=None)
        network.load_state_dict(network.state_dict() | kept["start"])
    mean = {name: torch.stack([head[name] for head in kept["learnt"]]).mean(dim=0) for name in kept["start"]}
    network.load_state_dict(network.state_dict() | mean | {f"{name}.averaged": torch.tensor(True)
                                                           for name in _heads(network)})  # fmt: skip
    state.update({STATE: None, "network": network.state_dict()})


def title(stage: str, turn: int, number: int) -> str:
    """What a turn is called in the progress and in the history."""
    return stage if number == 1 else f"{stage} head {turn + 1} of {number}"


def _heads(network: Network) -> dict[str, CosineHead]:
    return {name: head for name in ("head", "reject") if isinstance(head := getattr(network, name), CosineHead)}


def _parameters(network: Network) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value.detach().cpu().clone()
        for name, head in _heads(network).items()
        for key, value in head.named_parameters()
    }


def _rows(network: Network) -> dict[str, Tensor]:
    """The weights of the heads as rows of length 1, which the logits of each stand on."""
    return {f"{name}.weight": head.rows().detach().cpu() for name, head in _heads(network).items()}
