"""Trunk, head and projection: ResNet in the CIFAR form (He et al. 2016, with the 3×3 stem and no max-pool)."""

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
    """ResNet-18: stages of [2, 2, 2, 2] blocks, width × 1, 2, 4, 8. Images in [0, 1] [N, 3, H, W] → [N, 8·width]."""

    def __init__(self, width: int = 64, blocks: tuple[int, ...] = (2, 2, 2, 2)) -> None:
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

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(images)))
        maps: Tensor = self.stages(x)  # (N, F, H/8, W/8)
        return maps.mean(dim=(2, 3))


class Network(nn.Module):
    """Trunk, linear head, and the projection head that only training uses.

    `forward` gives (logits [N, C], features [N, F]); `project` maps features to unit-norm [N, 128].
    """

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.trunk = Trunk(width)
        size = self.trunk.features
        self.head = nn.Linear(size, num_classes)
        self.projection = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 128))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(images)
        return self.head(features), features

    def project(self, features: Tensor) -> Tensor:
        return F.normalize(self.projection(features).float(), dim=1)


def to_input(images: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] → float32 [N, 3, H, W] in [0, 1], channels last in memory. No mean is subtracted (A2)."""
    return images.permute(0, 3, 1, 2).to(torch.float32).div_(255)


Placed = TypeVar("Placed", bound=nn.Module)


def place(module: Placed, device: torch.device) -> Placed:
    """`module` on `device`, its weights channels last in memory: a third faster on CPUs, and what GPUs prefer."""
    return module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
