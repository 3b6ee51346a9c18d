"""Trunk, heads and projection: ResNet in the CIFAR form (He et al. 2016, with the 3×3 stem and no max-pool)."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(images)))
        maps: Tensor = self.stages(x)  # (N, F, H/8, W/8)
        features = maps.mean(dim=(2, 3))
        return F.normalize(features.float(), dim=1) if self.unit_norm else features


class CosineHead(nn.Linear):
    """Logits scale · cos(f, w_c) of unit-norm features [N, F] (LDAM's head, Cao et al. 2019: scale 30, no bias)."""

    def __init__(self, inputs: int, outputs: int, scale: float = 30.0) -> None:
        super().__init__(inputs, outputs)
        self.scale = scale
        nn.init.zeros_(self.bias)
        self.bias.requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.linear(features, F.normalize(self.weight, dim=1))


class Network(nn.Module):
    """Trunk, head, reject logits where a method has them, and what only training uses.

    `forward` gives (logits [N, C], features [N, F]); `rejects` the reject logits [N, R]; `project` maps features to
    unit-norm [N, 128]. `learned` builds what a method's terms learn beside the network, from (F, C).
    """

    def __init__(
        self, num_classes: int, width: int = 64, *, reject: int = 0, cosine: bool = False,
        learned: Mapping[str, Callable[[int, int], nn.Module]] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.trunk = Trunk(width, unit_norm=cosine)
        size = self.trunk.features
        self.head: nn.Module = (CosineHead if cosine else nn.Linear)(size, num_classes)
        self.projection = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 128))
        self.reject = nn.Linear(size, reject) if reject else None
        self.learned = nn.ModuleDict({name: build(size, num_classes) for name, build in (learned or {}).items()})

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(images)
        return self.head(features), features

    def rejects(self, features: Tensor) -> Tensor:
        out: Tensor = features[:, :0] if self.reject is None else self.reject(features)
        return out

    def project(self, features: Tensor) -> Tensor:
        return F.normalize(self.projection(features).float(), dim=1)

    def linear(self) -> tuple[Tensor, Tensor]:
        """(weight [C, F], bias [C]) of the head as a linear map of the features."""
        assert isinstance(self.head, nn.Linear)
        if isinstance(self.head, CosineHead):
            return self.head.scale * F.normalize(self.head.weight, dim=1), self.head.bias
        return self.head.weight, self.head.bias


def to_input(images: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] → float32 [N, 3, H, W] in [0, 1], channels last in memory. No mean is subtracted (A2)."""
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
