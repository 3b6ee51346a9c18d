"""The throughput of the trainer against that of a bare loop: `python -m training bench`.

The bare loop repeats forward, backward and optimiser step on one fixed batch of the same size, with the same network,
precision and memory layout. The trainer does what it always does: draws batches, makes views, computes every loss.
Both are measured in turns in one run, so that other load on the machine affects both.

`--at-once K` measures K runs side by side, as `table --at-once K` starts them, against one run alone.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from training.config import Config
from training.data.batches import Batches
from training.data.loading import Data
from training.data.readers import ImageSet
from training.methods.methods import build_network, resolve
from training.methods.objective import autocast, stage1_losses
from training.network.device import find_device
from training.network.network import place
from training.runs.files import Json


def synthetic(images: int, num_classes: int = 10) -> Data:
    """Random pixels in the shape of CIFAR: their content does not change the speed."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(images) % num_classes
    labelled = ImageSet(pixels, labels, tuple(map(str, range(num_classes))))
    return Data(labelled, labelled, labelled, pixels, pixels[:0], {}, 32, 4, True)


def bench(config: Config, *, steps: int, rounds: int) -> Json:
    """{device, precision, width, images_per_step, trainer_images_s, bare_images_s, ratio}: medians over the rounds."""
    device = find_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)
    data = synthetic(config.batch_images * steps)
    network = place(build_network(resolve(config), 10, config.width), device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5, weight_decay=config.weight_decay, fused=True)
    precision = autocast(config, device)
    images_per_step = 3 * config.batch_images
    batches = Batches(data.train, data.outliers, config.batch_images, seed=0, stage=1, device=device)
    losses = stage1_losses(config, resolve(config), data, network, device)
    fixed = torch.rand(images_per_step, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (images_per_step,), device=device)

    def update(loss: torch.Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def bare(epoch: int) -> None:
        for _ in range(steps):
            with precision:
                logits, _ = network(fixed)
            update(F.cross_entropy(logits.float(), labels))

    def trainer(epoch: int) -> None:
        for batch in batches.epoch(epoch):
            update(losses(batch)["loss"])

    def images_s(loop: Callable[[int], None], epoch: int) -> float:
        started = time.perf_counter()
        loop(epoch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return steps * images_per_step / (time.perf_counter() - started)

    images_s(bare, 0), images_s(trainer, 0)  # warm up
    pairs = [(images_s(trainer, r), images_s(bare, r)) for r in range(1, rounds + 1)]
    mine, theirs = (float(np.median(column)) for column in zip(*pairs, strict=True))
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": "bf16" if precision._enabled else "fp32",
        "width": config.width,
        "images_per_step": images_per_step,
        "trainer_images_s": round(mine, 1),
        "bare_images_s": round(theirs, 1),
        "ratio": round(float(np.median([a / b for a, b in pairs])), 3),
    }


def sharing(options: list[str], at_once: int) -> Json:
    """{at_once, alone_images_s, together_images_s, gain}: one process that has the machine, and K that share it.

    Each process is this command's own bench with `options`; on CPUs the cores are shared out.
    """
    cores = os.cpu_count() or 1

    def images_s(processes: int) -> float:
        command = [sys.executable, "-m", "training", "bench", *options, "--threads", str(max(1, cores // processes))]
        started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
        return sum(float(json.loads(p.communicate()[0])["trainer_images_s"]) for p in started)

    alone, together = images_s(1), images_s(at_once)
    return {
        "at_once": at_once,
        "alone_images_s": round(alone, 1),
        "together_images_s": round(together, 1),
        "gain": round(together / alone, 3),
    }
