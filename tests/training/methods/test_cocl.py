"""COCL's two terms against their definitions written as loops, and what they move."""

import math

import pytest
import torch
from torch import nn

from tests.training import tiny
from training.methods.contrast import CONTRASTS, Prototypes, cocl, head_triplet, tail_prototypes

TAIL = torch.tensor([False, True, False, False, True])  # classes 1 and 4: not the last ones


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def problem(n=9, m=4, size=6):
    labels = torch.arange(n) % 5
    return random(n, size, seed=1), labels, random(m, size, seed=2), random(5, size, seed=3)


def cosine_sum(a, b):
    """The cosines of the first halves and of the second halves."""
    half = len(a) // 2

    def cosine(x, y):
        dot = sum(p * q for p, q in zip(x, y, strict=True))
        return dot / math.sqrt(sum(p * p for p in x) * sum(q * q for q in y))

    return cosine(a[:half], b[:half]) + cosine(a[half:], b[half:])


def prototypes_by_loops(features, labels, outliers, prototypes, temperature):
    losses = []
    for f, y in zip(features.tolist(), labels.tolist(), strict=True):
        if not TAIL[y]:
            continue
        own = math.exp(cosine_sum(f, prototypes[y].tolist()) / temperature)
        total = sum(math.exp(cosine_sum(f, prototypes[c].tolist()) / temperature) for c in (1, 4))
        total += sum(math.exp(cosine_sum(f, o) / temperature) for o in outliers.tolist())
        losses.append(-math.log(own / total))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("outliers", [0, 1, 4])
def test_tail_prototypes_against_loops(temperature, outliers):
    features, labels, out, prototypes = problem(m=outliers)
    found = tail_prototypes(features, labels, out, prototypes, TAIL, temperature=temperature)
    assert found.item() == pytest.approx(prototypes_by_loops(features, labels, out, prototypes, temperature), abs=1e-9)


def test_tail_prototype_by_hand():
    """An image on its prototype in both halves, the other tail prototype opposite, an outlier across: T = 1."""
    prototypes = torch.tensor([[9.0, 9], [2, 3], [9, 9], [9, 9], [-1, -1]])
    found = tail_prototypes(
        torch.tensor([[5.0, 7.0]]), torch.tensor([1]), torch.tensor([[4.0, -4.0]]), prototypes, TAIL, temperature=1.0
    )
    assert found.item() == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + math.exp(-2) + 1)), rel=1e-5)


def test_the_order_of_the_batch_changes_nothing():
    features, labels, out, prototypes = problem()
    order, others = torch.randperm(9), torch.randperm(4)
    before = tail_prototypes(features, labels, out, prototypes, TAIL)
    after = tail_prototypes(features[order], labels[order], out[others], prototypes, TAIL)
    assert after.item() == pytest.approx(before.item(), abs=1e-12)


def test_the_order_of_the_classes_changes_nothing():
    features, labels, out, prototypes = problem()
    order = torch.randperm(5, generator=torch.Generator().manual_seed(5))  # new class c was order[c]
    renamed = order.argsort()[labels]
    before = tail_prototypes(features, labels, out, prototypes, TAIL)
    after = tail_prototypes(features, renamed, out, prototypes[order], TAIL[order])
    assert after.item() == pytest.approx(before.item(), abs=1e-12)


def test_no_tail_image_gives_zero():
    features, _, out, prototypes = problem()
    for t in (features, out, prototypes):
        t.requires_grad_(True)
    loss = tail_prototypes(features, torch.zeros(9, dtype=torch.long), out, prototypes, TAIL)
    loss.backward()
    assert loss.item() == 0
    assert not features.grad.any()
    assert not prototypes.grad.any()


def test_gradient_reaches_tail_prototypes_and_tail_images_alone():
    features, labels, out, prototypes = problem()
    for t in (features, out, prototypes):
        t.requires_grad_(True)
    tail_prototypes(features, labels, out, prototypes, TAIL).backward()
    assert (prototypes.grad.abs().sum(dim=1) > 0).tolist() == TAIL.tolist()
    assert (features.grad.abs().sum(dim=1) > 0).tolist() == TAIL[labels].tolist()
    assert (out.grad.abs().sum(dim=1) > 0).all()


def test_tail_prototypes_gradient():
    features, labels, out, prototypes = (t[:5] for t in problem(n=5, m=3, size=4))

    def loss(f, o, p):
        return tail_prototypes(f, labels, o, p, TAIL, temperature=0.3)

    assert torch.autograd.gradcheck(loss, [t.requires_grad_(True) for t in (features, out, prototypes)])


# ---- The head triplet ----


def test_head_triplet_against_loops():
    heads, out = random(7, 6, seed=4), random(5, 6, seed=5)
    found = head_triplet(heads, out, torch.Generator().manual_seed(3))
    drawn = torch.randint(7, (5,), generator=torch.Generator().manual_seed(3)).tolist()
    losses = []
    for i, o in enumerate(out.tolist()):
        farthest = max(math.dist(o, other) for other in out.tolist())
        losses.append(max(0, farthest - math.dist(o, heads[drawn[i]].tolist()) + 1))
    assert found.item() == pytest.approx(sum(losses) / 5, abs=1e-4)  # torch adds 1e-6 to each difference


def test_head_triplet_by_hand():
    """Outliers 3 apart, a head image 1 from the first and 2 from the second: 3 − 1 + 1 and 3 − 2 + 1."""
    out, head = torch.tensor([[0.0, 0], [3, 0]]), torch.tensor([[1.0, 0]])
    assert head_triplet(head, out, torch.Generator()).item() == pytest.approx((3 + 2) / 2, abs=1e-4)


@pytest.mark.parametrize(("heads", "outliers"), [(0, 4), (3, 1), (3, 0), (0, 0)])
def test_no_triplet_gives_zero(heads, outliers):
    inside, out = random(heads, 6).requires_grad_(True), random(outliers, 6).requires_grad_(True)
    loss = head_triplet(inside, out, torch.Generator())
    loss.backward()
    assert loss.item() == 0
    assert not inside.grad.any()
    assert not out.grad.any()


# ---- Both, of a step ----


def step(counts, **changes):
    network = nn.Module()
    network.learned = nn.ModuleDict({"contrast": Prototypes(6, 5)})
    given = {
        "logits": random(1, 10, 5), "features": random(1, 10, 6, seed=1), "labels": torch.arange(10) % 5,
        "outlier_logits": random(8, 5), "outlier_features": random(8, 6, seed=2), "counts": torch.tensor(counts),
        "network": network, "tail": TAIL, "generator": torch.Generator().manual_seed(0),
    }  # fmt: skip
    return tiny.step(**given | changes)


def head_classes(counts):
    """The classes whose images the triplet moves: with no tail image in the batch nothing else moves any."""
    features = (10 * random(1, 10, 6, seed=1)).requires_grad_(True)
    outliers = 100 * random(200, 6, seed=2)  # far apart: every triplet counts
    none = torch.zeros(5, dtype=torch.bool)
    given = step(counts, features=features, outlier_features=outliers, outlier_logits=random(200, 5), tail=none)
    cocl(given).backward()
    moved = features.grad[0].abs().sum(dim=1) > 0
    return sorted({int(y) for y, m in zip(given.labels, moved, strict=True) if m})


def test_head_is_the_largest_classes_whatever_their_order():
    assert head_classes([50, 40, 30, 20, 10]) == [0, 1, 2]  # one class more than 40%, as in COCL's code
    assert head_classes([10, 20, 30, 40, 50]) == [2, 3, 4]
    assert head_classes([10, 50, 20, 40, 30]) == [1, 3, 4]


def test_cocl_is_tail_prototypes_and_twice_the_triplet():
    given = step([50, 5, 40, 30, 4])
    features, outliers = given.features[0].float(), given.outlier_features.float()
    vectors = given.network.learned["contrast"].vectors
    head = torch.tensor([y in (0, 2, 3) for y in given.labels.tolist()])
    expected = tail_prototypes(features, given.labels, outliers, vectors, TAIL)
    expected = expected + 2 * head_triplet(features[head], outliers, torch.Generator().manual_seed(0))
    assert cocl(given).item() == pytest.approx(expected.item(), rel=1e-6)


def test_two_views_stand_side_by_side():
    """With views that are equal, the tail prototypes' mean is that of one view."""
    one = random(1, 10, 6, seed=1)
    # the prototypes are drawn afresh for each step, so compare with the same ones
    torch.manual_seed(0)
    alone = cocl(step([9] * 5, features=one), triplet_weight=0)
    torch.manual_seed(0)
    twice = cocl(step([9] * 5, logits=random(2, 10, 5), features=one.repeat(2, 1, 1)), triplet_weight=0)
    assert twice.item() == pytest.approx(alone.item(), rel=1e-6)


def test_weights_of_the_paper():
    """.05 on the prototypes and .1 on the triplet: λ2 = .05 times (1, 2); T = .07."""
    assert (CONTRASTS["cocl"].weight, CONTRASTS["cocl"].temperature) == (0.05, 0.07)
