"""The epochs of one stage: optimiser, learning rate, progress, checkpoints, interruption, and a stop at divergence."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from service.contract.progress import Progress
from training.config import TRUNK_RATE, Config, flag
from training.data.batches import Batch, Batches, Easiness
from training.methods.objective import Losses
from training.network import distributed
from training.network.network import Network, first_not_finite
from training.runs import checkpoint
from training.runs.signals import StopRequest

ADAPTERS_MOMENTUM = 0.9


class Interrupted(Exception):
    """Ctrl-C or TERM: a checkpoint was written."""


class Diverged(ValueError):
    """A loss or a network that is not finite: the last checkpoint is the one before."""


def make_optimizer(
    config: Config, stage: str, network: Network, parameters: list[nn.Parameter], learning_rate: float
) -> torch.optim.Optimizer:
    """From scratch Adam with PASCL's L2 (A4); on a pretrained backbone AdamW, for adapters in stage 1 LIFT's SGD.

    A trunk that is tuned in full learns at a share of the rate, in a group of its own.
    """
    decay = config.weight_decay
    if config.tune == "adapters" and stage == "stage1":
        return torch.optim.SGD(parameters, lr=learning_rate, momentum=ADAPTERS_MOMENTUM, weight_decay=decay, fused=True)
    if config.tune is None:
        return torch.optim.Adam(parameters, lr=learning_rate, weight_decay=decay, fused=True)
    trunk = {id(p) for p in network.trunk.parameters()} if config.tune == "full" else set[int]()
    share = config.trunk_rate or TRUNK_RATE
    groups = [
        {"params": [p for p in parameters if id(p) not in trunk], "lr": learning_rate},
        {"params": [p for p in parameters if id(p) in trunk], "lr": share * learning_rate},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=decay, fused=True)


class Loop:
    """Epochs of one stage: cosine learning rate, progress, checkpoints, interruption, a stop where it diverges."""

    def __init__(
        self, config: Config, out: Path, stage: str, state: dict[str, Any], stop: StopRequest, *, views: int = 1
    ) -> None:
        self.config, self.out, self.stage, self.state, self.stop, self.views = config, out, stage, state, stop, views

    def run(
        self, network: Network, parameters: list[nn.Parameter], batches: Batches, losses: Callable[[Batch], Losses],
        *, epochs: int, learning_rate: float, key: str, easiness: Easiness | None = None, title: str | None = None,
    ) -> None:  # fmt: skip
        """Train `parameters` for `epochs`; the network is kept in the state under `key`.

        `title`: what the progress and the history call it, where that is not the stage.
        """
        device = next(network.parameters()).device
        optimizer = make_optimizer(self.config, self.stage, network, parameters, learning_rate)
        rates = [group["lr"] for group in optimizer.param_groups]
        state, first_epoch, first_step = self.state, 0, 0
        sums: Losses = {}
        if state["stage"] == self.stage and state.get("optimizer"):
            optimizer.load_state_dict(state["optimizer"])
            first_epoch, first_step = state["epoch"], state["step"]
            sums = {name: value.to(device) for name, value in state["sums"].items()}
            batches.mined = state["mined"] if state.get("mined") is None else state["mined"].to(device)

        def save(epoch: int, step: int) -> None:
            if spoilt := first_not_finite(network):
                raise self.diverged(f"{spoilt} of the network is not finite", epoch, step)
            state.update(
                stage=self.stage, epoch=epoch, step=step, sums=sums, optimizer=optimizer.state_dict(),
                mined=batches.mined,
            )  # fmt: skip
            state[key] = network.state_dict()
            if distributed.rank() == 0:
                checkpoint.save(self.out, state)

        bar = Progress(
            total=epochs * batches.steps, initial=first_epoch * batches.steps + first_step, unit="step",
            desc=title or self.stage, disable=distributed.rank() > 0, mininterval=1, dynamic_ncols=True,
        )  # fmt: skip
        with bar:
            for epoch in range(first_epoch, epochs):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):  # cosine to 0, stepped per epoch
                    group["lr"] = 0.5 * rate * (1 + math.cos(math.pi * epoch / epochs))
                started, seen, recent = time.perf_counter(), 0, []
                drawn = batches.epoch(epoch, first_step, progress=epoch / epochs, easiness=easiness)
                for step, batch in enumerate(drawn, start=first_step):
                    parts = losses(batch)
                    parts["loss"].backward()  # type: ignore[no-untyped-call]
                    parts, stopping = distributed.average(parameters, parts, self.stop.requested)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                    sums = {name: sums.get(name, 0) + part for name, part in parts.items()}
                    seen += self.views * len(batch.images) + len(batch.outliers)
                    recent.append(parts["loss"])
                    bar.update()
                    if step % 10 == 9 or step + 1 == batches.steps or stopping:
                        self.require_finite(recent, epoch, step)
                        recent = []
                        shown: dict[str, object] = {k: f"{v.item() / (step + 1):.3f}" for k, v in sums.items()}
                        bar.set_postfix(shown | {"images_s": round(seen / (time.perf_counter() - started))})
                    if stopping:
                        save(epoch, step + 1)
                        raise Interrupted
                state["history"].append(
                    {"stage": title or self.stage, "epoch": epoch}
                    | {name: value.item() / batches.steps for name, value in sums.items()}
                )
                first_step, sums = 0, {}
                if (epoch + 1) % self.config.checkpoint_epochs == 0 or epoch + 1 == epochs:
                    save(epoch + 1, 0)

    def require_finite(self, recent: list[Tensor], epoch: int, step: int) -> None:
        """Diverged unless the losses of the steps up to `step` are finite. Waits for the device once for all."""
        for i, loss in enumerate(torch.stack(recent).tolist()):
            if not math.isfinite(loss):
                raise self.diverged(f"the loss is {loss}", epoch, step - len(recent) + 1 + i)

    def diverged(self, what: str, epoch: int, step: int) -> Diverged:
        """The error of this stage, with the remedy and the last checkpoint."""
        rate = "learning_rate" if self.stage == "stage1" else "stage2_learning_rate"
        kept = "no checkpoint was written yet"
        if (self.out / checkpoint.CHECKPOINT_FILE).exists():
            last = self.state
            kept = f"the checkpoint in {self.out} is of {last['stage']}, epoch {last['epoch']}, step {last['step']}"
        return Diverged(
            f"{self.stage} diverged in epoch {epoch}, step {step}: {what}; {kept}. Train with a lower {flag(rate)}, "
            f"or resume with --precision fp32 where it was bf16"
        )
