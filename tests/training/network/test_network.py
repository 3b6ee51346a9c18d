"""The network's form and size, and which parts of it the second stage moves."""

import pytest
import torch
from torch import nn

from tests.training import tiny
from training.methods import stage2
from training.methods.methods import contrast_defaults
from training.network.network import Network, to_input
from training.runs import checkpoint


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


def test_parameters_beside_the_trunk():
    """Reject logits are one more linear map of the features; a cosine head has no bias that learns."""
    network = Network(10, width=2, reject=3, cosine=True)
    assert size(network.reject) == 16 * 3 + 3
    assert {n for n, p in network.named_parameters() if not p.requires_grad} == {"head.bias"}
    assert Network(10, width=2).reject is None


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


def test_reject_logits_are_a_linear_map_of_the_features():
    network = Network(7, width=2, reject=3).eval()
    features = torch.randn(4, 16)
    with torch.no_grad():
        expected = features @ network.reject.weight.T + network.reject.bias
        torch.testing.assert_close(network.rejects(features), expected)
        assert Network(7, width=2).rejects(features).shape == (4, 0)


def test_cosine_head_gives_thirty_times_the_cosine():
    network = Network(7, width=2, cosine=True).eval()
    with torch.no_grad():
        logits, features = network(torch.rand(3, 3, 16, 16))
        torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
        for i in range(3):
            for c in range(7):
                cosine = torch.cosine_similarity(features[i], network.head.weight[c], dim=0)
                assert logits[i, c].item() == pytest.approx(30 * cosine.item(), abs=1e-4)
        weight, bias = network.linear()
        torch.testing.assert_close(logits, features @ weight.T + bias, atol=1e-4, rtol=1e-5)


def test_what_terms_learn_lies_beside_the_network():
    network = Network(7, width=2, learned={"outlier": lambda features, classes: nn.Linear(features, classes)})
    assert network.learned["outlier"].weight.shape == (7, 16)


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


@pytest.mark.parametrize(("name", "with_norms"), [("abf", True), ("abf-head", False)])
def test_prepare(name, with_norms):
    stage = stage2.STAGES[name]
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


def test_contrast_defaults():
    assert contrast_defaults(10) == (0.1, 0.07)
    assert contrast_defaults(100) == (0.02, 0.2)
