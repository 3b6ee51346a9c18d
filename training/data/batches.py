"""Batches of a stage, drawn on the device where the images lie."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.data.readers import DataError, ImageSet, Pixels
from training.data.samplers import SAMPLERS

MINED_IMAGES = 512  # whose easiness is asked at once


@dataclass(frozen=True)
class Batch:
    """One step: uint8 [n, H, W, 3], int [n], uint8 [m, H, W, 3], the step's generator, and the share of epochs done."""

    images: Tensor
    labels: Tensor
    outliers: Tensor
    generator: torch.Generator
    progress: float


Easiness = Callable[[Tensor], Tensor]  # images uint8 [P, H, W, 3] → [P]; larger = more easily told from the classes


class Features(NamedTuple):
    """Labelled features in the place of images: float [N, F], int [N], and the C class names."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]


class Batches:
    """Batches of one stage, drawn on the device, where all images lie as uint8 (or features as float) unless mapped.

    What a step draws depends on (seed, stage, epoch, step) alone, so a run resumes anywhere, exactly. An incomplete
    last batch of in-distribution images is dropped. Outliers come `per_image` to an image, reshuffled each epoch; where
    they are fewer than an epoch needs they come round again in another order (the paper's 30,000 never do).

    `mining` (Chen et al. 2021): an epoch's outliers are those from this share of a pool on, the pool (four times what
    the epoch needs, or all there are) in ascending order of `easiness`.
    """

    def __init__(
        self, images: ImageSet | Features, outliers: Pixels | None, batch_images: int, *, seed: int, stage: int,
        device: torch.device, sampler: str = "natural", per_image: int = 1, mining: float | None = None,
    ) -> None:  # fmt: skip
        if len(images.labels) < batch_images:
            raise DataError(f"{len(images.labels)} training images do not fill a batch of {batch_images}: lower it")
        self.images = _placed(images.images, device)
        self.labels = torch.as_tensor(images.labels).to(device)
        self.num_classes = len(images.classes)
        self.outliers = self.images[:0] if outliers is None else _placed(outliers, device)
        self.batch_images, self.seed, self.stage, self.device = batch_images, seed, stage, device
        self.sampler, self.mining = SAMPLERS[sampler], mining
        self.steps = len(images.labels) // batch_images
        self.outliers_per_step = min(batch_images * per_image, len(self.outliers))
        self.mined: Tensor | None = None  # the order of the current epoch's outliers, which a resumed run cannot redo

    def _generator(self, epoch: int, step: int) -> torch.Generator:
        key = np.random.SeedSequence([self.seed, self.stage, epoch, step]).generate_state(1, np.uint64)[0]
        return torch.Generator(self.device).manual_seed(int(key) & (2**63 - 1))

    def epoch(
        self, epoch: int, first_step: int = 0, *, progress: float = 0.0, easiness: Easiness | None = None
    ) -> Iterator[Batch]:
        """The global batches of one epoch from `first_step` on."""
        draw = self._generator(epoch, 2**32 - 1)
        order = self.sampler(self.labels, self.num_classes, self.steps * self.batch_images, progress, draw)
        if self.mining is None or easiness is None:
            outlier_order = self._deck(len(self.outliers), draw)
        else:
            if first_step == 0 or self.mined is None:
                self.mined = self._mine(self.mining, easiness, draw)
            outlier_order = self.mined
        for step in range(first_step, self.steps):
            index = order[step * self.batch_images : (step + 1) * self.batch_images]
            others = outlier_order[step * self.outliers_per_step : (step + 1) * self.outliers_per_step]
            yield Batch(
                _rows(self.images, index), self.labels[index], _rows(self.outliers, others),
                self._generator(epoch, step), progress,
            )  # fmt: skip

    def _deck(self, size: int, draw: torch.Generator) -> Tensor:
        """Indices below `size` for every outlier of an epoch: as many permutations as it takes."""
        rounds = -(-self.steps * self.outliers_per_step // max(size, 1))
        decks = [torch.randperm(size, generator=draw, device=self.device) for _ in range(rounds)]
        return torch.cat(decks) if decks else torch.empty(0, dtype=torch.int64, device=self.device)

    def _mine(self, share: float, easiness: Easiness, draw: torch.Generator) -> Tensor:
        needed = self.steps * self.outliers_per_step
        pool = torch.randperm(len(self.outliers), generator=draw, device=self.device)[: 4 * needed]
        scores = torch.cat([easiness(_rows(self.outliers, part)) for part in torch.split(pool, MINED_IMAGES)])
        hardest_first = pool[scores.argsort(stable=True)]
        chosen = hardest_first[int(share * len(pool)) :][:needed]
        return chosen[self._deck(len(chosen), draw)]


def _placed(images: Any, device: torch.device) -> Tensor:
    """Images mapped from a file stay there, on every device: memory need not hold them all."""
    tensor = torch.as_tensor(images)
    return tensor if isinstance(images, np.memmap) else tensor.to(device)


def _rows(images: Tensor, index: Tensor) -> Tensor:
    """images[index] on the device of `index`."""
    if images.device == index.device:
        return images[index]
    return images[index.to(images.device)].to(index.device)
