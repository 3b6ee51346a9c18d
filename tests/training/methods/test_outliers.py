"""What teaches from outliers: each term by hand, and against the formula of its paper written out again."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.training import tiny
from training import trainer
from training.data import loading
from training.methods.methods import METHODS, build_network, find
from training.methods.outliers import (
    OUTLIER_TERMS,
    EnergyScale,
    LogGamma,
    TrainingAccuracy,
    energy_logistic,
    energy_margins,
    measure_accuracy,
    oecc,
    outlier_class,
    outlier_exposure,
    sofl,
)
from training.network.network import to_input
from training.runs import checkpoint


def exposure(logits):
    return outlier_exposure(tiny.step(outlier_logits=logits))


def random(*shape, seed=0, scale=1.0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * scale


# ---- Outlier Exposure ----


def test_golden(reference):
    for case in reference["outlier_exposure"]:
        logits = torch.tensor(case["logits"], dtype=torch.float64)
        assert exposure(logits).item() == pytest.approx(case["loss"], abs=1e-6)


def test_exposure_by_hand():
    logits = torch.tensor([[0.0, math.log(3)], [5.0, 5.0]])  # log 4 − (log 3)/2, and log 2
    assert exposure(logits).item() == pytest.approx((math.log(4) - math.log(3) / 2 + math.log(2)) / 2)


def test_exposure_is_cross_entropy_from_uniform():
    logits = random(20, 7, scale=10)
    expected = F.cross_entropy(logits, torch.full((20, 7), 1 / 7, dtype=torch.float64))
    assert exposure(logits).item() == pytest.approx(expected.item(), abs=1e-12)
    assert exposure(logits + 1000).item() == pytest.approx(expected.item(), abs=1e-9)


def test_uniform_is_the_minimum_of_exposure():
    logits = torch.full((3, 10), 2.0, dtype=torch.float64, requires_grad=True)
    loss = exposure(logits)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(10))
    assert logits.grad.abs().max() < 1e-12


# ---- Energy margins ----


@pytest.mark.parametrize(("num_classes", "in_below"), [(10, -23), (49, -23), (50, -27), (100, -27)])
def test_energy_margins_by_hand(num_classes, in_below):
    """One image whose energy lies 3 above its margin, one outlier 2 below its own: 3² + 2²."""
    inside = torch.full((1, num_classes), -1000.0, dtype=torch.float64)
    inside[0, 0] = -(in_below + 3)
    outside = torch.full((1, num_classes), -1000.0, dtype=torch.float64)
    outside[0, 1] = 7
    found = energy_margins(tiny.step(logits=inside, outlier_logits=outside))
    assert found.item() == pytest.approx(9 + 4, abs=1e-9)


def test_energies_within_their_margins_cost_nothing():
    inside, outside = torch.full((4, 10), 30.0), torch.full((3, 10), 1.0)  # energies −32.3 and −3.3
    assert energy_margins(tiny.step(logits=inside, outlier_logits=outside)).item() == 0


def test_energy_margins_by_loops():
    inside, outside = random(2, 5, 10, seed=1, scale=12), random(7, 10, seed=2, scale=6)

    def energy(z):
        return -math.log(sum(math.exp(x) for x in z.tolist()))

    ins = [max(0, energy(z) + 23) ** 2 for z in inside.flatten(0, 1)]
    outs = [max(0, -5 - energy(z)) ** 2 for z in outside]
    found = energy_margins(tiny.step(logits=inside, labels=torch.zeros(5).long(), outlier_logits=outside))
    assert found.item() == pytest.approx(sum(ins) / len(ins) + sum(outs) / len(outs), abs=1e-9)


# ---- Energy, logistic ----


def with_scale(weight, bias):
    """A network whose EnergyScale has these numbers."""
    network = nn.Module()
    network.learned = nn.ModuleDict({"outlier": EnergyScale(16, 10).double()})
    nn.init.constant_(network.learned["outlier"].weight, weight)
    nn.init.constant_(network.learned["outlier"].bias, bias)
    return network


def test_energy_logistic_by_hand():
    """w = 2, b = -1: log-odds 2·3 − 1 = 5 inside and 2·.5 − 1 = 0 outside."""
    inside, outside = torch.full((1, 10), -1000.0, dtype=torch.float64), torch.full((1, 10), -1000.0).double()
    inside[0, 0], outside[0, 4] = 3, 0.5
    found = energy_logistic(tiny.step(logits=inside, outlier_logits=outside, network=with_scale(2, -1)))
    assert found.item() == pytest.approx(math.log1p(math.exp(-5)) + math.log(2), abs=1e-9)


def test_energy_logistic_begins_between_in_and_out_at_logits_of_0():
    """An image without evidence is even odds whatever the number of classes, so the term pulls both ways alike."""
    flat = torch.zeros((3, 10), requires_grad=True)
    network = nn.Module()
    network.learned = nn.ModuleDict({"outlier": EnergyScale(16, 10)})
    found = energy_logistic(
        tiny.step(logits=flat.detach(), labels=torch.zeros(3).long(), outlier_logits=flat, network=network)
    )
    assert found.item() == pytest.approx(2 * math.log(2), abs=1e-6)
    found.backward()
    assert flat.grad.sum() > 0  # the outliers' energies are pushed up


def test_energy_logistic_knows_no_scale():
    """Logits ten times as large, with w a tenth: the same loss, which margins in energies do not give."""
    inside, outside = random(2, 5, 10, seed=1, scale=12), random(7, 10, seed=2, scale=6)
    peak_in, peak_out = torch.full_like(inside, -1e4), torch.full_like(outside, -1e4)  # one logit alone: E = −z
    peak_in[..., 0], peak_out[..., 0] = inside[..., 0], outside[..., 0]
    losses = [
        energy_logistic(tiny.step(logits=c * peak_in, labels=torch.zeros(5).long(), outlier_logits=c * peak_out,
                                  network=with_scale(0.5 / c, -1))).item()
        for c in (1, 10)
    ]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)


# ---- OECC ----


def with_accuracy(value):
    """A network whose training accuracy was measured as this."""
    network = nn.Module()
    network.learned = nn.ModuleDict({"outlier": TrainingAccuracy(16, 8)})
    network.learned["outlier"].value.fill_(value)
    return network


def test_oecc_by_hand():
    """p = (3/4, 1/4) twice, A = 1/2 whatever the batch gets right; an outlier at (3/4, 1/4) is 1/2 from uniform."""
    sure = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0])
    found = oecc(tiny.step(logits=sure, labels=labels, outlier_logits=sure[:1], network=with_accuracy(0.5)))
    assert found.item() == pytest.approx(0.07 * 128 * (1 / 4) ** 2 + 0.05 * 256 * (1 / 2))


def test_oecc_by_loops():
    inside, outside = random(2, 6, 5, seed=3), random(4, 5, seed=4)
    labels = torch.arange(6) % 5
    rows = [z.tolist() for view in inside for z in view]

    def softmax(z):
        total = sum(math.exp(x) for x in z)
        return [math.exp(x) / total for x in z]

    accuracy = 0.25
    confidence = sum((max(softmax(z)) - accuracy) ** 2 for z in rows) / len(rows)
    distance = sum(sum(abs(p - 1 / 5) for p in softmax(z.tolist())) for z in outside) / len(outside)
    found = oecc(tiny.step(logits=inside, labels=labels, outlier_logits=outside, network=with_accuracy(accuracy)))
    assert found.item() == pytest.approx(0.07 * 128 * confidence + 0.05 * 256 * distance, rel=1e-6)


def test_the_accuracy_is_measured_once_and_stays(tmp_path):
    """It is that of the training images in eval mode when the term begins: epoch 1 of 2."""
    out = trainer.train(tiny.config(method="oecc", epochs=2), tmp_path / "run")
    state = checkpoint.load(out)
    assert "outlier" not in state["history"][0]
    assert "outlier" in state["history"][1]
    measured = state["network"]["learned.outlier.value"].item()
    assert 0 < measured <= 1
    network = build_network(find("oecc"), 8, 8)
    network.load_state_dict(state["network"])
    data = loading.load(tiny.config()).train
    measure_accuracy(network, data)
    assert network.learned["outlier"].value.item() == pytest.approx(measured)  # not measured again
    network.learned["outlier"].value.fill_(-1)
    measure_accuracy(network, data)
    with torch.no_grad():
        logits, _ = network.eval()(to_input(torch.from_numpy(data.images)))
    right = (logits.argmax(dim=1).numpy() == data.labels).mean()
    assert network.learned["outlier"].value.item() == pytest.approx(right)


def test_papers_that_show_two_outliers_an_image():
    assert {name for name, m in METHODS.items() if m.outliers_per_image == 2} == {
        "oecc", "oecc-tenth", "oecc-calibrated", "ntom", "cocl"
    }  # fmt: skip


# ---- Reject classes ----


def test_outlier_class_is_cross_entropy_to_the_class_past_the_last():
    z, reject = random(9, 6, scale=3), random(9, 1, seed=1)
    found = outlier_class(tiny.step(outlier_logits=z, outlier_reject=reject))
    expected = F.cross_entropy(torch.cat([z, reject], dim=1), torch.full((9,), 6))
    assert found.item() == pytest.approx(expected.item(), abs=1e-12)


def test_outlier_class_by_hand():
    found = outlier_class(tiny.step(outlier_logits=torch.zeros(2, 3), outlier_reject=torch.full((2, 1), math.log(3))))
    assert found.item() == pytest.approx(math.log(2))  # 3 of 1 + 1 + 1 + 3


def sofl_targets(classes, rejects, *, seed=0):
    """Where SOFL pulls each outlier: the logit whose gradient is negative."""
    joint = torch.cat([classes, rejects], dim=1).requires_grad_(True)
    c = classes.shape[1]
    step = tiny.step(
        outlier_logits=joint[:, :c], outlier_reject=joint[:, c:], generator=torch.Generator().manual_seed(seed)
    )
    loss = sofl(step)
    loss.backward()
    assert ((joint.grad < 0).sum(dim=1) == 1).all()
    targets = (joint.grad < 0).int().argmax(dim=1)
    assert loss.item() == pytest.approx(F.cross_entropy(joint, targets).item(), abs=1e-12)
    return targets.tolist()


def test_sofl_keeps_an_outlier_in_the_reject_class_it_is_in():
    rejects = torch.zeros(5, 5, dtype=torch.float64) + 9 * torch.eye(5, dtype=torch.float64)
    assert sofl_targets(torch.zeros(5, 4, dtype=torch.float64), rejects) == [4, 5, 6, 7, 8]


def test_sofl_sends_an_outlier_in_a_class_to_a_random_reject_class():
    classes, rejects = torch.zeros(200, 4, dtype=torch.float64), torch.full((200, 5), -1.0, dtype=torch.float64)
    found = sofl_targets(classes, rejects)
    assert set(found) == {4, 5, 6, 7, 8}
    assert max(found.count(c) for c in range(4, 9)) < 70  # 40 each, by chance
    assert sofl_targets(classes, rejects) == found  # the generator alone decides
    assert sofl_targets(classes, rejects, seed=1) != found


@pytest.mark.parametrize(("num_classes", "rejects"), [(10, 5), (49, 5), (50, 10), (100, 10)])
def test_sofl_has_5_or_10_reject_classes(num_classes, rejects):
    assert OUTLIER_TERMS["sofl"].reject(num_classes) == rejects


# ---- Every term ----


def full_step(*, n=4, m=3, views=2, num_classes=8, rejects=2, grown=True):
    """A Step with everything in it, whose tensors take gradients, and those tensors."""
    sizes = {
        "logits": (views, n, num_classes), "reject": (views, n, rejects), "features": (views, n, 16),
        "outlier_logits": (m, num_classes), "outlier_reject": (m, rejects), "outlier_features": (m, 16),
    }  # fmt: skip
    tensors = {k: random(*size, seed=i).float().requires_grad_(grown) for i, (k, size) in enumerate(sizes.items())}
    network = nn.Module()
    network.learned = nn.ModuleDict({"outlier": LogGamma(16, num_classes)})
    return tiny.step(**tensors, labels=torch.arange(n) % num_classes, network=network), tensors


def term_of(name, step):
    """The term and the step, whose network has what the term reads."""
    if name == "oecc":
        step = replace(step, network=with_accuracy(0.4))
    if name == "energy-logistic":
        step = replace(step, network=with_scale(0.5, -1).float())
    return OUTLIER_TERMS[name].term, step


@pytest.mark.parametrize("name", OUTLIER_TERMS)
def test_without_outliers_every_term_is_finite(name):
    """A batch without outliers gives no NaN, in the term or its gradient; what only looks at outliers gives 0."""
    step, tensors = full_step(m=0)
    term, step = term_of(name, step)
    loss = term(step)
    loss.backward()
    assert torch.isfinite(loss)
    grads = [t.grad for t in tensors.values() if t.grad is not None]
    assert grads
    assert all(torch.isfinite(g).all() for g in grads)
    if name in ("oe", "outlier-class", "sofl"):
        assert loss.item() == 0


@pytest.mark.parametrize("name", OUTLIER_TERMS)
def test_the_order_of_the_outliers_changes_nothing(name):
    step, tensors = full_step(grown=False, rejects=1)
    order = torch.tensor([2, 0, 1])
    other = {k: t[order] if k.startswith("outlier") else t for k, t in tensors.items()}
    term, step = term_of(name, step)
    shuffled = tiny.step(**other, labels=step.labels, network=step.network)
    assert term(shuffled).item() == pytest.approx(term(step).item(), rel=1e-5)


@pytest.mark.parametrize("name", OUTLIER_TERMS)
def test_a_small_step_against_the_gradient_lowers_the_term(name):
    step, tensors = full_step(rejects=1)
    term, step = term_of(name, step)
    before = term(step)
    before.backward()
    moved = {k: t.detach() - 1e-3 * (0 if t.grad is None else t.grad) for k, t in tensors.items()}
    assert term(tiny.step(**moved, labels=step.labels, network=step.network)) < before
