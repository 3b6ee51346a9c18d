"""A pretrained trunk that learns with its head: all of it (`--tune full`), or adapters in its blocks (adapters.py).

Normalisation and trunk are part of the network here, so a run holds all of its weights: later commands need timm for
the architecture, and no file of weights. Heads begin as they do on a frozen backbone, at the class means of the
features that the trunk has before its first step.
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from service.contract.bundle import Input
from service.contract.progress import Progress
from training.config import Config
from training.data.fitted import Fitted
from training.data.loading import Data
from training.data.photographs import CACHE
from training.data.readers import DataError, ImageSet, Pixels
from training.network import adapters, backbones
from training.network.frozen import input_of
from training.network.network import FeatureTrunk, to_input
from training.network.preprocessing import Preprocessing
from training.network.sized import written

FIRST_IMAGES = 64  # at once, for the first features
FIRST_OUTLIERS = 2000  # whose mean a reject logit begins at


class TunedTrunk(FeatureTrunk):
    """Images in [0, 1] [N, 3, H, W] → features [N, F] of length 1, by a timm trunk that may learn.

    BatchNorm keeps the statistics of the pretraining in every mode: those of small batches of few classes are worse.
    Features [N, F] of the trunk itself pass as on a frozen backbone.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    LEAST_ROOTED = 1e-4  # so that no feature's gradient is more than 50 times that of its root

    def __init__(self, backbone: nn.Module, features: int, preprocessing: Preprocessing) -> None:
        super().__init__(features)
        self.backbone = backbone
        self.register_buffer("pixel_mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(preprocessing.std).view(1, 3, 1, 1))

    def raw(self, images: Tensor) -> Tensor:
        """The trunk's own features [N, F] of images [N, 3, H, W] in [0, 1]; features pass."""
        if images.ndim != 4:
            return super().raw(images)
        features: Tensor = self.backbone((images - self.pixel_mean) / self.pixel_std)
        return features

    def train(self, mode: bool = True) -> "TunedTrunk":
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self


@dataclass(frozen=True)
class TunedBackbone:
    """What a run that tunes a backbone knows of it. `module` has the weights it begins with, or none that count."""

    module: nn.Module = field(repr=False)
    features: int
    preprocessing: Preprocessing
    target: Input
    provenance: Mapping[str, str]
    config: Config
    run: Path

    @property
    def record(self) -> dict[str, Any]:
        """For the checkpoint: what `load` needs to make the same network without a file of weights."""
        return {
            "features": self.features, "preprocessing": asdict(self.preprocessing),
            "target": self.target.model_dump(mode="json"), "provenance": dict(self.provenance),
        }  # fmt: skip

    @property
    def has_norms(self) -> bool:
        """Whether there is a BatchNorm that a second stage could learn."""
        return any(isinstance(module, nn.BatchNorm2d) for module in self.module.modules())

    def trunk(self, num_classes: int) -> TunedTrunk:
        """The trunk of the network; with adapters they alone learn in it."""
        trunk = TunedTrunk(copy.deepcopy(self.module), self.features, self.preprocessing)
        if self.config.tune == "adapters":
            trunk.requires_grad_(False)
            adapters.add(trunk.backbone, num_classes, self.config.adapter_width)
        return trunk

    def data(self, pixels: Data) -> Data:
        """`pixels`, loaded with this `target`, written to files of the run and mapped."""

        def sized(images: ImageSet) -> ImageSet:
            return replace(images, images=self.sized(images.images))

        size = self.target.height_px
        return replace(
            pixels, train=sized(pixels.train), calibration=sized(pixels.calibration), test=sized(pixels.test),
            outliers=self.sized(pixels.outliers), calibration_outliers=self.sized(pixels.calibration_outliers),
            ood=self.ood(pixels.ood), size_px=size, padding_px=max(1, size // 8),
        )  # fmt: skip

    def ood(self, sets: Mapping[str, Fitted]) -> dict[str, Pixels]:
        """OOD sets by name at the backbone's size."""
        return {name: self.sized(pixels) for name, pixels in sets.items()}

    def sized(self, images: Fitted) -> Pixels:
        if not len(images):
            return np.empty(images.shape, np.uint8)
        return written(images, self.run / CACHE)


def load(config: Config, run: Path, record: Mapping[str, Any] | None = None) -> TunedBackbone:
    """The backbone that `config` tunes, from its weights; of a run begun before from the `record` of its checkpoint.

    Raises BackboneError where timm, the model or the weights are not to be had, or it has no place for adapters.
    """
    if record is None:
        loaded = backbones.load(
            config.backbone, weights=config.weights, size_px=config.image_size_px, mean=config.backbone_mean,
            std=config.backbone_std,
        )  # fmt: skip
        assert loaded.module is not None  # the settings refuse onnx:FILE
        preprocessing, target = loaded.preprocessing, input_of(loaded.preprocessing, config)
        module, features, provenance = loaded.module, loaded.features, loaded.provenance
    else:
        preprocessing, target = Preprocessing(**record["preprocessing"]), Input(**record["target"])
        features, provenance = record["features"], record["provenance"]
        module = backbones.untrained(provenance["backbone"], preprocessing.size_px)
    if config.tune == "adapters":
        adapters.require_blocks(module, config.backbone)
    return TunedBackbone(module, features, preprocessing, target, provenance, config, run)


@torch.no_grad()
def first_features(trunk: TunedTrunk, data: Data, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(training features [N, F], labels int [N], outlier features [M, F]) of the trunk as it is, for the heads' means.

    Raises DataError where a feature is not finite.
    """
    trunk.eval()

    def of(images: Pixels, name: str) -> Tensor:
        starts = range(0, len(images), FIRST_IMAGES)
        bar = Progress(starts, desc=f"first features of {name}", unit="batch", disable=None, mininterval=1)
        batches = (torch.from_numpy(np.ascontiguousarray(images[s : s + FIRST_IMAGES])) for s in bar)
        found = [trunk.raw(to_input(batch.to(device))).float() for batch in batches]
        features = torch.cat(found) if found else torch.empty(0, trunk.features, device=device)
        if not features.isfinite().all():
            raise DataError(f"the backbone gives features of {name} that are not finite: give other --weights")
        return features

    step = max(1, len(data.outliers) // FIRST_OUTLIERS)
    labels = torch.from_numpy(data.train.labels).to(device)
    return of(data.train.images, "training images"), labels, of(data.outliers[::step], "outliers")
