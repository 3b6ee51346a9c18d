"""The contrastive loss against the reference implementation, a hand-worked case, and the formula written as loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from training.methods.contrast import pascl

CORNERS = [(True, True), (True, False), (False, True), (False, False)]
corners = pytest.mark.parametrize(("partial", "asymmetric"), CORNERS)


def problem(n=9, m=5, d=6, num_classes=5, seed=0):
    """Unit-norm double features; classes 3 and 4 are the tail."""
    torch.manual_seed(seed)
    one, two, out = (F.normalize(torch.randn(k, d, dtype=torch.float64), dim=1) for k in (n, n, m))
    labels = torch.arange(n) % num_classes
    return one, two, out, labels, torch.tensor([False, False, False, True, True])


def by_loops(one, two, out, labels, tail, temperature, partial, asymmetric):
    """The mean over anchors with a positive, each a mean over its positives; everything in plain Python."""
    points = [(f.tolist(), int(y)) for view in (one, two) for f, y in zip(view, labels, strict=True)]
    if partial:
        points = [(f, y) for f, y in points if tail[y]]
    outliers = [(f.tolist(), "outlier") for f in out]
    everyone = points + outliers

    def similar(a, b):
        return math.exp(sum(x * y for x, y in zip(a, b, strict=True)) / temperature)

    terms = []
    for i, (anchor, label) in enumerate(everyone):
        if asymmetric and label == "outlier":
            continue
        others = [p for j, p in enumerate(everyone) if j != i]
        total = sum(similar(anchor, f) for f, _ in others)
        own = [-math.log(similar(anchor, f) / total) for f, y in others if y == label]
        if own:
            terms.append(sum(own) / len(own))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("case", range(3))
def test_golden(reference, case):
    if case >= len(reference["contrast"]):
        pytest.skip(f"the golden file holds {len(reference['contrast'])} cases")
    g = reference["contrast"][case]
    num_classes = g["classes"]
    tail = torch.arange(num_classes) >= round((1 - g["tail_fraction"]) * num_classes)
    labels = torch.tensor(g["labels"])
    assert int(tail[labels].sum()) == g["tail_images"]
    for dtype in (torch.float32, torch.float64):
        views = [torch.tensor(g[name], dtype=dtype) for name in ("view1", "view2", "outliers")]
        found = pascl(*views, labels, tail, temperature=g["temperature"]).item()
        assert found == pytest.approx(g["loss"], abs=1e-6 if dtype == torch.float64 else 1e-4)


def test_by_hand():
    # One tail image whose views are orthogonal, and one outlier: equal to view 1, orthogonal to view 2. T = 1/2.
    one, two = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    found = pascl(one, two, one.clone(), torch.tensor([0]), torch.tensor([True]), temperature=0.5)
    first = -math.log(1 / (1 + math.exp(2)))  # anchor view 1: positive e⁰, outlier e²
    second = -math.log(1 / (1 + 1))  # anchor view 2: positive e⁰, outlier e⁰
    assert found.item() == pytest.approx((first + second) / 2)


def test_outliers_alone_are_one_class_when_symmetric():
    # Two equal outliers, no tail image: each is the other's only neighbour, so each finds it with probability 1.
    nothing, twins = torch.zeros(0, 2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    labels, tail = torch.zeros(0, dtype=torch.long), torch.tensor([True])
    assert pascl(nothing, nothing, twins, labels, tail, temperature=0.1, asymmetric=False).item() == 0
    alone = pascl(nothing, nothing, twins[:1], labels, tail, temperature=0.1, asymmetric=False)
    assert alone.item() == 0  # an anchor without a positive does not count


@corners
@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
@pytest.mark.parametrize("shape", [(9, 5), (4, 1), (12, 0), (5, 7)])
def test_against_loops(partial, asymmetric, temperature, shape):
    given = problem(*shape, seed=shape[0])
    found = pascl(*given, temperature=temperature, partial=partial, asymmetric=asymmetric)
    assert found.item() == pytest.approx(by_loops(*given, temperature, partial, asymmetric), abs=1e-9)


@corners
def test_order_of_the_batch_changes_nothing(partial, asymmetric):
    one, two, out, labels, tail = problem()
    settings = {"temperature": 0.07, "partial": partial, "asymmetric": asymmetric}
    before = pascl(one, two, out, labels, tail, **settings)
    p, q = torch.randperm(9), torch.randperm(5)
    assert pascl(one[p], two[p], out[q], labels[p], tail, **settings).item() == pytest.approx(before.item(), abs=1e-12)
    assert pascl(two, one, out, labels, tail, **settings).item() == pytest.approx(before.item(), abs=1e-12)


def test_the_corners_differ():
    given = problem()
    losses = [pascl(*given, temperature=0.07, partial=p, asymmetric=a).item() for p, a in CORNERS]
    assert len({round(loss, 6) for loss in losses}) == 4


@pytest.mark.parametrize("outliers", [0, 4])
def test_no_tail_image(outliers):
    one, two, out, _, tail = problem(m=outliers)
    for features in (one, two, out):
        features.requires_grad_(True)
    loss = pascl(one, two, out, torch.zeros(9, dtype=torch.long), tail, temperature=0.07)
    assert loss.item() == 0
    loss.backward()
    for features in (one, two, out):
        assert torch.equal(features.grad, torch.zeros_like(features))


@pytest.mark.parametrize("asymmetric", [True, False])
def test_head_images_do_not_matter_when_partial(asymmetric):
    one, two, out, labels, tail = problem()
    head = ~tail[labels]
    for features in (one, two):
        features.requires_grad_(True)
    loss = pascl(one, two, out, labels, tail, temperature=0.07, asymmetric=asymmetric)
    loss.backward()
    for features in (one, two):
        assert not features.grad[head].any()
        assert features.grad[~head].abs().sum(dim=1).min() > 0
    with torch.no_grad():
        other = torch.where(head[:, None], F.normalize(torch.randn_like(one), dim=1), one)
        assert pascl(other, two, out, labels, tail, temperature=0.07, asymmetric=asymmetric).item() == loss.item()
        full = {"temperature": 0.07, "partial": False, "asymmetric": asymmetric}
        assert pascl(other, two, out, labels, tail, **full) != pascl(one, two, out, labels, tail, **full)


@corners
def test_gradient(partial, asymmetric):
    one, two, out, labels, tail = problem(n=5, m=3, d=4)

    def loss(*features):
        return pascl(*features, labels, tail, temperature=0.2, partial=partial, asymmetric=asymmetric)

    assert torch.autograd.gradcheck(loss, [f.requires_grad_(True) for f in (one, two, out)])


def test_small_temperature_does_not_overflow():
    one, two, out, labels, tail = problem()
    found = pascl(one.float(), two.float(), out.float(), labels, tail, temperature=1e-3)
    assert torch.isfinite(found)
