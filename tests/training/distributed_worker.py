"""One of the processes that test_distributed starts: SyncBatchNorm on its half of a batch, then a whole run.

torchrun --nproc-per-node 2 distributed_worker.py OUT SETTINGS.json
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from tests.training import tiny
from training import trainer
from training.config import Config
from training.methods.losses import LOSSES
from training.methods.outliers import OUTLIER_TERMS, TrainingAccuracy
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


TERMS = ("weighted-softmax", "class-balanced", "ldam-class-balanced", "oecc", "sofl")


def loss_values() -> dict[str, float]:
    """The losses and terms that divide by something of the batch, or draw for it, averaged over the processes."""
    draw = torch.Generator().manual_seed(1)
    logits, outliers = torch.randn(12, 3, generator=draw), torch.randn(8, 3, generator=draw)
    rejects, labels = torch.randn(8, 5, generator=draw), torch.tensor([0, 0, 0, 0, 0, 2, 0, 1, 1, 2, 2, 1])
    network = nn.Module()
    network.learned = nn.ModuleDict({"outlier": TrainingAccuracy(3, 3)})
    network.learned["outlier"].value.fill_(0.7)
    step = tiny.step(
        logits=distributed.share(logits), labels=distributed.share(labels), outlier_logits=distributed.share(outliers),
        outlier_reject=distributed.share(rejects), network=network, generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    counts = torch.tensor([100, 10, 1])
    values = {}
    for name in TERMS:
        if name in LOSSES:
            loss = LOSSES[name](step.inliers, step.inlier_labels, counts)
        else:
            loss = OUTLIER_TERMS[name].term(step)
        weight = nn.Parameter(torch.ones(1))
        weight.grad = torch.zeros(1)
        values[name] = distributed.average([weight], {"loss": loss}, False)[0]["loss"].item()
    return values


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(8, 5, 4, 3, generator=draw) * torch.arange(1, 9).view(8, 1, 1, 1) + 2
    return images, torch.rand(8, 5, 4, 3, generator=draw)


def main() -> None:
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    distributed.start(torch.device("cpu"))
    torch.save(norm_step(*batch()), out / f"norm{distributed.rank()}.pt")
    (out / f"losses{distributed.rank()}.json").write_text(json.dumps(loss_values()))
    trainer.train(Config.model_validate_json(Path(sys.argv[2]).read_text()), out / "run")


if __name__ == "__main__":
    main()
