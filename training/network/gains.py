"""The logit of the predicted class as a sum over features: what every one of them has brought, for this image.

    gains, rest = Gains(trunk, head)(raw, probabilities)      # logit = gains · raw + rest + the head's bias

`raw` is what the trunk gives before standardisation, a mean over positions of its last maps: a mean may be taken apart
again, so `gains · map(x, y) + rest` is what one position has brought (training/export/heat_map.py). No gradient is
taken, and nothing is approximated: lengths, roots and the adapter's ReLU stand as they are for the image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.network.network import CosineHead, FeatureTrunk, Trunk


def linear_map(head: nn.Module) -> tuple[Tensor, Tensor]:
    """(weight [C, F], bias [C]) of a head as a linear map of features; a scale by class stands behind it or not."""
    if isinstance(head, nn.Sequential):
        weight, bias = linear_map(head[0])
        scales: Tensor = head[1].scales  # type: ignore[assignment]
        return scales[:, None] * weight, scales * bias
    assert isinstance(head, nn.Linear)
    if isinstance(head, CosineHead):
        return head.scale * F.normalize(head.weight, dim=1), head.bias
    return head.weight, head.bias


class Gains(nn.Module):
    """(raw [N, F], probabilities [N, C]) → (gains [N, F], rest [N]) of the most probable class, of equals the first."""

    weight: Tensor
    LEAST_LENGTH = 1e-12  # that of F.normalize

    def __init__(self, trunk: Trunk | FeatureTrunk, head: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.register_buffer("weight", linear_map(head)[0].detach().clone())
        self.rooted = isinstance(trunk, FeatureTrunk) and bool(trunk.rooted)

    def forward(self, raw: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        raw = raw.float()
        gains = self.weight[probabilities.argmax(dim=1)]  # (N, F), of the features that the head takes
        nothing = torch.zeros_like(raw[:, 0])
        if isinstance(self.trunk, Trunk):
            return (gains / self._length(raw) if self.trunk.unit_norm else gains), nothing
        return self._through(self.trunk, raw, gains)

    def _through(self, trunk: FeatureTrunk, raw: Tensor, gains: Tensor) -> tuple[Tensor, Tensor]:
        """From the features that the head takes back to `raw`, step by step, as FeatureTrunk has made them of it."""
        rooted = raw.clamp_min(trunk.LEAST_ROOTED).sqrt() if self.rooted else raw
        form = (rooted - trunk.mean) / trunk.deviation
        length = self._length(form)
        rest = torch.zeros_like(raw[:, 0])
        if trunk.adapter is not None:
            into, _, out = trunk.adapter
            assert isinstance(into, nn.Linear)
            assert isinstance(out, nn.Linear)
            x = form / length
            inner: Tensor = into(x)
            gains = gains / self._length(x + out(inner.relu()))
            back = gains @ out.weight * (inner > 0)
            rest = rest + (gains * out.bias).sum(dim=1) + (back * into.bias).sum(dim=1)
            gains = gains + back @ into.weight
        gains = gains / length / trunk.deviation
        rest = rest - (gains * trunk.mean).sum(dim=1)
        if self.rooted:  # a root is shared out over the positions as the feature itself is
            there = raw > 0
            rest = rest + torch.where(there, 0.0, gains * rooted).sum(dim=1)
            gains = torch.where(there, gains * rooted / torch.where(there, raw, 1.0), 0.0)
        return gains, rest

    def _length(self, rows: Tensor) -> Tensor:
        found: Tensor = rows.norm(dim=1, keepdim=True)
        return found.clamp_min(self.LEAST_LENGTH)
