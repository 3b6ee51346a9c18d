"""Everything a run depends on, in one frozen model. An unknown key is an error; units are in the names."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

CIFAR_RESNET = "cifar-resnet"
PATHS = ("data", "outliers", "split_from", "stage1_from", "weights", "feature_cache", "taxonomy")
Tune = Literal["frozen", "adapters", "full"]
# A pretrained backbone's. Frozen: found on CIFAR10-LT and 953 grocery photographs; adapters: LIFT's (Shi et al. 2024).
TUNE_DEFAULTS: dict[Tune, dict[str, Any]] = {
    "frozen": {"learning_rate": 1e-2, "weight_decay": 1e-2},
    "adapters": {"epochs": 10, "batch_images": 128, "learning_rate": 1e-2, "weight_decay": 5e-4, "augment": "photo"},
    "full": {"epochs": 10, "batch_images": 64, "weight_decay": 1e-2, "augment": "photo"},
}  # fmt: skip
FROZEN_STEPS, FROZEN_EPOCHS = 400, 10  # at least
HEAD_SCHEDULE = ("epochs", "batch_images")  # derived for a frozen backbone's head where they are not given
TRUNK_RATE = 0.1
STAGE2_EPOCHS, STAGE2_BATCH = 10, 128  # PASCL's
STAGE2_STEPS = 600  # the least: a new head needs hundreds of steps, which few images do not give in 10 epochs
PYTHON_M = "python -m training"


def program() -> str:
    """How the commands were called, for the commands that messages recommend."""
    return "tailguard" if Path(sys.argv[0]).stem == "tailguard" else PYTHON_M


def _three_numbers(given: Any) -> Any:
    """ ".5,.5,.5" as numbers: the command line reads JSON, which knows no .5, and hands on the text in brackets."""
    text = (",".join(map(str, given)) if isinstance(given, list | tuple) else str(given)).strip("[]() ")
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"give three numbers, of red, green and blue, as in 0.5,0.5,0.5, not {text!r}")
    return numbers


RGB = Annotated[tuple[float, float, float], BeforeValidator(_three_numbers)]


class Config(BaseModel):
    """The settings of `tailguard train`; the defaults are PASCL's on CIFAR-LT (REFERENCE A4-A6)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    dataset: Literal["cifar10", "cifar100", "folder", "digits"] = "cifar10"
    """CIFAR pickles, photographs in class folders or in a list, or scikit-learn's digits."""
    data: Path | None = None
    """Folder of the data set (digits needs none), or a CSV, JSON lines or Parquet list of path, label, split, group."""
    group_by: str = "near"
    """Which photographs share a side of every split: near (duplicates), folder, column:NAME, pattern:REGEX or none."""
    unreadable: Literal["skip", "stop"] = "skip"
    """Photographs that cannot be read: leave them out and list them, or stop at the first."""
    class_level: int | None = Field(default=None, ge=1)
    """Nested class folders: how many name a class; not given: down to the folder that holds the images."""
    test_fraction: float | None = Field(default=None, gt=0, lt=1)
    """Of each class, for test, where there is no test part; not given: 0.2; frozen: none, figures by cross-fit."""
    imbalance: float | None = Field(default=None, ge=1)
    """Cut the training set to this ratio of the largest class to the smallest; 1 = balanced; not given: as it is."""
    outliers: Path | None = None
    """Training outliers: a .npy or .npz array uint8 [N, H, W, 3], a folder, or a list, of its rows the outliers."""
    image_size_px: int | None = Field(default=None, ge=8)
    """Side of the square the network sees (folder data only; default 32)."""
    augment: Literal["none", "flip", "crop", "paper", "photo"] = "paper"
    """How a training image is varied: see training/data/augment.py."""
    calibration_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of each class (and of the outliers) kept from training for calibration; 0 = none, as in the paper."""
    taxonomy: Path | None = None
    """A tree above the classes, CSV lines class,path; not given: that of nested folders or a list's column taxonomy."""
    split_from: Path | None = None
    """Folder of another run, whose images stay on the sides that they have there; not given: split anew."""

    backbone: str = CIFAR_RESNET
    """cifar-resnet, from scratch; lite0 or lite2, EfficientNet-Lite of ImageNet-1k; a timm model; or onnx:FILE."""
    weights: Path | None = None
    """Pretrained weights of a timm model, .pth or .safetensors; not given: timm downloads its own."""
    tune: Tune | None = None
    """frozen: only a head learns (the default); adapters: those in a vision transformer learn too; full: all does."""
    trunk_rate: float | None = Field(default=None, gt=0, le=1)
    """With --tune full, the trunk's learning rate as a share of the head's; not given: 0.1."""
    adapter_width: int | None = Field(default=None, ge=1)
    """With --tune adapters, channels of an adapter at its narrowest; not given: LIFT's, by classes and blocks."""
    feature_views: int = Field(default=0, ge=0)
    """Random crops of each training image whose features are computed beside those of the image and its mirror."""
    feature_cache: Path | None = None
    """Folder for features that several runs share; not given: the run's own."""
    backbone_stages: bool = False
    """Features of every stage of a frozen timm model beside those of its last layer."""
    backbone_fit: Literal["crop", "square", "stretch"] | None = None
    """How photographs become square: crop, as backbones were trained (the default); square, uncut; or stretch."""
    backbone_mean: RGB | None = None
    """Of RGB in [0, 1], as is the next: .5,.5,.5, say; not given: the backbone's own."""
    backbone_std: RGB | None = None
    backbone_layout: Literal["NCHW", "NHWC"] | None = None
    """Of an onnx:FILE that does not say it."""
    backbone_precision: Literal["fp32", "int8"] = "fp32"
    """int8: a convolutional backbone is quantised on training images first, and the head learns on its features."""
    heads_averaged: int = Field(default=1, ge=1)
    """On a frozen backbone: so many heads learn, in another order each, and the mean of their logits is kept."""
    backbone_int8: str | None = None
    """sha256 of an int8 backbone that lies among the features already, so that nothing is quantised anew."""

    method: str = "pascl-abf"
    """A row of METHODS; see `tailguard methods`."""
    loss: str | None = None
    """Replaces the method's loss (losses.LOSSES), as the next ones do with its other parts."""
    sampler: str | None = None
    """samplers.SAMPLERS."""
    outlier_term: str | None = None
    """outliers.OUTLIER_TERMS, or none."""
    contrast: str | None = None
    """contrast.CONTRASTS, or none."""
    stage2: str | None = None
    """stage2.STAGES, or none."""
    partial: bool | None = None
    """PASCL's partiality: only tail classes take part in the contrast."""
    asymmetric: bool | None = None
    """PASCL's asymmetry: outliers are negatives only."""
    placeholders: bool | None = None
    """Mixtures of two classes' features are outliers too (PROSER); needs an outlier term."""
    views: int | None = Field(default=None, ge=1, le=2)
    """Of each in-distribution image in a step."""
    width: int = Field(default=64, ge=8)  # below 8 oneDNN writes past a buffer (its issue 6035)
    """Channels of the first stage; 64 is ResNet-18."""
    outlier_weight: float | None = Field(default=None, ge=0)
    """λ1; not given: the method's."""
    contrast_weight: float | None = Field(default=None, ge=0)
    """λ2; not given: the method's (.1 below 50 classes, .02 from there on)."""
    contrast_temperature: float | None = Field(default=None, gt=0)
    """T of the contrastive term; not given: .07 below 50 classes, .2 from there on."""
    tail_fraction: float = Field(default=0.4, gt=0, le=1)
    """k: the share of classes, the rarest, that the contrastive term treats as tail."""

    epochs: int = Field(default=200, ge=1)
    """Epochs of stage 1; on a frozen backbone, not given: 10, or as many as make 400 steps where the images are few."""
    batch_images: int = Field(default=256, ge=2)
    """In-distribution images per step, each in two views, and as many outliers; over all processes. On a frozen
    backbone, not given: all training images where they are fewer."""
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    stage1_from: Path | None = None
    """Folder of another run whose finished stage 1 to take, so that only the second stage is trained."""
    stage2_epochs: int | None = Field(default=None, ge=1)
    """Epochs of stage 2; not given: 10, or as many as make 600 steps where the images are few."""
    stage2_batch_images: int | None = Field(default=None, ge=2)
    """Images per step of stage 2; not given: 128, or the batch of stage 1 where that is smaller."""
    stage2_learning_rate: float | None = Field(default=None, gt=0)
    """Not given: the second stage's (5e-4 for ABF)."""

    seed: int = Field(default=0, ge=0)
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 autocast on a GPU and on a CPU with bf16 instructions, else fp32."""
    threads: int | None = Field(default=None, ge=1)
    """Threads per process on a CPU; not given: PyTorch's choice."""
    on: Literal["here", "ray"] = "here"
    """Who computes a frozen backbone's features: this machine, or Ray's workers: of RAY_ADDRESS, or local ones."""
    checkpoint_epochs: int = Field(default=1, ge=1)
    """A checkpoint every so many epochs (and always at the end and on Ctrl-C)."""

    def with_schedule(self, images: int) -> "Config":
        """The same settings, the batches and epochs that were not given derived for so many training images."""
        return self._with_head_schedule(images)._with_stage2_schedule(images)

    def _with_head_schedule(self, images: int) -> "Config":
        derived = set(HEAD_SCHEDULE) - self.model_fields_set
        if not self.frozen or not derived:
            return self
        batch = max(min(self.batch_images, images), 2) if "batch_images" in derived else self.batch_images
        epochs = max(FROZEN_EPOCHS, math.ceil(FROZEN_STEPS / max(images // batch, 1)))
        found = {"batch_images": batch, "epochs": epochs}
        return self.model_copy(update={key: found[key] for key in derived})

    def _with_stage2_schedule(self, images: int) -> "Config":
        batch = self.stage2_batch_images or min(STAGE2_BATCH, self.batch_images)
        epochs = self.stage2_epochs or max(STAGE2_EPOCHS, math.ceil(STAGE2_STEPS / max(images // batch, 1)))
        return self.model_copy(update={"stage2_batch_images": batch, "stage2_epochs": epochs})

    def with_absolute_paths(self) -> "Config":
        """The same settings with paths that name the same places from every working folder."""
        return self.model_copy(update={key: path.resolve() for key in PATHS if (path := getattr(self, key))})

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_a_pretrained_backbone(cls, given: Any) -> Any:
        usual = cls.model_fields["backbone"].default
        if not isinstance(given, Mapping) or given.get("backbone", usual) == CIFAR_RESNET:
            return given
        tune: Any = given.get("tune") or "frozen"
        return TUNE_DEFAULTS.get(tune, {}) | {**given, "tune": tune}

    @model_validator(mode="after")
    def _settings_that_fit_the_backbone(self) -> "Config":
        if self.backbone == CIFAR_RESNET:
            for key in ("weights", "backbone_mean", "backbone_std", "backbone_layout", "backbone_fit", "tune"):
                if (value := getattr(self, key)) is not None:
                    raise ValueError(f"{flag(key)} {value} is for a pretrained backbone: give --backbone too")
        for key, plain, why in (
            ("backbone_precision", "fp32", "on whose features a head learns; what is trained is made int8 by export"),
            ("heads_averaged", 1, "on which a head takes seconds; train runs with other seeds instead"),
            ("on", "here", "whose features are computed once; one that learns is trained here: leave it out"),
        ):  # fmt: skip
            if (value := getattr(self, key)) != plain and not self.frozen:
                raise ValueError(f"{flag(key)} {value} is for a frozen backbone, {why}")
        if self.tunes and self.backbone.startswith("onnx:"):
            raise ValueError(
                f"--tune {self.tune} trains a backbone, and {self.backbone} cannot be trained: use --tune frozen, or "
                "the timm model that it was exported from with its --weights"
            )
        for key, tune in (
            ("feature_views", "frozen"), ("feature_cache", "frozen"), ("backbone_stages", "frozen"),
            ("trunk_rate", "full"), ("adapter_width", "adapters"),
        ):  # fmt: skip
            if (value := getattr(self, key)) and self.tune != tune:
                raise ValueError(f"{flag(key)} {value} is for --tune {tune}, and --tune is {self.tune}")
        return self

    @property
    def frozen(self) -> bool:
        """Whether a head learns on the features of a backbone that does not."""
        return self.tune == "frozen"

    @property
    def tunes(self) -> bool:
        """Whether a pretrained backbone learns with its head, all of it or adapters."""
        return self.tune in ("adapters", "full")


def flag(key: str) -> str:
    """A setting's name on the command line."""
    return f"--{key.replace('_', '-')}"


def options(settings: Mapping[str, object]) -> list[str]:
    """Settings as arguments of a command."""
    switches = {key for key, field in Config.model_fields.items() if field.annotation is bool}
    texts = {key: ",".join(map(str, v)) if isinstance(v, tuple) else str(v) for key, v in settings.items()}
    on = {key for key, value in settings.items() if value is True and key in switches}
    return [part for key, text in texts.items() for part in ((flag(key),) if key in on else (flag(key), text))]
