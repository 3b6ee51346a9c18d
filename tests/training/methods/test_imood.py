"""ImOOD's loss against its definition written as loops, and where gradients may and may not flow."""

import math

import pytest
import torch
from torch import nn

from tests.training import tiny
from training.methods.outliers import LogGamma, imood

CLASSES, FEATURES = 4, 6
COUNTS = torch.tensor([40, 20, 10, 10])


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


class Learned(nn.Module):
    """What a network lends to the term: log γ, here with chosen weights."""

    def __init__(self, weight, bias=None):
        super().__init__()
        gamma = LogGamma(FEATURES, CLASSES)
        with torch.no_grad():
            gamma.weight.copy_(weight)
            if bias is not None:
                gamma.bias.copy_(bias)
        self.learned = nn.ModuleDict({"outlier": gamma})


def problem(*, n=5, m=4, views=2, scale=0.5, seed=0, g_scale=3.0):
    draw = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=draw)

    return {
        "logits": random(views, n, CLASSES), "reject": g_scale * random(views, n, 1),
        "features": random(views, n, FEATURES), "labels": torch.arange(n) % CLASSES,
        "outlier_logits": random(m, CLASSES), "outlier_reject": g_scale * random(m, 1),
        "outlier_features": random(m, FEATURES), "counts": COUNTS,
        "network": Learned(scale * random(CLASSES, FEATURES), random(CLASSES)),
    }  # fmt: skip


def by_loops(p):
    """REFERENCE B3 in plain Python: (L_bin, L_β, every δ)."""
    prior = [n / 80 for n in COUNTS.tolist()]
    gamma = p["network"].learned["outlier"]
    weight, bias = gamma.weight.tolist(), gamma.bias.tolist()
    rows = []  # (posterior, features, g, in)
    for view in range(len(p["logits"])):
        for i, y in enumerate(p["labels"].tolist()):
            smoothed = [0.8 * (k == y) + 0.2 / CLASSES for k in range(CLASSES)]
            rows.append((smoothed, p["features"][view, i].tolist(), p["reject"][view, i, 0].item(), True))
    for i in range(len(p["outlier_logits"])):
        exp = [math.exp(z) for z in p["outlier_logits"][i].tolist()]
        posterior = [e / sum(exp) for e in exp]
        rows.append((posterior, p["outlier_features"][i].tolist(), p["outlier_reject"][i, 0].item(), False))
    binary, bound, deltas = [], [], []
    for posterior, features, g, inside in rows:
        logs = [sum(w * f for w, f in zip(ws, features, strict=True)) + b for ws, b in zip(weight, bias, strict=True)]
        gammas = [max(math.exp(x), 1e-4) for x in logs]
        beta = sum(gammas[k] * posterior[k] / prior[k] for k in range(CLASSES)) / CLASSES
        bound.append(max(0, math.log(beta) + math.log(sigmoid(g))))
        delta = min(max(beta + (beta - 1) * math.exp(g), 0.1), 10)
        delta = max(delta, 1) if inside else min(delta, 1)
        deltas.append(delta)
        p_in = sigmoid(g - math.log(delta))
        binary.append(-math.log(p_in if inside else 1 - p_in))
    return sum(binary) / len(rows), sum(bound) / len(rows), deltas


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("views", [1, 2])
def test_against_loops(seed, views):
    p = problem(seed=seed, views=views)
    binary, bound, _ = by_loops(p)
    assert imood(tiny.step(**p)).item() == pytest.approx(binary + bound, rel=1e-5)  # γ is float32


def test_the_loops_meet_every_clamp():
    deltas = [d for seed in range(8) for d in by_loops(problem(seed=seed))[2]]
    assert {0.1, 1, 10} <= set(deltas)
    assert any(1 < d < 10 for d in deltas)
    assert any(0.1 < d < 1 for d in deltas)


def test_balanced_classes_and_gamma_one_give_plain_cross_entropy():
    """Where every π_k is 1/C and every γ_k is 1, β is 1, so that log β·P(in) < 0 and δ = 1: only BCE is left."""
    p = problem() | {"counts": torch.full((CLASSES,), 7)}
    p["network"] = Learned(torch.zeros(CLASSES, FEATURES))  # log γ = 0, so β = mean_k C·p_k = 1
    g = torch.cat([p["reject"].flatten(), p["outlier_reject"].flatten()])
    truth = torch.tensor([1.0] * 10 + [0.0] * 4, dtype=torch.float64)
    expected = nn.functional.binary_cross_entropy_with_logits(g, truth)
    assert imood(tiny.step(**p)).item() == pytest.approx(expected.item(), abs=1e-6)


def test_gamma_has_a_floor():
    p = problem()
    lowest = p | {"network": Learned(torch.zeros(CLASSES, FEATURES), torch.full((CLASSES,), math.log(1e-4)))}
    below = p | {"network": Learned(torch.zeros(CLASSES, FEATURES), torch.full((CLASSES,), -50.0))}
    assert imood(tiny.step(**below)).item() == pytest.approx(imood(tiny.step(**lowest)).item(), abs=1e-12)


def test_gradient_of_g_is_that_of_the_binary_term_with_delta_held():
    """d/dg of BCE(sigmoid(g − log δ), in) is (sigmoid(g − log δ) − in)/N and nothing else."""
    p = problem()
    for name in ("reject", "outlier_reject"):
        p[name].requires_grad_(True)
    imood(tiny.step(**p)).backward()
    deltas = torch.tensor(by_loops(p)[2], dtype=torch.float64)
    g = torch.cat([p["reject"].flatten(), p["outlier_reject"].flatten()]).detach()
    truth = torch.tensor([1.0] * 10 + [0.0] * 4)
    expected = ((g - deltas.log()).sigmoid() - truth) / len(g)
    found = torch.cat([p["reject"].grad.flatten(), p["outlier_reject"].grad.flatten()])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_gamma_learns_from_the_bound_alone():
    """Its gradient is that of mean relu(log β + log sigmoid(g)), by finite differences of the loops."""
    p = problem()
    imood(tiny.step(**p)).backward()
    bias = p["network"].learned["outlier"].bias
    whole = bias.detach().clone()
    for k in range(CLASSES):
        ends = []
        for move in (2**-10, -(2**-10)):
            with torch.no_grad():
                bias.copy_(whole)
                bias[k] += move
            ends.append(by_loops(p)[1])
        assert bias.grad[k].item() == pytest.approx((ends[0] - ends[1]) / 2**-9, abs=1e-3)
    assert bias.grad.abs().max() > 0.05


def test_outliers_teach_no_class_logit():
    p = problem()
    for name in ("logits", "outlier_logits"):
        p[name].requires_grad_(True)
    imood(tiny.step(**p)).backward()
    assert p["logits"].grad is None or not p["logits"].grad.any()
    assert p["outlier_logits"].grad is None or not p["outlier_logits"].grad.any()


def test_log_gamma_starts_without_a_bias():
    assert not LogGamma(FEATURES, CLASSES).bias.any()


def test_features_in_half_precision():
    """As bf16 autocast hands them over."""
    p = problem()
    network = nn.Module()
    network.learned = nn.ModuleDict({"outlier": LogGamma(FEATURES, CLASSES)})
    given = {k: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in p.items()}
    given |= {"network": network, "features": p["features"].bfloat16()}
    given["outlier_features"] = p["outlier_features"].bfloat16()
    imood(tiny.step(**given)).backward()
    assert network.learned["outlier"].weight.grad.abs().sum() > 0
