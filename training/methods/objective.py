"""The loss of one step, built from the parts that a method names."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from training.config import Config
from training.data import augment
from training.data.batches import Batch
from training.data.loading import Data
from training.data.splits import tail_classes
from training.methods.contrast import CONTRASTS
from training.methods.losses import LOSSES
from training.methods.methods import NONE, Method, contrast_defaults
from training.methods.outliers import OUTLIER_TERMS
from training.methods.placeholders import with_placeholders
from training.methods.stage2 import Stage2
from training.methods.step import Step
from training.network import distributed
from training.network.network import Network, to_input
from training.scores.scores import Seen, reject_mass

Losses = dict[str, Tensor]  # "loss" is what is minimised; the others are its parts
Term = Callable[[Step], Tensor]


def autocast(config: Config, device: torch.device) -> torch.autocast:
    """bf16 where it helps: GPUs, and CPUs with bf16 instructions (without them it is ten times slower than fp32)."""
    capable = device.type == "cuda" or any(
        torch.cpu.get_capabilities().get(key) for key in ("avx512_bf16", "amx_bf16", "amx_tile", "bf16")
    )
    on = config.precision == "bf16" or (config.precision == "auto" and capable)
    return torch.autocast(device.type, torch.bfloat16, enabled=on)


def outlier_term(config: Config, method: Method) -> tuple[float, Term | None]:
    """(λ1, the term); None where the method has none or its weight is 0."""
    if method.outlier_term == NONE:
        return 0.0, None
    part = OUTLIER_TERMS[method.outlier_term]
    chosen = (config.outlier_weight, method.outlier_weight, part.weight)
    weight = next(w for w in chosen if w is not None)
    return weight, part.term if weight else None


def contrast_term(config: Config, method: Method, num_classes: int) -> tuple[float, Term | None]:
    """(λ2, the term with its temperature); None where the method has none or its weight is 0."""
    if method.contrast == NONE:
        return 0.0, None
    part = CONTRASTS[method.contrast]
    default_weight, default_temperature = contrast_defaults(num_classes)
    chosen = (config.contrast_weight, method.contrast_weight, part.weight, default_weight)
    weight = next(w for w in chosen if w is not None)
    temperature = config.contrast_temperature or part.temperature or default_temperature
    switches = {"partial": method.partial, "asymmetric": method.asymmetric} if method.contrast == "pascl" else {}
    return weight, partial(part.term, temperature=temperature, **switches) if weight else None


def stage1_losses(
    config: Config, method: Method, data: Data, network: Network, device: torch.device
) -> Callable[[Batch], Losses]:
    """loss + λ1·outlier term + λ2·contrast of a batch, for the method's parts whose weight is not zero."""
    num_classes = len(data.train.classes)
    counts = torch.from_numpy(data.train.counts).to(device)
    tail = torch.from_numpy(tail_classes(data.train.counts, config.tail_fraction)).to(device)
    outlier_weight, outlier = outlier_term(config, method)
    contrast_weight, contrast = contrast_term(config, method, num_classes)
    projects = contrast is not None and CONTRASTS[method.contrast].projects
    joint = method.takes_outliers and OUTLIER_TERMS[method.outlier_term].joint
    precision = autocast(config, device)
    draw = partial(augment.view, kind=config.augment, padding_px=data.padding_px, flip=data.flip)

    def forward(batch: Batch) -> Step:
        groups = [batch.images] * method.views + ([batch.outliers] if len(batch.outliers) else [])
        views = [draw(group, batch.generator, rows=distributed.own_rows(len(group))) for group in groups]
        labels = distributed.share(batch.labels)
        inside = method.views * len(labels)

        def split(rows: Tensor) -> tuple[Tensor, Tensor]:
            return rows[:inside].view(method.views, len(labels), *rows.shape[1:]), rows[inside:]

        with precision:
            logits, features = network(torch.cat(views))  # (V·n + m, C), (V·n + m, F)
            rejects = network.rejects(features)
            projected = network.project(features) if projects else features[:, :0]
        (logits, out), (rejects, out_rejects), (features, out_features), (projected, out_projected) = map(
            split, (logits.float(), rejects.float(), features.float(), projected)
        )
        return Step(
            network, logits, rejects, features, labels, out, out_rejects, out_features, projected, out_projected,
            batch.labels, counts, tail, batch.generator,
        )  # fmt: skip

    begin = OUTLIER_TERMS[method.outlier_term].begin if outlier else None

    def losses(batch: Batch) -> Losses:
        nonlocal begin
        if begin and batch.progress >= method.outlier_from:
            begin(network, data.train)
            begin = None
        step = forward(batch)
        if method.placeholders:
            step = with_placeholders(step)
        late = method.late_loss != NONE and batch.progress >= method.late_from
        classify = LOSSES[method.late_loss if late else method.loss]
        logits = torch.cat([step.logits, step.reject], dim=2) if joint else step.logits
        parts = {"class": classify(logits.flatten(0, 1), step.inlier_labels, counts)}
        loss = parts["class"]
        if outlier and batch.progress >= method.outlier_from:
            parts["outlier"] = outlier(step)
            loss = loss + outlier_weight * parts["outlier"]
        if contrast:
            parts["contrast"] = contrast(step)
            loss = loss + contrast_weight * parts["contrast"]
        return {"loss": loss, **parts}

    return losses


def stage2_losses(
    config: Config, stage: Stage2, data: Data, network: Network, device: torch.device
) -> Callable[[Batch], Losses]:
    """The second stage's loss on one view of in-distribution images, or on their features as they are."""
    counts = torch.from_numpy(data.train.counts).to(device)
    precision = autocast(config, device)

    def losses(batch: Batch) -> Losses:
        if stage.on_features:
            logits = network.head(distributed.share(batch.images))
        else:
            images = augment.view(
                batch.images, batch.generator, kind=config.augment, padding_px=data.padding_px, flip=data.flip,
                rows=distributed.own_rows(len(batch.images)),
            )  # fmt: skip
            with precision:
                logits, _ = network(images)
        return {"loss": stage.loss(logits.float(), distributed.share(batch.labels), counts)}

    return losses


def easiness(config: Config, network: Network, device: torch.device) -> Callable[[Tensor], Tensor]:
    """How clearly each image [P, H, W, 3] is told from the classes: the log-odds of the reject logits, in eval mode."""
    precision = autocast(config, device)

    @torch.no_grad()
    def score(images: Tensor) -> Tensor:
        network.eval()
        parts = []
        for part in torch.split(images, 512):
            with precision:
                logits, features = network(to_input(part))
                rejects = network.rejects(features)
            parts.append(reject_mass(Seen(features.float(), logits.float(), rejects.float())))
        network.train()
        return torch.cat(parts)

    return score
