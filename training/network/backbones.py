"""Pretrained trunks: any model that timm knows, with weights from a file or timm's own download, or an ONNX extractor.

    backbone = load("lite0")      # weights that a package index holds (pretrained.py); or any timm name
    graph = backbone.graph()      # ONNX: images uint8 [N, H, W, 3] → features float32 [N, F], normalisation inside

Mean, standard deviation, size, crop and resampling are the backbone's own. Weights by file name are matched tensor by
tensor; a file that leaves a tensor of the trunk open is refused, because random weights give features without a word.
timm is imported here only, and only when a timm model is asked for.
"""

import importlib.metadata
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from service.contract.lines import one_line
from service.contract.manifest import Resampling
from training.network import extractor, pretrained
from training.network.extractor import Layout
from training.network.onnx_graph import FEATURES, exported
from training.network.preprocessing import BackboneError, Preprocessing, three
from training.network.weights import DOWNLOADED, content_digest, fill

ONNX_PREFIX = "onnx:"
NMS = "{}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
RESAMPLING: dict[str, Resampling] = {"bilinear": "bilinear", "bicubic": "bicubic", "lanczos": "lanczos"}


@dataclass(frozen=True)
class Backbone:
    """A trunk with its preprocessing. `module`: float [N, 3, H, W], normalised → [N, F]; None for an ONNX extractor."""

    name: str
    preprocessing: Preprocessing
    features: int
    module: nn.Module | None = field(repr=False)
    provenance: dict[str, str]
    extractor: bytes | None = field(default=None, repr=False)  # ONNX, its input normalised, as its owner exported it
    layout: Layout = "NCHW"
    int8: bytes | None = field(default=None, repr=False)  # its graph after quantized.quantize, where that is wanted

    def graph(self) -> bytes:
        """ONNX: `images` uint8 [N, H, W, 3], N dynamic → `features` float32 [N, F]."""
        if self.int8 is not None:
            return self.int8
        if self.module is not None:
            size = self.preprocessing.size_px
            sample = torch.zeros(2, size, size, 3, dtype=torch.uint8)
            return exported(Normalised(self.module, self.preprocessing), sample, takes="images", gives=[FEATURES])
        assert self.extractor is not None
        return extractor.with_normalisation(self.extractor, self.preprocessing, self.layout)


class Normalised(nn.Module):
    """uint8 [N, H, W, 3] → features [N, F]: (x/255 − mean)/std, then the trunk."""

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.trunk = trunk
        self.register_buffer("mean", 255 * torch.tensor(preprocessing.mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(preprocessing.std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2).to(torch.float32)  # (N, 3, H, W)
        features: Tensor = self.trunk((x - self.mean) / self.std)
        return features


class Stages(nn.Module):
    """[N, 3, H, W] → [N, F]: a timm model's own features and, beside them, the means over positions of its stages."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        last, maps = self.model.forward_intermediates(images)  # type: ignore[operator]
        means = [stage.mean(dim=(2, 3)) for stage in maps]  # [N, C, H, W] each, transformers' blocks too
        return torch.cat([self.model.forward_head(last), *means], dim=1)  # type: ignore[operator]


def _with_stages(backbone: Backbone) -> Backbone:
    """Raises BackboneError where timm does not give the stages of the model."""
    assert backbone.module is not None
    module, size = Stages(backbone.module).eval(), backbone.preprocessing.size_px
    try:
        features = _count_features(module, backbone.name, size)
    except BackboneError as error:
        raise BackboneError(f"--backbone-stages: timm does not give the stages of {backbone.name}: {error}") from error
    layers = f"the last ({backbone.features} features) and the means of its stages"
    return replace(backbone, module=module, features=features, provenance=backbone.provenance | {"layers": layers})


def load(
    name: str, *, weights: Path | None = None, size_px: int | None = None, mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None, layout: Layout | None = None, stages: bool = False,
) -> Backbone:  # fmt: skip
    """The backbone `name`: lite0, lite2, a timm model, or `onnx:FILE`. What is None is the backbone's own.

    With `stages` its features are those of the last layer and, beside them, of every stage the mean over positions.

    Raises BackboneError when timm is not installed, does not know the name or cannot download its weights, and when a
    file is missing, unreadable, or leaves a tensor of the trunk open.
    """
    if name.startswith(ONNX_PREFIX):
        if weights is not None:
            raise BackboneError(f"--weights {weights}: {name} holds its weights itself; leave --weights out")
        if stages:
            raise BackboneError(f"--backbone-stages is for timm models: {name} gives one layer; leave it out")
        read = extractor.read(Path(name.removeprefix(ONNX_PREFIX)), size_px, mean, std, layout)
        return Backbone(
            name, read.preprocessing, read.features, None, read.provenance, extractor=read.graph, layout=read.layout
        )
    if layout is not None:
        raise BackboneError(f"--backbone-layout {layout} is for onnx:FILE; {name} has its own")
    if wanted := pretrained.find(name):
        name, weights = wanted.model, pretrained.require(wanted, weights) if weights else pretrained.fetch(wanted)
    found = _from_timm(name, weights, size_px, mean, std)
    return _with_stages(found) if stages else found


# ------------------------------------------------------------------------------------------------------------- timm


_operators: torch.library.Library | None = None  # kept alive: the schemas go with it


def import_timm() -> Any:
    """timm, which imports torchvision. Its wheel is built for CUDA; beside a CPU torch its operators are missing.

    timm uses none of them, so their schemas are enough to import it. Raises BackboneError when timm is not installed.
    """
    global _operators
    if _operators is None and not hasattr(torch.ops.torchvision, "nms") and _torchvision_lacks_operators():
        _operators = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            _operators.define(NMS.format(operator))  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torchvision says of its missing image library
            import timm
    except ImportError as error:
        raise BackboneError(
            f"a timm backbone needs timm, which cannot be imported ({error}): pip install 'tailguard[backbones]'"
        ) from error
    return timm


def _torchvision_lacks_operators() -> bool:
    """Whether torch is a CPU build: torchvision's own operators then do not load."""
    try:
        importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return False
    return torch.version.cuda is None and torch.version.hip is None


def untrained(name: str, size_px: int) -> nn.Module:
    """The trunk of the timm model `name` with random weights, for images of this size: weights are put in later."""
    timm = import_timm()
    if not timm.is_model(name):
        raise BackboneError(f"timm {timm.__version__} does not know {name}, which the run has: install another timm")
    module: nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
    own = timm.data.resolve_data_config({}, model=module)["input_size"][-1]
    if size_px != own:
        _resize(module, name, size_px, own)
    return module


def _from_timm(
    name: str, weights: Path | None, size_px: int | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> Backbone:
    timm = import_timm()
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:5]
        raise BackboneError(
            f"--backbone {name} is no model of timm {timm.__version__}"
            + (f"; near it are {', '.join(near)}" if near else "; timm.list_models() names them all")
        )
    try:
        module = timm.create_model(name, pretrained=weights is None, num_classes=0)
    except Exception as error:  # a hub that cannot be reached raises a dozen unrelated classes
        if weights is not None:
            raise BackboneError(f"--backbone {name} cannot be made by timm: {one_line(error)}") from error
        raise BackboneError(
            f"the weights of {name} cannot be fetched ({one_line(error)}): give a file with --weights"
        ) from error
    config = timm.data.resolve_data_config({}, model=module)
    provenance = {
        "backbone": name,
        "library": f"timm {timm.__version__}",
        "licence": "not stated by the file",  # timm's entry is on the weights that it would fetch
    }
    if weights is None:
        theirs = module.pretrained_cfg
        provenance |= {"licence": str(theirs.get("license") or "not stated by timm"),
                       "weights": str(theirs.get("hf_hub_id") or theirs.get("url")),
                       DOWNLOADED: content_digest(module.state_dict())}  # fmt: skip
    else:
        provenance |= fill(module, name, weights)
    if facts := pretrained.known(provenance.get("weights_sha256")):  # wherever the file lay
        mean, std = mean or facts.mean, std or facts.std
        provenance |= {"licence": facts.licence, "trained_on": facts.trained_on,
                       "weights": f"{facts.package} {facts.version}"}  # fmt: skip
    own = config["input_size"][-1]
    size = size_px or own
    if size != own:
        _resize(module, name, size, own)
    preprocessing = Preprocessing(
        size, three(mean or config["mean"], "mean"), three(std or config["std"], "std"),
        crop_share=float(config["crop_pct"]) if size >= own else 1.0,  # smaller pictures have nothing to spare
        resampling=RESAMPLING.get(config["interpolation"], "bicubic"),
    )  # fmt: skip
    module = module.eval()
    return Backbone(name, preprocessing, _count_features(module, name, size), module, provenance)


def _resize(module: nn.Module, name: str, size: int, own: int) -> None:
    """Let a model with a fixed grid of positions take another size; a convolutional one needs nothing."""
    if hasattr(module, "set_input_size"):
        try:
            module.set_input_size(img_size=(size, size))  # type: ignore[operator]
        except Exception as error:
            raise BackboneError(
                f"--image-size-px {size} does not fit {name}, whose own size is {own}: {one_line(error)}"
            ) from error


@torch.no_grad()
def _count_features(module: nn.Module, name: str, size: int) -> int:
    try:
        shape = module(torch.zeros(1, 3, size, size)).shape
    except Exception as error:
        raise BackboneError(f"{name} does not run on {size} x {size} pixels: {one_line(error)}") from error
    if len(shape) != 2:
        raise BackboneError(f"{name} gives features of shape {list(shape)}, not [N, F]: choose another backbone")
    return int(shape[1])
