"""The spine: stage 1, then stage 2. Read it downward; no method is named here.

    python -m training train --dataset cifar10 --data DIR --imbalance 100 --outliers FILE --method pascl-abf --out RUN

One step of stage 1 is one forward pass over two views of each in-distribution image and one view of as many outliers
(joint BatchNorm statistics), and loss + λ1·outlier term + λ2·contrast. Stage 2 trains part of a copy, or solves for it.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.checks import require_trainable, require_tunable
from training.config import Config
from training.data.batches import Batches, Features
from training.data.loading import Data, load, with_taxonomy
from training.data.notes import say
from training.data.photographs import CACHE, TEST_FRACTION
from training.data.readers import ImageSet
from training.data.taxonomy import TAXONOMY_FILE
from training.evaluation.predict import embed
from training.methods.methods import NONE, Method, build_network, classifying_network, resolve
from training.methods.objective import easiness, stage2_losses
from training.methods.stage2 import STAGES, Solving, prepare
from training.network import distributed
from training.network import frozen as frozen_backbones
from training.network import tuned as tuned_backbones
from training.network.device import find_device
from training.network.network import Network, place
from training.places import photographs, require_outside, require_writable
from training.runs import checkpoint
from training.runs.first_stage import first_stage
from training.runs.loop import Loop
from training.runs.signals import stop_request
from training.runs.steps import alone_in

# -------------------------------------------------------------------------------------------------------- the run


def train(config: Config, out: Path, *, resume: bool = False) -> Path:
    """Train `config` into the folder `out` and return it.

    Raises Interrupted (a checkpoint was written) on Ctrl-C or TERM, Diverged for a loss or a network that is not
    finite, ValueError when settings, data, device or folder do not fit: before the first step.
    """
    config = config.with_absolute_paths()
    method = resolve(config)
    if method.stage2 != NONE and config.dataset == "folder" and config.test_fraction is None and not config.stage1_from:
        config = config.model_copy(update={"test_fraction": TEST_FRACTION})  # a second stage is not trained for folds
    require_writable(out, "--out")
    if config.feature_cache:
        require_writable(config.feature_cache, "--feature-cache")
    if not resume:
        require_outside({"--out": out}, photographs(config), outliers=config.outliers)
    if (out / checkpoint.CHECKPOINT_FILE).exists() != resume:
        raise ValueError(
            f"{out} holds no checkpoint to resume"
            if resume
            else f"{out} holds a run: --resume it, or choose another --out"
        )
    device = find_device(config.device)
    distributed.start(device)
    with alone_in(out, "another --out") if distributed.rank() == 0 else nullcontext():  # two would write one checkpoint
        _train(config, method, out, device, resume=resume)
    return out


def _train(config: Config, method: Method, out: Path, device: torch.device, *, resume: bool) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)

    source = out if resume else config.stage1_from
    sides = source or config.split_from
    frozen = frozen_backbones.load(config, out) if config.frozen else None
    tuned = None
    if config.tunes:
        tuned = tuned_backbones.load(config, out, checkpoint.load(source).get("tuned") if source else None)
        require_tunable(config, method, tuned)
    if pretrained := frozen or tuned:
        config = frozen_backbones.with_side(config, pretrained.target)
    data = with_taxonomy(load(config, sides, out / CACHE, target=pretrained.target if pretrained else None), config)
    if distributed.rank() == 0:
        say(data.notes)
    config = config.with_schedule(len(data.train.labels))
    require_trainable(config, method, data)
    if frozen:
        recorded = checkpoint.load(source)["provenance"].get("backbone") if source else None
        pretrained = frozen = (
            frozen.gone_on_with(config, data, source, recorded) if source and recorded
            else frozen.at_precision(config, data)
        )  # fmt: skip
    if pretrained:
        data = pretrained.data(data)
    state = begin(config, data, out, resume=resume)
    torch.manual_seed(config.seed)
    features = frozen.backbone.features if frozen else None
    trunk = tuned.trunk(len(data.train.classes)) if tuned else None
    network = place(build_network(method, len(data.train.classes), config.width, features, trunk), device)
    distributed.synchronise_norms(network)
    if "network" in state:
        checkpoint.fill(network, state["network"], out, tuned)
    elif frozen:
        state["features"], state["provenance"]["backbone"] = features, frozen.backbone.provenance
        network.begin_on(*first_views(data, device))
    elif tuned and trunk:
        state["tuned"], state["provenance"]["backbone"] = tuned.record, dict(tuned.provenance)
        network.begin_on(*tuned_backbones.first_features(trunk, data, device))

    with stop_request() as stop:
        if state["stage"] == "stage1":
            loop = Loop(config, out, "stage1", state, stop, views=method.views)
            first_stage(config, method, data, network, loop, easiness(config, network, device))
        if method.stage2 != NONE and state["stage"] != "done":
            second_stage(config, method, data, network, Loop(config, out, "stage2", state, stop))
    state.update(stage="done", optimizer=None, sums={}, mined=None)
    if distributed.rank() == 0:
        checkpoint.save(out, state)
    distributed.stop()


def first_views(data: Data, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(training features [N, F], labels int [N], outlier features [M, F]) of the images themselves, without mirrors."""
    inside, outside = (torch.from_numpy(np.ascontiguousarray(a[:, 0])) for a in (data.train.images, data.outliers))
    return inside.to(device), torch.from_numpy(data.train.labels).to(device), outside.to(device)


def begin(config: Config, data: Data, out: Path, *, resume: bool) -> dict[str, Any]:
    """The state of a new run, or of the one to resume; ValueError when the data are not those it was trained on."""
    if resume:
        state = checkpoint.load(out) | {"config": config.model_dump(mode="json")}
        checkpoint.require_same_data(out, state["classes"], state["train_counts"], data)
        return state
    state = {
        "config": config.model_dump(mode="json"), "stage": "stage1", "epoch": 0, "step": 0, "history": [],
        "classes": list(data.train.classes), "train_counts": data.train.counts.tolist(),
        "provenance": checkpoint.provenance(),
    }  # fmt: skip
    if config.stage1_from:
        checkpoint.require_same_labels(config.stage1_from, data)
        state.update(checkpoint.stage1(config.stage1_from, state))
    if distributed.rank() == 0:
        choice, now = data.choice, {"train": data.train, "calibration": data.calibration, "test": data.test}
        (choice.labelled(now) if config.split_from else choice).write(out)
        if data.taxonomy:
            data.taxonomy.write(out)
        else:  # of a run that was killed before its first checkpoint
            (out / TAXONOMY_FILE).unlink(missing_ok=True)
    return state


def second_stage(config: Config, method: Method, data: Data, network: Network, loop: Loop) -> None:
    """A copy of the stage-1 network whose part learns again or is solved for, into the state under "branch"."""
    stage, state, device = STAGES[method.stage2], loop.state, next(network.parameters()).device
    copied = classifying_network(method, network)
    if stage.solve:
        weight, bias = (t.detach() for t in network.linear())
        counts = torch.from_numpy(data.train.counts).to(device)
        features = torch.from_numpy(embed(network, data.calibration.images, device)).to(device)
        labels = torch.from_numpy(data.calibration.labels).to(device)
        head = stage.solve(Solving(weight, bias, counts, features, labels))
        copied.head.load_state_dict(dict(zip(("weight", "bias"), head, strict=True)))
        state["branch"] = copied.state_dict()
        return
    if state["stage"] == "stage2" and state["branch"]:
        copied.load_state_dict(state["branch"])
    images: ImageSet | Features = data.train
    if stage.on_features:
        from training.methods.smote import smote  # imbalanced-learn takes seconds to import

        features = torch.from_numpy(embed(network, data.train.images, device)).to(device)
        labels = torch.from_numpy(data.train.labels).to(device)
        images = Features(*smote(features, labels, seed=config.seed), data.train.classes)
    assert config.stage2_epochs
    assert config.stage2_batch_images
    batches = Batches(
        images, None, config.stage2_batch_images, seed=config.seed, stage=2, device=device, sampler=stage.sampler
    )
    loop.run(
        copied, prepare(copied, stage), batches, stage2_losses(config, stage, data, copied, device),
        epochs=config.stage2_epochs, learning_rate=config.stage2_learning_rate or stage.learning_rate, key="branch",
    )  # fmt: skip
