"""training/network/{tuned,adapters,sized}.py: a pretrained trunk that learns, from a file to a served answer.

Every backbone here is tiny, random and written to a file first: a ResNet, a MobileNet, a ConvNeXt and a ViT.
"""

import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.training import tiny
from tests.training.half import check_halved
from tests.training.methods.test_every_method import compare
from tests.training.test_trainer import interrupt_after
from training import finished, trainer
from training.config import Config
from training.data import loading, readers
from training.data.readers import DataError
from training.evaluation import left_out, predict
from training.evaluation.measure import data_groups
from training.methods.methods import resolve
from training.network import adapters, backbones, sized, tuned
from training.network.network import CosineHead
from training.network.preprocessing import BackboneError
from training.runs import checkpoint
from training.runs.loop import Interrupted, make_optimizer

SIZE = 32
CNN, MOBILE, CONVNEXT, VIT = NAMES = "test_resnet", "mobilenetv3_small_050", "test_convnext", "test_vit"


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Any:
    """The same with fewer images compared at export, no plots on the card, and digits read once."""
    with tiny.quick_export(100) as patch:
        patch.setattr(readers, "digits", functools.cache(readers.digits))
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of the backbones; the transformer's grid of positions is that of its own size, 160 px."""
    try:
        timm = backbones.import_timm()
    except BackboneError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("weights")
    for name in NAMES:
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=False).eval()
        with torch.no_grad():
            for module in model.modules():  # as if trained: statistics and positions that are not those of a new model
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
                    module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            if hasattr(model, "pos_embed"):
                model.pos_embed.normal_(std=0.5)
        torch.save(model.state_dict(), folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in NAMES}


def config(files: dict[str, Path], name: str = CNN, tune: str = "full", **settings: Any) -> Config:
    base: dict[str, Any] = {
        "dataset": "digits", "imbalance": 10, "calibration_fraction": 0.7, "batch_images": 32, "image_size_px": SIZE,
        "stage2_batch_images": 64, "stage2_epochs": 1, "backbone": name, "weights": files[name], "tune": tune,
        "threads": 1, "device": "cpu", "precision": "fp32", "method": "msp", "epochs": 2,
    }  # fmt: skip
    return Config(**base | settings)


def initial(given: Config, folder: Path, num_classes: int = 8) -> tuned.TunedTrunk:
    return tuned.load(given, folder).trunk(num_classes).eval()


def changed(before: nn.Module, after: nn.Module) -> set[str]:
    then, now = before.state_dict(), after.state_dict()
    assert then.keys() == now.keys()
    return {name for name in then if not torch.equal(then[name], now[name])}


# ---- What learns ----


def test_full_tuning_moves_the_trunk_and_no_statistics(weights: dict[str, Path], tmp_path: Path) -> None:
    given = config(weights, method="oe", epochs=4)
    run = checkpoint.trained(trainer.train(given, tmp_path / "run"))
    assert run.history[-1]["class"] < run.history[0]["class"] - 0.05
    before, after = initial(given, tmp_path), run.scoring.trunk
    assert isinstance(after, tuned.TunedTrunk)
    moved = changed(before.backbone, after.backbone)
    assert moved == {name for name, _ in before.backbone.named_parameters()}  # every one, and no buffer


def test_adapters_alone_learn_in_the_trunk(weights: dict[str, Path], tmp_path: Path) -> None:
    given = config(weights, VIT, "adapters", adapter_width=4, epochs=4, learning_rate=0.003)
    run = checkpoint.trained(trainer.train(given, tmp_path / "run"))
    assert run.history[-1]["class"] < run.history[0]["class"]
    before, after = initial(given, tmp_path), run.scoring.trunk
    assert isinstance(after, tuned.TunedTrunk)
    moved = {name for name in changed(before.backbone, after.backbone) if ".down." not in name}
    blocks = len(before.backbone.blocks)  # type: ignore[arg-type]
    assert moved == {f"blocks.{i}.mlp.up.{part}" for i in range(blocks) for part in ("weight", "bias")}


def test_adapters_change_nothing_at_first(weights: dict[str, Path], tmp_path: Path) -> None:
    images = torch.rand(3, 3, SIZE, SIZE)
    plain = initial(config(weights, VIT), tmp_path)
    adapted = initial(config(weights, VIT, "adapters"), tmp_path)
    with torch.no_grad():
        assert torch.equal(plain(images), adapted(images))
        adapted.backbone.blocks[0].mlp.up.weight.fill_(1.0)  # type: ignore[index, union-attr]
        assert not torch.equal(plain(images), adapted(images))


def test_an_adapter_by_hand() -> None:
    """mlp(x) = 2x, W_down = [1, -1], W_up = [[3], [0]]: (2, 1) → (4, 2) + .1·3·relu(2 − 1)·(1, 0)."""
    mlp = nn.Linear(2, 2, bias=False)
    adapter = adapters.ParallelAdapter(mlp, 2, 1)
    with torch.no_grad():
        mlp.weight.copy_(2 * torch.eye(2))
        adapter.down.weight.copy_(torch.tensor([[1.0, -1]]))
        adapter.down.bias.zero_()
        adapter.up.weight.copy_(torch.tensor([[3.0], [0]]))
        torch.testing.assert_close(
            adapter(torch.tensor([[2.0, 1], [1, 2]])), torch.tensor([[4.3, 2], [2.0, 4]])
        )  # fmt: skip


@pytest.mark.parametrize(("classes", "blocks", "width"), [(100, 12, 4), (1000, 12, 32), (8142, 12, 256), (10, 12, 1)])
def test_the_width_of_adapters_is_that_of_lift(classes: int, blocks: int, width: int) -> None:
    assert adapters.bottleneck(classes, blocks) == width


def test_statistics_of_the_pretraining_are_kept_in_every_mode(weights: dict[str, Path], tmp_path: Path) -> None:
    trunk = initial(config(weights), tmp_path)
    images = torch.rand(4, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = trunk(images)
        torch.testing.assert_close(trunk.train()(images), expected)
    assert trunk.training
    assert not any(m.training for m in trunk.modules() if isinstance(m, nn.BatchNorm2d))


def test_the_second_stage_keeps_the_statistics_too(whole: Any) -> None:
    run = checkpoint.trained(whole(CNN, "full", "pascl-abf"))
    assert run.passes == 2
    moved = changed(run.scoring.trunk, run.classifying.trunk)
    assert moved
    assert not {name for name in moved if "running" in name or "num_batches" in name}
    norms = [name for name, m in run.scoring.trunk.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert moved == {f"{name}.{part}" for name in norms for part in ("weight", "bias")}


@pytest.mark.parametrize("method", ["tailguard", "crt-smote", "ntom", "ldam-drw"])
def test_methods_of_every_kind_tune(weights: dict[str, Path], tmp_path: Path, method: str) -> None:
    run = checkpoint.trained(trainer.train(config(weights, method=method, epochs=1), tmp_path / "run"))
    assert isinstance(run.scoring.trunk, tuned.TunedTrunk)
    assert isinstance(run.classifying.head, CosineHead)
    assert all(math.isfinite(h["loss"]) for h in run.history)


def test_heads_begin_at_the_means_of_the_first_features(
    weights: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = config(weights, method="oe", epochs=1, learning_rate=1e-12)
    run = checkpoint.trained(trainer.train(given, tmp_path / "run"))
    backbone = tuned.load(given, tmp_path / "run")
    data = backbone.data(loading.load(given, tmp_path / "run", target=backbone.target))
    trunk = run.scoring.trunk
    assert data.train.images.shape[1:] == (SIZE, SIZE, 3)
    features = torch.from_numpy(predict.embed(run.scoring, data.train.images, torch.device("cpu")))
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)))
    means = torch.stack([features[torch.from_numpy(data.train.labels) == c].sum(dim=0) for c in range(8)])
    weight, _ = run.scoring.linear()
    torch.testing.assert_close(
        nn.functional.normalize(weight, dim=1), nn.functional.normalize(means, dim=1), atol=1e-4, rtol=0
    )
    assert float(trunk.deviation.min()) > 0  # type: ignore[operator, union-attr]


def test_the_trunk_learns_more_slowly(weights: dict[str, Path], tmp_path: Path) -> None:
    def rates(stage: str = "stage1", **settings: Any) -> tuple[type, list[float]]:
        given = config(weights, **settings)
        trunk = initial(given, tmp_path)
        network = trainer.build_network(resolve(given), 8, 64, None, trunk)
        optimizer = make_optimizer(given, stage, network, list(network.parameters()), 0.01)
        learning = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
        assert learning == {id(p) for p in network.parameters() if p.requires_grad}
        return type(optimizer), [group["lr"] for group in optimizer.param_groups]

    assert rates() == (torch.optim.AdamW, [0.01, pytest.approx(0.001)])
    assert rates(trunk_rate=0.5) == (torch.optim.AdamW, [0.01, pytest.approx(0.005)])
    assert rates(name=VIT, tune="adapters") == (torch.optim.SGD, [0.01])
    assert rates(name=VIT, tune="adapters", stage="stage2") == (torch.optim.AdamW, [0.01])


# ---- Interrupted, moved, refused ----


@pytest.fixture(scope="module")
def whole(weights: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of an uninterrupted run of a backbone, trained once."""

    @functools.cache
    def run(name: str, tune: str, method: str) -> Path:
        return trainer.train(config(weights, name, tune, method=method), tmp_path_factory.mktemp("runs") / "whole")

    return run


# A step of stage 1 is three views: two of the images, one of the outliers. Three steps make an epoch.
@pytest.mark.parametrize(
    ("name", "tune", "method", "views", "where"),
    [
        (CNN, "full", "pascl-abf", 4, ("stage1", 0, 2)),
        (CNN, "full", "pascl-abf", 19, ("stage2", 0, 1)),
        (VIT, "adapters", "oe", 13, ("stage1", 1, 2)),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(
    weights: dict[str, Path], whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, tune: str,
    method: str, views: int, where: tuple[str, int, int],
) -> None:  # fmt: skip
    """Without the file of weights: the run holds them."""
    own = tmp_path / weights[name].name
    own.write_bytes(weights[name].read_bytes())
    given = config({name: own}, name, tune, method=method)
    with monkeypatch.context() as patch:
        interrupt_after(patch, views)
        with pytest.raises(Interrupted):
            trainer.train(given, tmp_path / "run")
    state = checkpoint.load(tmp_path / "run")
    assert (state["stage"], state["epoch"], state["step"]) == where
    own.unlink()
    trainer.train(given, tmp_path / "run", resume=True)
    tiny.assert_same_run(whole(name, tune, method), tmp_path / "run")


def test_a_second_stage_on_the_first_of_another_run(weights: dict[str, Path], tmp_path: Path) -> None:
    first = trainer.train(config(weights, method="crt"), tmp_path / "first")
    second = trainer.train(config(weights, method="crt", stage1_from=first), tmp_path / "second")
    tiny.assert_same_run(first, second)
    assert checkpoint.trained(second).provenance["backbone"]["weights"] == f"{CNN}.pth"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "cifar-resnet", "weights": None}, "--tune full is for a pretrained backbone"),
        ({"backbone": "onnx:x.onnx", "weights": None}, "cannot be trained: use --tune frozen"),
        ({"feature_views": 2}, "--feature-views 2 is for --tune frozen"),
        ({"tune": "frozen", "trunk_rate": 0.2}, "--trunk-rate 0.2 is for --tune full"),
        ({"adapter_width": 2}, "--adapter-width 2 is for --tune adapters"),
    ],
)
def test_settings_that_make_no_sense(weights: dict[str, Path], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(weights, **settings)


@pytest.mark.parametrize(
    ("name", "tune", "method", "message"),
    [
        (CNN, "adapters", "msp", "test_resnet has no such blocks: use --tune full"),
        (CONVNEXT, "adapters", "msp", "test_convnext has no such blocks"),
        (VIT, "full", "abf", "test_vit has none: use --stage2 abf-head"),
        (VIT, "adapters", "pascl-abf", "test_vit has none: use --stage2 abf-head"),
    ],
)
def test_what_a_backbone_cannot_do_is_said_before_any_data_are_read(
    weights: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, tune: str, method: str,
    message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(trainer, "load", lambda *_: 1 / 0)
    with pytest.raises(ValueError, match=message):
        trainer.train(config(weights, name, tune, method=method), tmp_path / "run")


def test_defaults_are_those_of_the_tuning(weights: dict[str, Path]) -> None:
    lift = Config(dataset="digits", backbone=VIT, weights=weights[VIT], tune="adapters")
    assert (lift.epochs, lift.batch_images, lift.learning_rate, lift.weight_decay) == (10, 128, 0.01, 5e-4)
    full = Config(dataset="digits", backbone=VIT, tune="full")
    assert (full.frozen, full.tunes, full.augment, full.batch_images) == (False, True, "photo", 64)
    plain = Config(dataset="digits", backbone=VIT)
    assert (plain.tune, plain.frozen, plain.tunes) == ("frozen", True, False)
    scratch = Config(dataset="digits")
    assert (scratch.tune, scratch.frozen, scratch.tunes) == (None, False, False)
    assert Config.model_validate(full.model_dump(mode="json")) == full


def test_images_that_do_not_fit_the_disk_are_refused(
    weights: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        free = 1000

    monkeypatch.setattr(sized.shutil, "disk_usage", lambda folder: Full)
    with pytest.raises(DataError, match=r"0\.0 GB are free in .*smaller --image-size-px"):
        trainer.train(config(weights), tmp_path / "run")


# ---- From the file to a served answer ----


@pytest.mark.parametrize(
    ("name", "tune", "method"),
    [
        (CNN, "full", "pascl-abf"), (MOBILE, "full", "oe"), (CONVNEXT, "full", "tailguard-joint"),
        (VIT, "adapters", "tailguard-joint"),
    ],
)  # fmt: skip
def test_from_the_file_to_a_served_answer(
    weights: dict[str, Path], tmp_path: Path, name: str, tune: str, method: str
) -> None:
    own = tmp_path / "own.pth"
    own.write_bytes(weights[name].read_bytes())
    given = config({name: own}, name, tune, method=method, epochs=1)
    folder = trainer.train(given, tmp_path / "run")
    own.unlink()  # the run holds the weights
    finished.Evaluate(run=folder).cli_cmd()
    finished.Calibrate(run=folder).cli_cmd()
    finished.Export(run=folder, out=tmp_path / "models", name="made", precision="fp32").cli_cmd()
    manifest = json.loads((tmp_path / "models" / "made" / "1" / "manifest.json").read_text())
    assert manifest["input"]["height_px"] == SIZE
    assert manifest["passes"] == (2 if method == "pascl-abf" else 1)
    recipe = manifest["evaluation"]["recipe"]
    assert (recipe["tune"], recipe["weights"], recipe["pretrained_weights"]) == (tune, "own.pth", "own.pth")
    assert len(recipe["pretrained_weights_sha256"]) == 64
    assert recipe["pretrained_licence"]
    results = json.loads((folder / "results.json").read_text())
    assert manifest["evaluation"]["accuracy"] == pytest.approx(results["accuracy"], abs=2e-3)
    run = checkpoint.trained(folder)
    assert run.tuned is not None
    data = run.tuned.data(loading.load(given, folder, target=run.tuned.target))
    assert not left_out.possible(run, data)  # classes are left out in turn on frozen features alone
    images = np.concatenate([data.test.images[:3], data.ood["nine"][:3]])
    record = finished.calibrated(folder)
    module = predict.deployed(run, record["temperature"], scores=[record["score"]], train=data.train)
    expected = predict.torch_predict(module, torch.device("cpu"))(images)
    compare(expected, record, data_groups(data).of_class, tmp_path / "models" / "made" / "1", images)
    graph = (tmp_path / "models" / "made" / "1" / "model.onnx").read_bytes()
    weights = sum(p.numel() for p in run.scoring.trunk.backbone.parameters())  # type: ignore[union-attr, operator]
    check_halved(graph, images, weights * run.passes)
