"""A data set as a frozen backbone sees it: its images become features, and everything after that is as for images."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime as ort

from service.contract.bundle import Input
from training.config import Config
from training.data.augment import KINDS
from training.data.fitted import Fitted
from training.data.loading import Data, has_mirrors
from training.data.readers import DataError, FeatureViews, Images, ImageSet, Pixels
from training.data.whole import clear_killed, replacing
from training.network import backbones, integers, on_ray, quantized, rounding
from training.network.backbones import Backbone
from training.network.extractor import EXTERNAL, Layout
from training.network.features import FeatureCache
from training.network.preprocessing import Preprocessing
from training.network.pretrained import digest
from training.network.quantized import quantize
from training.network.weights import DOWNLOADED

CACHE_FOLDER = "features"
QUANTIZATION_IMAGES = 192


def input_of(preprocessing: Preprocessing, config: Config) -> Input:
    """How the service brings an upload to the backbone: as it was trained, unless `backbone_fit` says otherwise.

    Of small square pictures (CIFAR, digits), which are cut close already, nothing is cut away.
    """
    fit = config.backbone_fit or "crop"
    share = preprocessing.crop_share if fit == "crop" and config.dataset == "folder" else 1.0
    size = preprocessing.size_px
    fit = "stretch" if fit == "stretch" else "crop"
    return Input(height_px=size, width_px=size, fit=fit, crop_share=share, resampling=preprocessing.resampling)


def with_side(config: Config, target: Input) -> Config:
    """`config` with the side of the backbone's images, at which photographs are read."""
    size = target.height_px if config.dataset == "folder" else config.image_size_px
    return config.model_copy(update={"image_size_px": size})


def quantization_sample(images: Images) -> Pixels:
    """Some of the training images, evenly over their order, by which int8 takes its ranges."""
    step = max(1, len(images) // QUANTIZATION_IMAGES)
    sample: Pixels = images[: step * QUANTIZATION_IMAGES : step]
    return sample


@dataclass(frozen=True)
class FrozenBackbone:
    """A backbone with the cache of its features; `target` is how images are brought to it."""

    backbone: Backbone
    target: Input
    cache: FeatureCache

    def at_precision(self, config: Config, pixels: Data) -> "FrozenBackbone":
        """This backbone as `config` wants it: in int8 it is quantised on training images, in half a minute, and the
        graph kept beside the features for the commands and runs that come after. Raises BackboneError where int8 does
        not suit it."""
        if config.backbone_precision == "fp32":
            return self
        if config.backbone_int8:
            return self.as_recorded({"int8_sha256": config.backbone_int8})
        chosen = quantization_sample(pixels.train.images)
        note = self.cache.folder / f"backbone-int8-of-{_made_from(self.cache.graph, chosen)[:16]}.txt"
        if note.is_file() and (kept := self._kept_int8(note.read_text())):
            return self._in_int8(kept)
        graph = quantize(self.cache.graph, chosen)
        found = self._in_int8(graph)
        made = found.backbone.provenance["int8_sha256"]
        self._write(self._int8_file(made), graph)
        self._write(note, made.encode())
        return found

    def gone_on_with(self, config: Config, pixels: Data, run: Path, recorded: Mapping[str, str]) -> "FrozenBackbone":
        """This backbone for the head of `run`, which learns on or gets a second stage: the `recorded` one of the run.

        DataError where it is another now: a head that learnt on two of them would look like any other.
        """
        require_same(run, recorded, self.backbone)
        wanted = recorded.get("int8_sha256")
        if wanted and self._int8_file(wanted).is_file():
            return self.as_recorded(recorded)
        found = self.at_precision(config, pixels)
        if (made := found.backbone.provenance.get("int8_sha256")) != wanted:
            raise DataError(f"{run} was trained on the int8 backbone {wanted}, which is gone, and from its images now "
                            f"comes {made}: put it back among its features, or train again")  # fmt: skip
        return found

    def as_recorded(self, recorded: Mapping[str, str]) -> "FrozenBackbone":
        """This backbone with the int8 graph that a run was trained on. DataError where that is gone or changed."""
        wanted = recorded.get("int8_sha256")
        if wanted is None:
            return self
        if not (graph := self._kept_int8(wanted)):
            raise DataError(
                f"{self._int8_file(wanted)}, the int8 backbone of this run, is gone or has changed: put it back, or "
                "train again"
            )
        return self._in_int8(graph)

    def take_int8(self, sha256: str, other: "FrozenBackbone") -> None:
        """Copy the int8 graph `sha256` from the features of `other`, unless it is here. DataError where it is gone."""
        target = self._int8_file(sha256)
        if not target.is_file():
            graph = other.as_recorded({"int8_sha256": sha256}).cache.graph
            self._write(target, graph)

    def _write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_killed(path)
        with replacing(path) as temporary:
            temporary.write_bytes(content)

    def _kept_int8(self, sha256: str) -> bytes | None:
        """The int8 graph of this digest; None where it is gone or has changed."""
        path = self._int8_file(sha256)
        graph = path.read_bytes() if path.is_file() else b""
        return graph if hashlib.sha256(graph).hexdigest() == sha256 else None

    def _int8_file(self, sha256: str) -> Path:
        return self.cache.folder / f"backbone-int8-{sha256[:16]}.onnx"

    def _in_int8(self, graph: bytes) -> "FrozenBackbone":
        provenance = self.backbone.provenance | {"int8_sha256": hashlib.sha256(graph).hexdigest()}
        return replace(
            self, backbone=replace(self.backbone, int8=graph, provenance=provenance),
            cache=replace(self.cache, graph=graph),
        )  # fmt: skip

    def data(self, pixels: Data) -> Data:
        """`pixels`, loaded with this `target`, with features in the place of images.

        The images themselves stay reachable as `photographs`.
        """

        def featured(name: str, images: ImageSet, *, augmented: bool = False) -> ImageSet:
            return replace(images, images=self.features(name, images.images, augmented=augmented))

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

    def ood(self, sets: Mapping[str, Fitted]) -> dict[str, FeatureViews]:
        """The features of OOD sets by name."""
        return {name: self.features(f"ood-{name}", images) for name, images in sets.items()}

    def features(self, name: str, images: Fitted, *, augmented: bool = False) -> FeatureViews:
        """float32 [N, V, F]; one view unless `augmented`."""
        return self.cache.features(name, images, views=None if augmented else 1)


def load(config: Config, run: Path) -> FrozenBackbone:
    """The backbone that `config` names, its features kept in its `feature_cache` or `run`/features.

    Raises BackboneError.
    """
    run_on = on_ray.runner(config)  # before anything is fetched
    backbone, graph = _loaded(
        config.backbone, config.weights, _stamp(config), config.image_size_px, config.backbone_mean,
        config.backbone_std, config.backbone_layout, config.backbone_stages,
    )  # fmt: skip
    target = input_of(backbone.preprocessing, config)
    backbone = replace(backbone, provenance=backbone.provenance | {"input": in_words(target)})
    cache = FeatureCache(
        config.feature_cache or run / CACHE_FOLDER, graph, backbone.preprocessing,
        extra_views=config.feature_views, mirror=KINDS[config.augment].flip and has_mirrors(config),
        threads=config.threads, run=run_on,
    )  # fmt: skip
    return FrozenBackbone(backbone, target, cache)


@lru_cache(maxsize=1)
def _loaded(
    name: str, weights: Path | None, stamp: tuple[int, int], size_px: int | None, mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None, layout: Layout | None, stages: bool,
) -> tuple[Backbone, bytes]:  # fmt: skip
    """(backbone, its graph), once in a process: `fit` goes through many commands, and an export takes 10 s."""
    backbone = backbones.load(name, weights=weights, size_px=size_px, mean=mean, std=std, layout=layout, stages=stages)
    return backbone, backbone.graph()


def _stamp(config: Config) -> tuple[int, int]:
    """Time of change and size of the file that holds the weights; zeros where none is named."""
    named = _file(config)
    return (named.stat().st_mtime_ns, named.stat().st_size) if named.is_file() else (0, 0)


def weights_sha256(config: Config) -> str | None:
    """The sha256 of the file that holds the weights; None where none is named."""
    named = _file(config)
    return digest(named) if named.is_file() else None


def _file(config: Config) -> Path:
    return config.weights or Path(config.backbone.removeprefix(backbones.ONNX_PREFIX))


def _made_from(graph: bytes, images: Pixels) -> str:
    """Changes with what an int8 graph is made from, and with what makes it."""
    digest = hashlib.sha256(f"{ort.__version__} {images.shape}".encode())
    code = [Path(str(module.__file__)).read_bytes() for module in (quantized, integers, rounding)]
    for content in (graph, np.ascontiguousarray(images).tobytes(), *code):
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def in_words(target: Input) -> str:
    """How images are brought to size, for the card."""
    how = "stretched" if target.fit == "stretch" else f"{target.crop_share:g} of the short side around the centre"
    return f"{how}, {target.resampling}, {target.width_px} x {target.height_px} px"


def require_same(run: Path, recorded: Mapping[str, str], backbone: Backbone) -> None:
    """DataError when the backbone at hand, or how it is given images, is not what a run was trained on."""
    known = [key for key in (EXTERNAL, DOWNLOADED) if key in recorded]  # an earlier version did not write it down
    for key in ("backbone", "weights_sha256", *known, "layers", "input"):
        if recorded.get(key) != backbone.provenance.get(key):
            raise DataError(
                f"{run} was trained on {key} {recorded.get(key)}, and its settings now give "
                f"{backbone.provenance.get(key)}: give the file of weights it was trained with, or train again"
            )
