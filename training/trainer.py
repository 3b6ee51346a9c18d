"""The spine: stage 1, then stage 2. Read it downward; no method is named here.

    python -m training train --dataset cifar10 --data DIR --imbalance 100 --outliers FILE --method pascl-abf --out RUN

One step of stage 1 is one forward pass over two views of each in-distribution image and one view of as many outliers
(joint BatchNorm statistics), and loss + λ1·outlier term + λ2·contrast. Stage 2 trains part of a copy.
"""

import copy
import math
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from training import augment, checkpoint, distributed, stage2
from training.config import Config
from training.data import Batch, Batches, Data, load, tail_classes
from training.methods import contrast_defaults, find
from training.network import Network, place

Losses = dict[str, Tensor]  # "loss" is what is minimised; the others are its parts


class Interrupted(Exception):
    """Ctrl-C or TERM: a checkpoint was written."""


# ---------------------------------------------------------------------------------------------------- where and how


def find_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: no GPU is available; use --device cpu")
    if name == "cuda" and distributed.launched():
        return torch.device("cuda", distributed.local_rank())
    return torch.device(name)


def autocast(config: Config, device: torch.device) -> torch.autocast:
    """bf16 where it helps: GPUs, and CPUs with bf16 instructions (without them it is ten times slower than fp32)."""
    capable = device.type == "cuda" or any(
        torch.cpu.get_capabilities().get(key) for key in ("avx512_bf16", "amx_bf16", "amx_tile", "bf16")
    )
    on = config.precision == "bf16" or (config.precision == "auto" and capable)
    return torch.autocast(device.type, torch.bfloat16, enabled=on)


# --------------------------------------------------------------------------------------------------- one step's loss


def stage1_losses(config: Config, data: Data, network: Network, device: torch.device) -> Callable[[Batch], Losses]:
    """loss + λ1·outlier term + λ2·contrast of a batch, for the method's parts whose weight is not zero."""
    method = find(config.method)
    counts = torch.from_numpy(data.train.counts).to(device)
    tail = torch.from_numpy(tail_classes(data.train.counts, config.tail_fraction)).to(device)
    default_weight, default_temperature = contrast_defaults(len(data.train.classes))
    outlier_weight = method.outlier_weight if config.outlier_weight is None else config.outlier_weight
    contrast_weight = default_weight if config.contrast_weight is None else config.contrast_weight
    temperature = config.contrast_temperature or default_temperature
    precision = autocast(config, device)
    draw = partial(augment.view, padding_px=data.padding_px, flip=data.flip)

    def losses(batch: Batch) -> Losses:
        groups = [batch.images, batch.images] + ([batch.outliers] if len(batch.outliers) else [])
        views = [distributed.share(draw(group, batch.generator)) for group in groups]
        labels = distributed.share(batch.labels)
        n = len(labels)
        with precision:
            logits, features = network(torch.cat(views))  # (3n, C), (3n, F)
        logits = logits.float()
        parts = {"class": method.loss(logits[: 2 * n], torch.cat([labels, labels]), counts)}
        loss = parts["class"]
        if method.outlier_term and outlier_weight:
            parts["outlier"] = method.outlier_term(logits[2 * n :])
            loss = loss + outlier_weight * parts["outlier"]
        if method.contrast and contrast_weight:
            with precision:
                projected = network.project(features)
            one, two, out = (distributed.gather(p) for p in (projected[:n], projected[n : 2 * n], projected[2 * n :]))
            parts["contrast"] = method.contrast(one, two, out, batch.labels, tail, temperature=temperature)
            loss = loss + contrast_weight * parts["contrast"]
        return {"loss": loss, **parts}

    return losses


def stage2_losses(config: Config, data: Data, network: Network, device: torch.device) -> Callable[[Batch], Losses]:
    """The second stage's loss on one view of in-distribution images."""
    stage = find(config.method).stage2
    assert stage is not None
    counts = torch.from_numpy(data.train.counts).to(device)
    precision = autocast(config, device)

    def losses(batch: Batch) -> Losses:
        images = augment.view(batch.images, batch.generator, padding_px=data.padding_px, flip=data.flip)
        with precision:
            logits, _ = network(distributed.share(images))
        return {"loss": stage.loss(logits.float(), distributed.share(batch.labels), counts)}

    return losses


# ------------------------------------------------------------------------------------------------------- one stage


class Loop:
    """Epochs of one stage: cosine learning rate, progress, checkpoints, interruption."""

    def __init__(self, config: Config, out: Path, stage: str, state: dict[str, Any]) -> None:
        self.config, self.out, self.stage, self.state = config, out, stage, state
        self.stopping = False

    def run(
        self, network: Network, parameters: list[nn.Parameter], batches: Batches, losses: Callable[[Batch], Losses],
        *, epochs: int, learning_rate: float, key: str,
    ) -> None:  # fmt: skip
        """Train `parameters` for `epochs`; the network is kept in the state under `key`."""
        device = next(network.parameters()).device
        optimizer = torch.optim.Adam(
            parameters, lr=learning_rate, weight_decay=self.config.weight_decay, fused=True
        )  # L2, not decoupled (A4)
        state, first_epoch, first_step = self.state, 0, 0
        sums: Losses = {}
        if state["stage"] == self.stage and state.get("optimizer"):
            optimizer.load_state_dict(state["optimizer"])
            first_epoch, first_step = state["epoch"], state["step"]
            sums = {name: value.to(device) for name, value in state["sums"].items()}

        def save(epoch: int, step: int) -> None:
            state.update(stage=self.stage, epoch=epoch, step=step, sums=sums, optimizer=optimizer.state_dict())
            state[key] = network.state_dict()
            if distributed.rank() == 0:
                checkpoint.save(self.out, state)

        bar = tqdm(
            total=epochs * batches.steps, initial=first_epoch * batches.steps + first_step, unit="step",
            desc=self.stage, disable=distributed.rank() > 0, mininterval=1, dynamic_ncols=True,
        )  # fmt: skip
        with bar:
            for epoch in range(first_epoch, epochs):
                for group in optimizer.param_groups:  # cosine to 0, stepped per epoch
                    group["lr"] = 0.5 * learning_rate * (1 + math.cos(math.pi * epoch / epochs))
                started, seen = time.perf_counter(), 0
                for step, batch in enumerate(batches.epoch(epoch, first_step), start=first_step):
                    parts = losses(batch)
                    parts["loss"].backward()  # type: ignore[no-untyped-call]
                    parts, stopping = distributed.average(parameters, parts, self.stopping)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                    sums = {name: sums.get(name, 0) + part for name, part in parts.items()}
                    seen += 2 * len(batch.images) + len(batch.outliers) if self.stage == "stage1" else len(batch.images)
                    bar.update()
                    if step % 10 == 9 or step + 1 == batches.steps:
                        shown: dict[str, object] = {k: f"{v.item() / (step + 1):.3f}" for k, v in sums.items()}
                        bar.set_postfix(shown | {"images_s": round(seen / (time.perf_counter() - started))})
                    if stopping:
                        save(epoch, step + 1)
                        raise Interrupted
                state["history"].append(
                    {"stage": self.stage, "epoch": epoch}
                    | {name: value.item() / batches.steps for name, value in sums.items()}
                )
                first_step, sums = 0, {}
                if (epoch + 1) % self.config.checkpoint_epochs == 0 or epoch + 1 == epochs:
                    save(epoch + 1, 0)


# -------------------------------------------------------------------------------------------------------- the run


def train(config: Config, out: Path, *, resume: bool = False) -> Path:
    """Train `config` into the folder `out` and return it.

    Raises Interrupted (a checkpoint was written) on Ctrl-C or TERM, ValueError when settings or data do not fit.
    """
    method = find(config.method)
    if (out / checkpoint.CHECKPOINT_FILE).exists() != resume:
        raise ValueError(
            f"{out} holds no checkpoint to resume"
            if resume
            else f"{out} holds a run: --resume it, or choose another --out"
        )
    device = find_device(config.device)
    distributed.start(device)
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)
    if config.batch_images % distributed.world() or config.stage2_batch_images % distributed.world():
        raise ValueError(f"batches of {config.batch_images} do not split over {distributed.world()} processes")

    data = load(config)
    if method.needs_outliers and len(data.outliers) == 0:
        raise ValueError(f"--method {config.method} learns from outliers: give --outliers FILE, or use --method msp")
    if resume:
        state = checkpoint.load(out)
        checkpoint.require_same_data(out, state["classes"], state["train_counts"], data)
    else:
        state = {
            "config": config.model_dump(mode="json"), "stage": "stage1", "epoch": 0, "step": 0, "history": [],
            "classes": list(data.train.classes), "train_counts": data.train.counts.tolist(),
            "provenance": checkpoint.provenance(),
        }  # fmt: skip
        if config.stage1_from:
            state.update(checkpoint.stage1(config.stage1_from, state))
    torch.manual_seed(config.seed)
    network = place(Network(len(data.train.classes), config.width), device)
    distributed.synchronise_norms(network)
    if "network" in state:
        network.load_state_dict(state["network"])

    with _interruptible() as loops:
        if state["stage"] == "stage1":
            loop = loops(Loop(config, out, "stage1", state))
            outliers = data.outliers if method.needs_outliers else None
            batches = Batches(data.train, outliers, config.batch_images, seed=config.seed, stage=1, device=device)
            loop.run(
                network.train(), list(network.parameters()), batches, stage1_losses(config, data, network, device),
                epochs=config.epochs, learning_rate=config.learning_rate, key="network",
            )  # fmt: skip
        if method.stage2 and state["stage"] != "done":
            branch = copy.deepcopy(network)
            if state["stage"] == "stage2" and state["branch"]:
                branch.load_state_dict(state["branch"])
            parameters = stage2.prepare(branch, method.stage2)
            loop = loops(Loop(config, out, "stage2", state))
            batches = Batches(data.train, None, config.stage2_batch_images, seed=config.seed, stage=2, device=device)
            loop.run(
                branch, parameters, batches, stage2_losses(config, data, branch, device),
                epochs=config.stage2_epochs, learning_rate=config.stage2_learning_rate, key="branch",
            )  # fmt: skip
    state.update(stage="done", optimizer=None, sums={})
    if distributed.rank() == 0:
        checkpoint.save(out, state)
    distributed.stop()
    return out


class _interruptible:
    """While it lasts, the first Ctrl-C or TERM ends the current loop after its step; the second one acts as usual."""

    def __enter__(self) -> Callable[[Loop], Loop]:
        self.loop: Loop | None = None
        self.before = {s: signal.signal(s, self._stop) for s in (signal.SIGINT, signal.SIGTERM)}
        return self._watch

    def _watch(self, loop: Loop) -> Loop:
        loop.stopping = self.loop is not None and self.loop.stopping  # asked for while the last loop was ending
        self.loop = loop
        return loop

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.loop is None or self.loop.stopping:
            raise KeyboardInterrupt
        self.loop.stopping = True
        print("\nstopping after this step; once more to stop at once", file=sys.stderr)

    def __exit__(self, *details: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
