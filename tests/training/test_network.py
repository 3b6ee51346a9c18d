"""The network's form and size, and which parts of it the second stage moves."""

import pytest
import torch
from torch import nn

from tests.training import tiny
from training import checkpoint, stage2
from training.methods import METHODS, contrast_defaults, find
from training.network import Network, to_input


def size(module):
    return sum(p.numel() for p in module.parameters())


def test_parameters_of_resnet18():
    network = Network(10, width=64)
    assert size(network.trunk) == 11_168_832
    assert size(network.head) == 5_130
    assert size(network.projection) == 328_320


def test_parameters_against_the_reference(reference):
    network, golden = Network(10, width=64), reference["resnet18"]
    assert size(network.trunk) == golden["trunk_parameters"]
    assert size(network.head) == golden["linear"]
    assert size(network.projection) == golden["projection"]


@pytest.mark.parametrize("size_px", [16, 32, 33])
def test_shapes(size_px):
    network = Network(7, width=2).eval()
    images = torch.rand(3, 3, size_px, size_px)
    with torch.no_grad():
        logits, features = network(images)
        projected = network.project(features)
    assert logits.shape == (3, 7)
    assert features.shape == (3, 16)
    assert projected.shape == (3, 128)
    torch.testing.assert_close(projected.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(logits, features @ network.head.weight.T + network.head.bias)


def test_strides_leave_4_by_4():
    trunk = Network(7, width=2).trunk.eval()
    with torch.no_grad():
        assert trunk.stages(torch.rand(1, 2, 32, 32)).shape == (1, 16, 4, 4)


def test_to_input():
    images = torch.arange(2 * 4 * 5 * 3, dtype=torch.uint8).view(2, 4, 5, 3)
    found = to_input(images)
    assert found.shape == (2, 3, 4, 5)
    assert found[1, 2, 3, 4].item() == pytest.approx(119 / 255)
    assert found[0, 1, 0, 0].item() == pytest.approx(1 / 255)


# ---- Which parts stage 2 moves ----


def norm_names(network):
    return {f"trunk.{n}" for n, m in network.trunk.named_modules() if isinstance(m, nn.BatchNorm2d)}


@pytest.mark.parametrize(("stage", "with_norms"), [(stage2.ABF, True), (stage2.ABF_HEAD, False)])
def test_prepare(stage, with_norms):
    network = Network(7, width=2).train()
    parameters = stage2.prepare(network, stage)
    owners = {"head"} | (norm_names(network) if with_norms else set())
    learning = {n for n, p in network.named_parameters() if p.requires_grad}
    assert learning == {f"{owner}.{part}" for owner in owners for part in ("weight", "bias")}
    assert sum(p.numel() for p in parameters) == sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert {n for n, m in network.named_modules() if m.training} == owners
    assert stage.passes == (2 if with_norms else 1)


@pytest.mark.parametrize("method", ["pascl-abf", "pascl-abf-head"])
def test_what_stage2_moved(finished, tmp_path, method):
    from training import trainer

    folder = finished
    if method != "pascl-abf":
        folder = trainer.train(tiny.config(method=method, stage1_from=finished), tmp_path / "run")
    state = checkpoint.load(folder)
    one, two = state["network"], state["branch"]
    moved = {name for name in one if not torch.equal(one[name], two[name])}
    statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    norms = norm_names(Network(8, width=8)) if method == "pascl-abf" else set()
    assert moved == {f"{norm}.{name}" for norm in norms for name in statistics} | {"head.weight", "head.bias"}


# ---- Methods ----


def test_unknown_method():
    with pytest.raises(ValueError, match=r"no method 'pscl'; the methods are msp, oe, pascl"):
        find("pscl")


@pytest.mark.parametrize("name", METHODS)
def test_method_rows(name):
    method = find(name)
    assert method.needs_outliers == (name != "msp")
    assert (method.contrast is not None) == name.startswith("pascl")
    assert (method.stage2 is not None) == ("abf" in name)


def test_contrast_defaults():
    assert contrast_defaults(10) == (0.1, 0.07)
    assert contrast_defaults(100) == (0.02, 0.2)
