"""Outlier exposure against the reference implementation, by hand, and as what it is: cross entropy from uniform."""

import math

import pytest
import torch
import torch.nn.functional as F

from training.outliers import outlier_exposure


def test_golden(reference):
    for case in reference["outlier_exposure"]:
        logits = torch.tensor(case["logits"], dtype=torch.float64)
        assert outlier_exposure(logits).item() == pytest.approx(case["loss"], abs=1e-6)


def test_by_hand():
    logits = torch.tensor([[0.0, math.log(3)], [5.0, 5.0]])  # log 4 − (log 3)/2, and log 2
    assert outlier_exposure(logits).item() == pytest.approx((math.log(4) - math.log(3) / 2 + math.log(2)) / 2)


def test_is_cross_entropy_from_uniform():
    logits = torch.randn(20, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 10
    expected = F.cross_entropy(logits, torch.full((20, 7), 1 / 7, dtype=torch.float64))
    assert outlier_exposure(logits).item() == pytest.approx(expected.item(), abs=1e-12)
    assert outlier_exposure(logits + 1000).item() == pytest.approx(expected.item(), abs=1e-9)


def test_uniform_is_the_minimum():
    logits = torch.full((3, 10), 2.0, dtype=torch.float64, requires_grad=True)
    loss = outlier_exposure(logits)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(10))
    assert logits.grad.abs().max() < 1e-12


def test_no_outliers():
    logits = torch.zeros(0, 10, requires_grad=True)
    loss = outlier_exposure(logits)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.shape == (0, 10)
