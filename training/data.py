"""What a run trains on: the long-tail cut, the calibration split, and batches that live on the device."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training import readers
from training.config import Config
from training.readers import DataError, ImageSet, Pixels
from training.samplers import SAMPLERS

SPLIT_SEED = 0  # one split for all seeds of a comparison


@dataclass(frozen=True)
class Data:
    """Everything a run sees. `ood` is filled for digits only; other OOD sets are named at evaluation."""

    train: ImageSet
    calibration: ImageSet
    test: ImageSet
    outliers: Pixels
    calibration_outliers: Pixels
    ood: dict[str, Pixels]
    size_px: int
    padding_px: int
    flip: bool


def long_tail_counts(num_classes: int, largest: int, imbalance: float) -> list[int]:
    """Images per class, head to tail: floor(largest · (1/imbalance)^(c/(C−1))) (Cao et al. 2019, REFERENCE A2)."""
    if num_classes < 1 or largest < 1 or imbalance < 1:
        raise ValueError(
            f"num_classes and largest must be at least 1 and imbalance at least 1, "
            f"not {num_classes}, {largest}, {imbalance}"
        )
    share = [(1 / imbalance) ** (c / max(num_classes - 1, 1)) for c in range(num_classes)]
    # the margin keeps 500 · 0.01 from becoming 4 where the product falls a rounding below 5
    return [int(largest * s + 1e-9) for s in share]


def long_tail_cut(images: ImageSet, imbalance: float) -> ImageSet:
    """The first n_c images of each class in their order. DataError where a class has too few for its place."""
    available = images.counts
    wanted = long_tail_counts(len(images.classes), int(available.max()), imbalance)
    for name, want, have in zip(images.classes, wanted, available, strict=True):
        if want > have:
            raise DataError(
                f"imbalance {imbalance:g} asks for {want} images of class {name!r}, which has {have}: "
                "use a larger imbalance, or leave it out to take the data as they are"
            )
        if want == 0:
            raise DataError(f"imbalance {imbalance:g} leaves class {name!r} without an image: use a smaller one")
    keep = [np.flatnonzero(images.labels == c)[:n] for c, n in enumerate(wanted)]
    return images.take(np.sort(np.concatenate(keep)))


def calibration_split(images: ImageSet, fraction: float) -> tuple[ImageSet, ImageSet]:
    """(rest, calibration): a stratified random share, at least 1 image of each class that has 5 or more."""
    random = np.random.default_rng(SPLIT_SEED)
    chosen = []
    for c in range(len(images.classes)):
        members = random.permutation(np.flatnonzero(images.labels == c))
        n = round(fraction * len(members))
        n = max(n, 1) if len(members) >= 5 and fraction > 0 else min(n, max(len(members) - 1, 0))
        chosen.append(members[:n])
    calibration = np.sort(np.concatenate(chosen))
    rest = np.setdiff1d(np.arange(len(images.labels)), calibration)
    return images.take(rest), images.take(calibration)


def load(config: Config) -> Data:
    """Read, cut and split what `config` names. Raises DataError with a remedy."""
    outliers, ood, size = None, {}, 32
    if config.dataset == "digits":
        train, test, outliers, novel = readers.digits()
        ood, size = {"nine": novel}, 16
    else:
        if config.data is None:
            raise DataError(f"--dataset {config.dataset} needs --data DIR")
        if config.dataset == "folder":
            size = config.image_size_px or 32
            train, test = readers.class_folders(config.data, size)
        else:
            train, test = readers.cifar(config.data, hundred=config.dataset == "cifar100")
    for part, images in (("training", train), ("test", test)):
        if empty := [name for name, n in zip(images.classes, images.counts, strict=True) if n == 0]:
            raise DataError(f"no {part} image of class {', '.join(empty[:5])}: every class needs at least one")
    if config.imbalance is not None:
        train = long_tail_cut(train, config.imbalance)
    train, calibration = calibration_split(train, config.calibration_fraction)
    if config.outliers is not None:
        outliers = readers.array_or_folder(config.outliers, size)
    if outliers is None:
        outliers = np.empty((0, size, size, 3), np.uint8)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(outliers))
    held = order[: round(config.calibration_fraction * len(outliers))]
    kept = np.sort(order[len(held) :])
    is_digits = config.dataset == "digits"
    return Data(
        train, calibration, test, outliers[kept], outliers[np.sort(held)], ood, size, max(1, size // 8), not is_digits
    )


def ood_sets(paths: list[Path], size_px: int) -> dict[str, Pixels]:
    """OOD test sets by name (the file's stem): files or folders; a folder of arrays gives one set per array."""
    sets: dict[str, Pixels] = {}
    for path in paths:
        arrays = sorted(p for p in path.glob("*.np[yz]")) if path.is_dir() else []
        for one in arrays or [path]:
            if one.stem in sets:
                raise DataError(f"two OOD sets are called {one.stem!r}: rename one of {path}")
            sets[one.stem] = readers.array_or_folder(one, size_px)
    return sets


@dataclass(frozen=True)
class Batch:
    """One step: uint8 [n, H, W, 3], int [n], uint8 [m, H, W, 3], the step's generator, and the share of epochs done."""

    images: Tensor
    labels: Tensor
    outliers: Tensor
    generator: torch.Generator
    progress: float


Easiness = Callable[[Tensor], Tensor]  # images uint8 [P, H, W, 3] → [P]; larger = more easily told from the classes


class Batches:
    """Batches of one stage, drawn on the device, where all images lie as uint8 (or features as float).

    What a step draws depends on (seed, stage, epoch, step) alone, so a run resumes anywhere, exactly. An incomplete
    last batch of in-distribution images is dropped. Outliers come `per_image` to an image, reshuffled each epoch; where
    they are fewer than an epoch needs they come round again in another order (the paper's 30,000 never do).

    `mining` (Chen et al. 2021): an epoch's outliers are those from this share of a pool on, the pool (four times what
    the epoch needs, or all there are) in ascending order of `easiness`.
    """

    def __init__(
        self, images: "ImageSet | Features", outliers: Pixels | None, batch_images: int, *, seed: int, stage: int,
        device: torch.device, sampler: str = "natural", per_image: int = 1, mining: float | None = None,
    ) -> None:  # fmt: skip
        if len(images.labels) < batch_images:
            raise DataError(f"{len(images.labels)} training images do not fill a batch of {batch_images}: lower it")
        self.images = torch.as_tensor(images.images).to(device)
        self.labels = torch.as_tensor(images.labels).to(device)
        self.num_classes = len(images.classes)
        self.outliers = self.images[:0] if outliers is None else torch.from_numpy(outliers).to(device)
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
                self.images[index], self.labels[index], self.outliers[others], self._generator(epoch, step), progress
            )

    def _deck(self, size: int, draw: torch.Generator) -> Tensor:
        """Indices below `size` for every outlier of an epoch: as many permutations as it takes."""
        rounds = -(-self.steps * self.outliers_per_step // max(size, 1))
        decks = [torch.randperm(size, generator=draw, device=self.device) for _ in range(rounds)]
        return torch.cat(decks) if decks else torch.empty(0, dtype=torch.int64, device=self.device)

    def _mine(self, share: float, easiness: Easiness, draw: torch.Generator) -> Tensor:
        needed = self.steps * self.outliers_per_step
        pool = torch.randperm(len(self.outliers), generator=draw, device=self.device)[: 4 * needed]
        hardest_first = pool[easiness(self.outliers[pool]).argsort(stable=True)]
        chosen = hardest_first[int(share * len(pool)) :][:needed]
        return chosen[self._deck(len(chosen), draw)]


class Features(NamedTuple):
    """Labelled features in the place of images: float [N, F], int [N], and the C class names."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]


def tail_classes(counts: NDArray[np.int64], fraction: float) -> NDArray[np.bool_]:
    """bool [C]: the rarest `fraction` of the classes, C − round((1 − k)·C) of them; ties by class order (A5)."""
    order = np.argsort(-counts, kind="stable")
    tail = np.zeros(len(counts), bool)
    tail[order[round((1 - fraction) * len(counts)) :]] = True
    return tail
