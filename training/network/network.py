"""Trunk, heads and projection: ResNet in the CIFAR form (He et al. 2016, with the 3×3 stem and no max-pool)."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FROZEN_SCALE = 25.0  # of cosine heads on a frozen backbone


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut. [N, C_in, H, W] → [N, C_out, H/stride, W/stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Trunk(nn.Module):
    """ResNet-18: stages of [2, 2, 2, 2] blocks, width × 1, 2, 4, 8. Images in [0, 1] [N, 3, H, W] → [N, 8·width].

    `unit_norm`: features of length 1, for a cosine head.
    """

    def __init__(self, width: int = 64, blocks: tuple[int, ...] = (2, 2, 2, 2), *, unit_norm: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        stages: list[nn.Module] = []
        channels = width
        for stage, depth in enumerate(blocks):
            for block in range(depth):
                outputs = width * 2**stage
                stages.append(Block(channels, outputs, 2 if block == 0 and stage > 0 else 1))
                channels = outputs
        self.stages = nn.Sequential(*stages)
        self.features = channels
        self.unit_norm = unit_norm

    def raw(self, images: Tensor) -> Tensor:
        """The mean of the last maps over their positions, [N, F]."""
        x = F.relu(self.bn(self.conv(images)))
        maps: Tensor = self.stages(x)  # (N, F, H/8, W/8)
        return maps.mean(dim=(2, 3))

    def finished(self, raw: Tensor) -> Tensor:
        """What `raw` gives to the features that the head stands on."""
        return F.normalize(raw.float(), dim=1) if self.unit_norm else raw

    def forward(self, images: Tensor) -> Tensor:
        return self.finished(self.raw(images))


class CosineHead(nn.Linear):
    """Logits scale · cos(f, w_c) + b_c of unit-norm features [N, F]; b stays 0 unless `learns_bias`.

    LDAM's head (Cao et al. 2019) has scale 30 and no bias. `averaged`: w_c is the mean of such rows of several heads,
    shorter than 1 where they differ, and the logits are the mean of theirs.
    """

    averaged: Tensor

    def __init__(self, inputs: int, outputs: int, scale: float = 30.0, *, learns_bias: bool = False) -> None:
        super().__init__(inputs, outputs)
        self.scale = scale
        self.register_buffer("averaged", torch.tensor(False))
        self.register_load_state_dict_pre_hook(_of_one_head)  # type: ignore[no-untyped-call]
        nn.init.zeros_(self.bias)
        self.bias.requires_grad_(learns_bias)

    def rows(self) -> Tensor:
        """w [C, F]."""
        return torch.where(self.averaged, self.weight, F.normalize(self.weight, dim=1))

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.linear(features, self.rows()) + self.bias


def _of_one_head(_: nn.Module, state: dict[str, Any], prefix: str, *__: object) -> None:
    """What was written before heads were averaged says nothing of it."""
    state.setdefault(f"{prefix}averaged", torch.tensor(False))


class FeatureTrunk(nn.Module):
    """What stands on a frozen backbone: features float [N, V, F] (the first view) or [N, F] → [N, F] of length 1.

    Where the training features are nowhere negative (a backbone that ends in a ReLU) the square root is taken first: it
    evens out their long right tails. Then they are standardised, with the mean and deviation of the training images.
    `adapts` adds a residual bottleneck, without which a contrastive term, which acts on the features alone, would
    change nothing.
    """

    mean: Tensor
    deviation: Tensor
    rooted: Tensor
    BOTTLENECK = 256
    LEAST_DEVIATION = 0.05  # of the median one: a feature that hardly ever varies must not outweigh the others
    LEAST_ROOTED = 1e-12  # the root of 0 has no gradient, for a trunk that is trained too

    def __init__(self, features: int, *, adapts: bool = False) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))
        self.register_buffer("rooted", torch.tensor(False))
        self.given_standardised = False  # see standardised.py
        self.adapter: nn.Sequential | None = None
        if adapts:
            self.adapter = nn.Sequential(
                nn.Linear(features, self.BOTTLENECK), nn.ReLU(), nn.Linear(self.BOTTLENECK, features)
            )
            nn.init.zeros_(self.adapter[2].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.adapter[2].bias)  # type: ignore[arg-type]

    def fit(self, features: Tensor) -> None:
        """Take from training features [N, F] whether they are rooted, and their mean and deviation."""
        self.rooted.fill_(bool(len(features)) and bool((features >= 0).all()))
        deviation, mean = torch.std_mean(self._rooted(features).double(), dim=0, correction=0)
        self.mean.copy_(mean)
        self.deviation.copy_(deviation.clamp_min(self.LEAST_DEVIATION * deviation.median()).clamp_min(1e-6))

    def _rooted(self, features: Tensor) -> Tensor:
        return torch.where(self.rooted, features.clamp_min(self.LEAST_ROOTED).sqrt(), features)

    def standardised(self, features: Tensor) -> Tensor:
        """Features [N, F] as the backbone gives them → [N, F] of length 1."""
        return F.normalize((self._rooted(features) - self.mean) / self.deviation, dim=1)

    def raw(self, features: Tensor) -> Tensor:
        """The features [N, F] of the backbone: of several views [N, V, F] the first."""
        return features[:, 0] if features.ndim == 3 else features

    def finished(self, raw: Tensor) -> Tensor:
        """What `raw` gives to the features that the head stands on."""
        x = raw if self.given_standardised else self.standardised(raw)
        return x if self.adapter is None else F.normalize(x + self.adapter(x), dim=1)

    def forward(self, features: Tensor) -> Tensor:
        return self.finished(self.raw(features))


class Network(nn.Module):
    """Trunk, head, reject logits where a method has them, and what only training uses.

    `forward` gives (logits [N, C], features [N, F]); `rejects` the reject logits [N, R]; `project` maps features to
    unit-norm [N, 128]. `learned` builds what a method's terms learn beside the network, from (F, C).
    """

    def __init__(
        self, num_classes: int, width: int = 64, *, trunk: FeatureTrunk | None = None, reject: int = 0,
        cosine: bool = False, learned: Mapping[str, Callable[[int, int], nn.Module]] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.trunk: Trunk | FeatureTrunk = trunk or Trunk(width, unit_norm=cosine)
        size = self.trunk.features
        self.head: nn.Module = nn.Linear(size, num_classes)
        if cosine or trunk:
            self.head = CosineHead(size, num_classes, *(() if cosine else (FROZEN_SCALE,)))
        self.projection = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 128))
        self.reject: nn.Linear | None = None
        if reject:
            on_features = trunk is not None
            self.reject = (
                CosineHead(size, reject, FROZEN_SCALE, learns_bias=True) if on_features else nn.Linear(size, reject)
            )
        self.learned = nn.ModuleDict({name: build(size, num_classes) for name, build in (learned or {}).items()})

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(images)
        return self.head(features), features

    def rejects(self, features: Tensor) -> Tensor:
        out: Tensor = features[:, :0] if self.reject is None else self.reject(features)
        return out

    def project(self, features: Tensor) -> Tensor:
        return F.normalize(self.projection(features).float(), dim=1)

    @torch.no_grad()
    def begin_on(self, features: Tensor, labels: Tensor, outliers: Tensor) -> None:
        """Fit the trunk's standardisation and begin heads at means: classes at theirs, reject rows at the outliers'.

        `features` float [N, F] and `outliers` [M, F] of a frozen backbone, labels int [N]. Only for a FeatureTrunk.
        """
        assert isinstance(self.trunk, FeatureTrunk)
        assert isinstance(self.head, nn.Linear)
        self.trunk.fit(features)
        inside = self.trunk(features)
        means = torch.zeros_like(self.head.weight).index_add_(0, labels, inside)
        seen = means.norm(dim=1) > 0
        self.head.weight[seen] = F.normalize(means, dim=1)[seen]
        if self.reject is not None and len(outliers):
            mean = F.normalize(self.trunk(outliers).mean(dim=0), dim=0)
            apart = 0.02 * torch.randn(self.reject.weight.shape) if len(self.reject.weight) > 1 else 0
            self.reject.weight.copy_(mean + apart)

    def linear(self) -> tuple[Tensor, Tensor]:
        """(weight [C, F], bias [C]) of the head as a linear map of the features."""
        assert isinstance(self.head, nn.Linear)
        if isinstance(self.head, CosineHead):
            return self.head.scale * self.head.rows(), self.head.bias
        return self.head.weight, self.head.bias


def to_input(images: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] → float32 [N, 3, H, W] in [0, 1], channels last in memory. No mean is subtracted (A2).

    Features float32 [N, V, F] of a frozen backbone pass as they are.
    """
    if images.is_floating_point():
        return images
    return images.permute(0, 3, 1, 2).to(torch.float32).div_(255)


def first_not_finite(network: nn.Module) -> str | None:
    """The name of the first parameter or buffer with a value that is NaN or infinite."""
    tensors = {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
    finite = torch.stack([value.isfinite().all() for value in tensors.values()]).tolist()  # waits once
    return next((name for name, good in zip(tensors, finite, strict=True) if not good), None)


Placed = TypeVar("Placed", bound=nn.Module)


def place(module: Placed, device: torch.device) -> Placed:
    """`module` on `device`, its weights channels last in memory: a third faster on CPUs, and what GPUs prefer."""
    return module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
