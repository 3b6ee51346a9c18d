"""How long a recommendation takes on this machine: a few real steps of it, timed, times how many it needs.

For a frozen backbone: images decoded, views through its graph on every core, steps of the head. From scratch: steps of
the network. Nothing is downloaded: random weights take as long as trained ones.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from training.audit.advice import Advice, Estimate
from training.config import Config
from training.data.batches import Batches
from training.data.decode import decode, square
from training.data.loading import Data
from training.data.processes import usable_cpus
from training.data.readers import ImageSet
from training.layout import span
from training.methods.methods import NONE, Method, build_network, resolve
from training.methods.objective import stage1_losses
from training.methods.stage2 import STAGES
from training.network import pretrained
from training.network.backbones import Backbone, import_timm
from training.network.device import find_device
from training.network.network import place
from training.network.preprocessing import Preprocessing
from training.network.session import session

ENOUGH_SECONDS = 1.5  # of measuring one thing
STEP_IMAGES = 4  # in a measured step from scratch on a CPU, which takes seconds at full width
DECODED_FILES = 128


@dataclass(frozen=True)
class Work:
    """What there is to do: the images of each kind, files to decode among them, and classes."""

    train: int  # seen as they are and mirrored
    outliers: int  # likewise
    others: int  # validation, test and OOD images, seen as they are
    classes: int
    files: Sequence[str]  # a sample of them, where images are files


def estimate(advised: Advice, work: Work) -> Estimate:
    """The time of `train` with the advised settings. Raises BackboneError where timm is not installed."""
    config = Config(**{s.name: s.value for s in advised.settings})
    config = config.with_schedule(work.train)
    return _frozen(config, work) if config.frozen else _scratch(config, work)


# ------------------------------------------------------------------------------------------------------ the parts


def view_seconds(graph: bytes, size_px: int) -> float:
    """Seconds a view of an image through `graph`, all cores busy; wall time."""
    opened = session(graph)
    images = np.random.default_rng(0).integers(0, 256, (8, size_px, size_px, 3), dtype=np.uint8)
    cpus = usable_cpus()

    def work(_: int) -> None:
        opened.run(None, {"images": images})

    with ThreadPoolExecutor(cpus) as pool:
        return timed(lambda: list(pool.map(work, range(cpus)))) / (cpus * len(images))


def file_seconds(files: Sequence[str], size_px: int) -> float:
    """Seconds to decode one of the files, all cores busy."""
    some = [*files[:: max(1, len(files) // DECODED_FILES)]][:DECODED_FILES]
    if not some:
        return 0.0
    started = time.perf_counter()
    for _ in decode(some, square(size_px), failures=[]):
        pass
    return (time.perf_counter() - started) / len(some)


def step_seconds(config: Config, method: Method, work: Work, features: int | None) -> float:
    """Seconds of a step of stage 1 with `config.batch_images` images, forward, backward and update."""
    device = find_device(config.device)
    size = config.image_size_px or 32
    count = max(config.batch_images, work.classes)
    random = np.random.default_rng(0)
    images: Any = random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    if features:
        images = random.normal(size=(count, 2, features)).astype(np.float32)
    labelled = ImageSet(images, np.arange(count) % work.classes, tuple(map(str, range(work.classes))))
    outside = images if method.takes_outliers else images[:0]
    data = Data(labelled, labelled, labelled, outside, outside, {}, size, max(1, size // 8), True)
    network = place(build_network(method, work.classes, config.width, features), device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=True)
    batches = Batches(data.train, outside if method.takes_outliers else None, config.batch_images, seed=0, stage=1,
                      device=device, sampler=method.sampler, per_image=method.outliers_per_image)  # fmt: skip
    losses = stage1_losses(config, method, data, network, device)

    def step() -> None:
        loss = losses(next(iter(batches.epoch(0))))["loss"]
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return timed(step)


def timed(work: Callable[[], object]) -> float:
    """The median seconds of a call: one that does not count, then as many as fit, one at least."""
    work()
    seconds: list[float] = []
    while sum(seconds) < ENOUGH_SECONDS and len(seconds) < 50:
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


# ------------------------------------------------------------------------------------------------------- the sums


def _frozen(config: Config, work: Work) -> Estimate:
    lite0 = pretrained.LITE0
    size = config.image_size_px or 224
    module = import_timm().create_model(lite0.model, pretrained=False, num_classes=0).eval()
    features = int(module.num_features)
    backbone = Backbone(lite0.name, Preprocessing(size, lite0.mean, lite0.std), features, module, {})
    return frozen_estimate(config, work, backbone.graph(), features, size)


def frozen_estimate(
    config: Config, work: Work, graph: bytes, features: int, size_px: int, heads: int = 1
) -> Estimate:  # fmt: skip
    """The time of `heads` trained on the features of `graph` [N, `features`], which sees images of `size_px`."""
    view, decoded = view_seconds(graph, size_px), file_seconds(work.files, size_px)
    views = (2 + config.feature_views) * (work.train + work.outliers) + work.others
    images = work.train + work.outliers + work.others
    step = step_seconds(config, resolve(config), work, features)
    steps = config.heads_averaged * config.epochs * max(work.train // config.batch_images, 1)
    made_of = [f"{views} views of images through the backbone at {1000 * view:.1f} ms"]
    if decoded:
        made_of.insert(0, f"{images} images read at {1000 * decoded:.1f} ms")
    of_each = f"of each of {heads} heads" if heads > 1 else "of the head"
    made_of.append(f"{steps} steps {of_each} at {1000 * step:.1f} ms")
    return Estimate(seconds=images * decoded + views * view + heads * steps * step, made_of=made_of)


def _scratch(config: Config, work: Work) -> Estimate:
    method = resolve(config)
    whole = find_device(config.device).type == "cuda"  # a GPU takes a full batch in little more than the time of a few
    few = config.model_copy(update={"batch_images": config.batch_images if whole else STEP_IMAGES})
    step = step_seconds(few, method, work, None) * config.batch_images / few.batch_images
    steps = config.epochs * max(work.train // config.batch_images, 1)
    seconds, made_of = steps * step, [f"{steps} steps of {config.batch_images} images at {step:.2f} s"]
    if method.stage2 != NONE and STAGES[method.stage2].learns and not STAGES[method.stage2].on_features:
        assert config.stage2_epochs
        share = 1 / (method.views + method.outliers_per_image * method.takes_outliers)  # one view, no outliers
        more = config.stage2_epochs * work.train * share * step / config.batch_images
        seconds += more
        made_of.append(f"{config.stage2_epochs} epochs of the second stage, at most {span(more)}")
    return Estimate(seconds=seconds, made_of=made_of)
