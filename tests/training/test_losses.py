"""Classification losses: values worked out by hand, and how they relate to each other."""

import math

import pytest
import torch

from training import losses

LOGITS = torch.tensor([[5.0, 4.0, 2.0]])


def test_cross_entropy_by_hand():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])  # p = 3/4 and 1/2
    found = losses.cross_entropy(logits, torch.tensor([1, 0]), torch.tensor([9, 1]))
    assert found.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


@pytest.mark.parametrize(("counts", "expected"), [((10, 5, 2), 0.177), ((2, 5, 10), 0.774)])
def test_balanced_softmax_by_hand(counts, expected):
    found = losses.logit_adjustment(LOGITS, torch.tensor([0]), torch.tensor(counts)).item()
    weighted = [n * math.exp(z) for n, z in zip(counts, (5, 4, 2), strict=True)]
    assert found == pytest.approx(-math.log(weighted[0] / sum(weighted)))
    assert found == pytest.approx(expected, abs=5e-4)


def test_adjustment_uses_shares_alone():
    labels = torch.tensor([2])
    one, many = (losses.logit_adjustment(LOGITS, labels, torch.tensor(c)) for c in ([10, 5, 2], [1000, 500, 200]))
    assert one.item() == pytest.approx(many.item())


def test_without_adjustment():
    labels, counts = torch.tensor([1]), torch.tensor([10, 5, 2])
    expected = losses.cross_entropy(LOGITS, labels, counts).item()
    assert losses.logit_adjustment(LOGITS, labels, counts, tau=0).item() == pytest.approx(expected)
    balanced = torch.tensor([7, 7, 7])
    assert losses.logit_adjustment(LOGITS, labels, balanced).item() == pytest.approx(expected)


def test_tau_is_a_power_of_the_share():
    found = losses.logit_adjustment(LOGITS, torch.tensor([0]), torch.tensor([2, 5, 10]), tau=2).item()
    weighted = [n**2 * math.exp(z) for n, z in zip((2, 5, 10), (5, 4, 2), strict=True)]
    assert found == pytest.approx(-math.log(weighted[0] / sum(weighted)))
