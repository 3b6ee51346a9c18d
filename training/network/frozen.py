"""A data set as a frozen backbone sees it: its images become features, and everything after that is as for images."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.contract import images as service_images
from service.contract.bundle import Input
from training.config import Config
from training.data.loading import Data
from training.data.readers import DataError, FeatureViews, ImageSet, Pixels
from training.network import backbones
from training.network.backbones import Backbone
from training.network.features import FeatureCache
from training.network.preprocessing import Preprocessing
from training.network.quantized import quantize

CACHE_FOLDER = "features"
QUANTIZATION_IMAGES = 192


@dataclass(frozen=True)
class Resized:
    """Images in memory, brought to the backbone's size as the service brings an upload to it."""

    pixels: Pixels
    target: Input

    def __len__(self) -> int:
        return len(self.pixels)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.target.model_dump_json().encode())
        for start in range(0, len(self.pixels), 1024):
            digest.update(np.ascontiguousarray(self.pixels[start : start + 1024]).data)
        return digest.hexdigest()

    def batch(self, start: int, stop: int) -> NDArray[np.uint8]:
        return resized(self.pixels[start:stop], self.target)


def resized(pixels: Pixels, target: Input) -> Pixels:
    """uint8 [N, H, W, 3] at the size that `target` names, as the service would do it."""
    if pixels.shape[1:3] == (target.height_px, target.width_px):
        return pixels
    return np.stack([service_images.fit(Image.fromarray(image), target) for image in pixels])


def input_of(preprocessing: Preprocessing, config: Config) -> Input:
    """How the service brings an upload to the backbone: small square pictures whole, photographs as it was trained."""
    size = preprocessing.size_px
    return Input(height_px=size, width_px=size, fit="stretch", resampling="bilinear")


@dataclass(frozen=True)
class FrozenBackbone:
    """A backbone with the cache of its features in the folder of a run."""

    backbone: Backbone
    target: Input
    cache: FeatureCache

    def at_precision(self, config: Config, pixels: Data) -> "FrozenBackbone":
        """This backbone as `config` wants it: in int8 it is quantised on training images, and the graph kept beside the
        features for the commands that come after. Raises BackboneError where int8 does not suit it."""
        if config.backbone_precision == "fp32":
            return self
        images = pixels.train.images
        chosen = images[:: max(1, len(images) // QUANTIZATION_IMAGES)][:QUANTIZATION_IMAGES]
        graph = quantize(self.backbone.graph(), resized(chosen, self.target))
        found = self._in_int8(graph)
        path = self._int8_file(found.backbone.provenance["int8_sha256"])
        path.parent.mkdir(parents=True, exist_ok=True)
        begun = path.with_suffix(f".{os.getpid()}")
        begun.write_bytes(graph)
        os.replace(begun, path)
        return found

    def as_recorded(self, recorded: Mapping[str, str]) -> "FrozenBackbone":
        """This backbone with the int8 graph that a run was trained on. DataError where that is gone or changed."""
        wanted = recorded.get("int8_sha256")
        if wanted is None:
            return self
        path = self._int8_file(wanted)
        graph = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(graph).hexdigest() != wanted:
            raise DataError(
                f"{path}, the int8 backbone of this run, is gone or has changed: put it back, or train again"
            )
        return self._in_int8(graph)

    def _int8_file(self, sha256: str) -> Path:
        return self.cache.folder / f"backbone-int8-{sha256[:16]}.onnx"

    def _in_int8(self, graph: bytes) -> "FrozenBackbone":
        provenance = self.backbone.provenance | {"int8_sha256": hashlib.sha256(graph).hexdigest()}
        return replace(
            self, backbone=replace(self.backbone, int8=graph, provenance=provenance),
            cache=replace(self.cache, graph=graph),
        )  # fmt: skip

    def settings(self, config: Config) -> Config:
        """`config` with the side of the backbone's images, at which photographs are read."""
        size = self.target.height_px if config.dataset == "folder" else config.image_size_px
        return config.model_copy(update={"image_size_px": size})

    def data(self, pixels: Data) -> Data:
        """`pixels` with features in the place of images; the images themselves stay reachable as `photographs`."""

        def featured(name: str, images: ImageSet, *, augmented: bool = False) -> ImageSet:
            return replace(
                images, images=self.features(name, images.images, augmented=augmented), file_keys=images.keys
            )

        return replace(
            pixels,
            train=featured("train", pixels.train, augmented=True),
            calibration=featured("calibration", pixels.calibration),
            test=featured("test", pixels.test),
            outliers=self.features("outliers", pixels.outliers, augmented=True),
            calibration_outliers=self.features("calibration-outliers", pixels.calibration_outliers),
            ood=self.ood(pixels.ood),
            photographs=pixels,
        )

    def ood(self, sets: Mapping[str, Pixels]) -> dict[str, FeatureViews]:
        """The features of OOD sets by name."""
        return {name: self.features(f"ood-{name}", pixels) for name, pixels in sets.items()}

    def features(self, name: str, pixels: Pixels, *, augmented: bool = False) -> FeatureViews:
        """float32 [N, V, F]; one view unless `augmented`."""
        return self.cache.features(name, Resized(pixels, self.target), views=None if augmented else 1)


def load(config: Config, run: Path) -> FrozenBackbone:
    """The backbone that `config` names, its features kept in `run`/features. Raises BackboneError."""
    backbone = backbones.load(
        config.backbone, weights=config.weights, size_px=config.image_size_px, mean=config.backbone_mean,
        std=config.backbone_std, layout=config.backbone_layout,
    )  # fmt: skip
    target = input_of(backbone.preprocessing, config)
    cache = FeatureCache(
        run / CACHE_FOLDER, backbone.graph(), backbone.preprocessing, extra_views=config.feature_views,
        mirror=config.augment != "none", threads=config.threads,
    )  # fmt: skip
    return FrozenBackbone(backbone, target, cache)


def require_same(run: Path, recorded: Mapping[str, str], backbone: Backbone) -> None:
    """DataError when the backbone at hand is not the one that a run was trained on."""
    for key in ("backbone", "weights_sha256"):
        if recorded.get(key) != backbone.provenance.get(key):
            raise DataError(
                f"{run} was trained on {key} {recorded.get(key)}, and --weights now gives "
                f"{backbone.provenance.get(key)}: give the file it was trained with"
            )
