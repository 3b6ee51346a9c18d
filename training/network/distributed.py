"""What the processes of `torchrun` exchange, so that together they give the loss curve of one process.

Exchanged, and why:
- BatchNorm statistics: in-distribution images and outliers are normalised jointly (REFERENCE A4), over the whole batch.
- Projected features: the contrastive term compares every tail image with every outlier of the whole batch.
- Gradients and losses: averaged, in one flat buffer; each process's loss is the mean over its own share.
- Sums of weights: a loss that divides by the weights in the batch divides by those of the whole batch.
Every process draws the whole batch from the same generator and keeps its own share.
"""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def start(device: torch.device) -> None:
    """Join the process group when torchrun started this process: nccl on GPUs, gloo on CPUs."""
    if launched() and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def own_rows(size: int) -> slice:
    """Which rows of a batch of `size` are this process's."""
    n = size // world()
    return slice(rank() * n, (rank() + 1) * n)


def share(batch: Tensor) -> Tensor:
    """This process's part of a batch: [N, …] → [N / world, …]."""
    return batch[own_rows(len(batch))]


class _Gather(torch.autograd.Function):
    """[n, D] of each process → [n · world, D] on every process.

    Every process computes the same loss from the gathered rows, and gradients are averaged afterwards: the gradient of
    the own rows times `world` is therefore the exact one, without another exchange.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(world())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return share(gradient) * world()


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes, in the order of the whole batch; differentiable."""
    gathered: Tensor = rows if world() == 1 else _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the batch of all processes. (torch's own SyncBatchNorm refuses CPU tensors.)"""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        y = x.float()
        moments = torch.stack([y.mean(dim=(0, 2, 3)), y.square().mean(dim=(0, 2, 3))])
        mean, square = _Sum.apply(moments / world())  # type: ignore[no-untyped-call]
        variance = (square - mean.square()).clamp(min=0)  # rounding can fall below 0
        with torch.no_grad():
            n = x.numel() // x.shape[1] * world()
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.momentum is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (n / (n - 1)), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        out: Tensor = (y * scale[:, None, None] + shift[:, None, None]).to(x.dtype)
        return out


def synchronise_norms(network: nn.Module) -> None:
    """Let every BatchNorm2d of `network` take its statistics over all processes. Parameters and their names stay."""
    if world() > 1:
        for module in network.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = SyncBatchNorm


def average(parameters: list[nn.Parameter], losses: dict[str, Tensor], flag: bool) -> tuple[dict[str, Tensor], bool]:
    """Average the gradients over processes, in place; returns the average losses and whether any process set `flag`."""
    losses = {name: value.detach() for name, value in losses.items()}
    if world() == 1:
        return losses, flag
    shared = [p.grad for p in parameters if p.grad is not None] + [torch.stack([*losses.values()])]
    flat = torch.cat([t.reshape(-1) for t in shared] + [shared[0].new_full((1,), float(flag))])
    dist.all_reduce(flat)
    flat /= world()
    start_at = 0
    for tensor in shared:
        tensor.copy_(flat[start_at : start_at + tensor.numel()].view_as(tensor))
        start_at += tensor.numel()
    return dict(zip(losses, shared[-1].unbind(), strict=True)), bool(flat[-1] > 0)


def mean(value: Tensor) -> Tensor:
    """The mean of a value over the processes, without a gradient."""
    if world() == 1:
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world()


def launched() -> bool:
    """Whether torchrun started this process."""
    return "RANK" in os.environ


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))
