"""The mean of several heads: its logits are the mean of theirs, in the run, in what judges it and in the graph."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from service.contract import bundle
from service.inference.engine import Engine
from tests.training.network.test_frozen import config, write_extractor
from training import finished, trainer
from training.audit import timing
from training.config import Config
from training.data import loading
from training.evaluation import left_out
from training.methods.methods import METHODS, build_network, resolve
from training.network import averaged, frozen
from training.network.network import CosineHead, Network
from training.runs import checkpoint
from training.runs.loop import Loop

METHOD = "tailguard-joint"


@pytest.fixture(scope="module")
def extractor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backbone") / "means.onnx"
    write_extractor(path)
    return path


def several(extractor: Path, number: int = 3, **settings: Any) -> Config:
    base: dict[str, Any] = {"method": METHOD, "epochs": 2, "learning_rate": 0.01, "heads_averaged": number}
    return config(extractor, **base | settings)


def outputs(network: Network, features: Tensor) -> Tensor:
    """Class logits, then reject logits."""
    with torch.no_grad():
        logits, made = network(features)
        return torch.cat([logits, network.rejects(made)], dim=1)


def features_of(given: Config, run: Path) -> tuple[Tensor, np.ndarray[Any, Any]]:
    backbone = frozen.load(given, run)
    data = backbone.data(loading.load(given, run, target=backbone.target))
    return torch.from_numpy(np.array(data.test.images[:, 0])), data.test.labels


def test_the_logits_of_the_mean_by_hand() -> None:
    network = build_network(METHODS[METHOD], 2, 64, features=2)
    head = network.head
    assert isinstance(head, CosineHead)
    assert network.reject is not None
    learnt = iter([([[2.0, 0], [0, 1]], 1.0), ([[0.0, 5], [0, 3]], 3.0)])
    with torch.no_grad():
        for _ in averaged.turns(network, {}, 2):
            rows, bias = next(learnt)
            head.weight.copy_(torch.tensor(rows))
            network.reject.weight.copy_(torch.tensor([[0.0, 1]]))
            network.reject.bias.fill_(bias)
        # The first rows point along x and along y: their mean is (.5, .5), of length .71; the second agree.
        torch.testing.assert_close(head(torch.tensor([[1.0, 0]])), 25 * torch.tensor([[0.5, 0.0]]))
        torch.testing.assert_close(head(torch.tensor([[0.6, 0.8]])), 25 * torch.tensor([[0.7, 0.8]]))
        torch.testing.assert_close(network.reject(torch.tensor([[0.6, 0.8]])), torch.tensor([[25 * 0.8 + 2]]))
        weight, bias = network.linear()
        torch.testing.assert_close(weight @ torch.tensor([0.6, 0.8]) + bias, 25 * torch.tensor([0.7, 0.8]))


def test_a_run_keeps_the_mean_of_its_heads(extractor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, learnt = several(extractor), []
    plain = Loop.run

    def noting(self: Loop, network: Network, *args: Any, **named: Any) -> None:
        plain(self, network, *args, **named)
        learnt.append(copy.deepcopy(network))

    monkeypatch.setattr(Loop, "run", noting)
    run = checkpoint.trained(trainer.train(given, tmp_path / "run"))
    features, labels = features_of(given, tmp_path / "run")
    # `standardised` is over: each takes features as the backbone gives them.
    each = []
    for network in learnt:
        network.trunk.given_standardised = False  # type: ignore[union-attr]
        each.append(outputs(network.eval(), features))
    assert len(each) == 3
    assert min(float((each[0] - other).abs().max()) for other in each[1:]) > 0.1  # other orders, other heads
    torch.testing.assert_close(outputs(run.scoring, features), torch.stack(each).mean(dim=0), atol=1e-4, rtol=1e-4)
    assert float((outputs(run.classifying, features)[:, :-1].argmax(dim=1).numpy() == labels).mean()) > 0.5
    single = checkpoint.trained(trainer.train(several(extractor, 1), tmp_path / "single"))
    torch.testing.assert_close(outputs(single.scoring, features), each[0])  # the first is the run without others
    assert [(h["stage"], h["epoch"]) for h in run.history] == [
        (f"stage1 head {head} of 3", epoch) for head in (1, 2, 3) for epoch in (0, 1)
    ]
    assert [h["stage"] for h in single.history] == ["stage1", "stage1"]


@pytest.mark.parametrize("at", [1, 2, 3, 5, 6])  # saves: two a head; after the second head 1 has learnt
def test_killed_and_resumed_it_is_the_same(
    extractor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    whole = checkpoint.trained(trainer.train(several(extractor), tmp_path / "whole"))
    plain, saves = checkpoint.save, []

    def killing(folder: Path, state: dict[str, Any]) -> None:
        plain(folder, state)
        saves.append(folder)
        if len(saves) == at:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", killing)
        with pytest.raises(RuntimeError, match="killed"):
            trainer.train(several(extractor), tmp_path / "run")
    resumed = checkpoint.trained(trainer.train(several(extractor), tmp_path / "run", resume=True))
    for name, value in whole.scoring.state_dict().items():
        torch.testing.assert_close(resumed.scoring.state_dict()[name], value, atol=0, rtol=0, msg=name)
    assert resumed.history == whole.history


def test_what_judges_the_run_averages_as_many(extractor: Path, tmp_path: Path) -> None:
    given = several(extractor, 2)
    run = checkpoint.trained(trainer.train(given, tmp_path / "run"))
    backbone = frozen.load(given, tmp_path / "run")
    data = backbone.data(loading.load(given, tmp_path / "run", target=backbone.target))
    network = left_out.trained(run, data, torch.device("cpu"), "fold")
    assert isinstance(network.head, CosineHead)
    assert bool(network.head.averaged)
    assert float(network.head.weight.detach().norm(dim=1).max()) <= 1 + 1e-5


@pytest.mark.usefixtures("quick_export")
def test_the_graph_gives_the_mean(extractor: Path, tmp_path: Path) -> None:
    run = trainer.train(several(extractor, epochs=4), tmp_path / "run")
    finished.Evaluate(run=run).cli_cmd()
    finished.Calibrate(run=run, cross_fit=True).cli_cmd()
    finished.Export(run=run, out=tmp_path / "models", precision="fp32", data_licence="BSD-3-Clause").cli_cmd()
    folder = tmp_path / "models" / "digits" / "1"
    manifest = bundle.read(folder)
    assert manifest.evaluation["accuracy"] == pytest.approx(
        json.loads((run / "results.json").read_text())["accuracy"], abs=2e-3
    )
    data = loading.load(several(extractor), run)
    features, _ = features_of(several(extractor), run)
    with torch.no_grad():
        logits, _ = checkpoint.trained(run).classifying(features)
    rows = Engine(folder, manifest).run(data.test.images)
    assert (rows.probabilities.argmax(axis=1) == logits.argmax(dim=1).numpy()).mean() > 0.99
    assert "heads averaged" in (folder / "CARD.md").read_text()


def test_a_run_of_before_is_one_head() -> None:
    network = build_network(METHODS[METHOD], 2, 64, features=3)
    before = {name: value for name, value in network.state_dict().items() if not name.endswith(".averaged")}
    assert len(before) == len(network.state_dict()) - 2
    with torch.no_grad():
        network.head.averaged.fill_(True)  # type: ignore[operator, union-attr]
    network.load_state_dict(before)
    assert isinstance(network.head, CosineHead)
    assert not bool(network.head.averaged)


def test_what_has_no_mean_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--heads-averaged 2 is for a frozen backbone"):
        Config(dataset="digits", heads_averaged=2)
    for settings, named in (({"method": "pascl"}, "pascl"), ({"method": METHOD, "stage2": "crt"}, "crt")):
        given = Config(dataset="digits", backbone="onnx:x", heads_averaged=2, **settings)
        with pytest.raises(ValueError, match=rf"--heads-averaged 2 .* leave out {named}"):
            resolve(given)
    with pytest.raises(ValueError, match="leave out abf and pascl"):
        resolve(Config(dataset="digits", backbone="onnx:x", heads_averaged=2, method="pascl-abf"))


def test_the_estimate_counts_each(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("view_seconds", "file_seconds", "step_seconds"):
        monkeypatch.setattr(timing, name, lambda *args: 1.0)
    work = timing.Work(train=100, outliers=0, others=0, classes=4, files=[])
    made = [
        timing.frozen_estimate(
            Config(dataset="digits", backbone="onnx:x", method="msp", heads_averaged=n, epochs=3, batch_images=50),
            work, b"", 8, 32,
        )
        for n in (1, 5)
    ]  # fmt: skip
    assert made[1].seconds - made[0].seconds == 4 * 6  # four more heads of six steps, a second each
    assert "30 steps" in made[1].made_of[-1]
