"""One of the processes that test_distributed starts: SyncBatchNorm on its half of a batch, then a whole run.

torchrun --nproc-per-node 2 distributed_worker.py OUT SETTINGS.json
"""

import sys
from pathlib import Path

import torch
from torch import nn

from training import trainer
from training.config import Config
from training.network import distributed


def norm_step(batch: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Forward, backward and running statistics of a BatchNorm over this process's share of `batch`."""
    network = nn.Sequential(nn.BatchNorm2d(batch.shape[1]))
    with torch.no_grad():
        network[0].weight.copy_(torch.linspace(0.5, 1.5, batch.shape[1]))
        network[0].bias.copy_(torch.linspace(-1, 1, batch.shape[1]))
    distributed.synchronise_norms(network)
    x = distributed.share(batch).clone().requires_grad_(True)
    y = network(x)
    loss = (y.square() * distributed.share(weights)).sum() / len(y)  # the mean over this process's images
    loss.backward()
    parts, stopped = distributed.average(list(network.parameters()), {"loss": loss}, distributed.rank() == 1)
    assert x.grad is not None
    network.eval()
    return {
        "forward": y.detach(), "input_gradient": x.grad / distributed.world(), "eval": network(x).detach(),
        "weight_gradient": network[0].weight.grad, "bias_gradient": network[0].bias.grad, "loss": parts["loss"],
        "stopped": torch.tensor(stopped), **dict(network[0].named_buffers()),
    }  # fmt: skip


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(8, 5, 4, 3, generator=draw) * torch.arange(1, 9).view(8, 1, 1, 1) + 2
    return images, torch.rand(8, 5, 4, 3, generator=draw)


def main() -> None:
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    distributed.start(torch.device("cpu"))
    torch.save(norm_step(*batch()), out / f"norm{distributed.rank()}.pt")
    trainer.train(Config.model_validate_json(Path(sys.argv[2]).read_text()), out / "run")


if __name__ == "__main__":
    main()
