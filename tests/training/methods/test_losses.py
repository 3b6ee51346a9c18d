"""Classification losses: values worked out by hand, PyTorch's and scikit-learn's own, and how they relate."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from training.methods import losses
from training.methods.losses import LOSSES

LOGITS = torch.tensor([[5.0, 4.0, 2.0]])
COUNTS = torch.tensor([5000, 300, 20, 1])
IGNORES_COUNTS = {"cross-entropy", "focal"}
every_loss = pytest.mark.parametrize("name", LOSSES)


def batch(n=64, classes=4, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, classes, generator=generator)
    return logits, torch.randint(classes, (n,), generator=generator)


def plain_weighted(logits, labels, weights):
    """Σ w_y·CE / Σ w_y in plain Python."""
    rows = [
        (weights[y], math.log(sum(math.exp(z) for z in row)) - row[y])
        for row, y in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    return sum(w * ce for w, ce in rows) / sum(w for w, _ in rows)


def test_cross_entropy_by_hand():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])  # p = 3/4 and 1/2
    found = losses.cross_entropy(logits, torch.tensor([1, 0]), torch.tensor([9, 1]))
    assert found.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


@pytest.mark.parametrize(("counts", "expected"), [((10, 5, 2), 0.177), ((2, 5, 10), 0.774)])
def test_balanced_softmax_by_hand(counts, expected):
    weighted = [n * math.exp(z) for n, z in zip(counts, (5, 4, 2), strict=True)]
    for loss in (losses.logit_adjustment, losses.balanced_softmax):
        found = loss(LOGITS, torch.tensor([0]), torch.tensor(counts)).item()
        assert found == pytest.approx(-math.log(weighted[0] / sum(weighted)))
        assert found == pytest.approx(expected, abs=5e-4)


def test_without_adjustment():
    labels, counts = torch.tensor([1]), torch.tensor([10, 5, 2])
    expected = losses.cross_entropy(LOGITS, labels, counts).item()
    assert losses.logit_adjustment(LOGITS, labels, counts, tau=0).item() == pytest.approx(expected)
    one, many = (losses.logit_adjustment(LOGITS, labels, c).item() for c in (counts, 100 * counts))  # shares alone
    assert one == pytest.approx(many)


def test_tau_is_a_power_of_the_share():
    found = losses.logit_adjustment(LOGITS, torch.tensor([0]), torch.tensor([2, 5, 10]), tau=2).item()
    weighted = [n**2 * math.exp(z) for n, z in zip((2, 5, 10), (5, 4, 2), strict=True)]
    assert found == pytest.approx(-math.log(weighted[0] / sum(weighted)))


# ------------------------------------------------------------------------------------------------ a weight per class


def test_weighted_softmax_by_hand():
    """Labels 0 and 1, n = 1 and 3, p = 1/2 and 1/4: weights 1 : 1/3, so (log 2 + log 4 / 3) / (4/3)."""
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    found = losses.weighted_softmax(logits, torch.tensor([0, 1]), torch.tensor([1, 3])).item()
    assert found == pytest.approx((math.log(2) + math.log(4) / 3) / (4 / 3))


def test_weighted_softmax_has_scikit_learns_weights():
    logits, labels = batch()
    everyone = np.repeat(np.arange(4), COUNTS.numpy())
    weights = torch.from_numpy(compute_class_weight("balanced", classes=np.arange(4), y=everyone)).float()
    expected = F.cross_entropy(logits, labels, weight=weights).item()
    assert losses.weighted_softmax(logits, labels, COUNTS).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("beta", [0.9, 0.9999])
def test_class_balanced_from_its_formula(beta):
    logits, labels = batch()
    weights = [(1 - beta) / (1 - beta**n) for n in COUNTS.tolist()]
    found = losses.class_balanced(logits, labels, COUNTS, beta=beta).item()
    assert found == pytest.approx(plain_weighted(logits, labels, weights), rel=1e-5)


def test_class_balanced_lies_between_none_and_inverse_counts():
    """The effective number of images goes from 1 (β → 0) to n (β → 1)."""
    logits, labels = batch()
    plain = F.cross_entropy(logits, labels).item()
    inverse = losses.weighted_softmax(logits, labels, COUNTS).item()
    assert losses.class_balanced(logits, labels, COUNTS, beta=1e-9).item() == pytest.approx(plain, rel=1e-4)
    assert losses.class_balanced(logits, labels, COUNTS, beta=1 - 1e-9).item() == pytest.approx(inverse, rel=1e-4)
    assert abs(plain - inverse) > 0.1


def test_weights_sum_to_the_number_of_classes():
    """The scale cancels in the mean, so it is looked at here; reject classes have weight 1."""
    found = losses._effective_weights(torch.zeros(1, 6), COUNTS, 0.9999)
    assert found[:4].sum().item() == pytest.approx(4)
    assert found[4:].tolist() == [1, 1]
    assert losses._weights(torch.tensor([1.0, 3.0, 0.0])).tolist() == pytest.approx([9 / 4, 3 / 4, 0])


def test_class_balanced_in_float32():
    """(1 − β²)/(1 − β) = 1 + β. Written plainly, 1 − β in float32 keeps no more than four digits."""
    found = losses._effective_weights(torch.zeros(1, 2), torch.tensor([1, 2]), 0.9999)
    assert (found[0] / found[1]).item() == pytest.approx(1.9999, rel=1e-6)


@pytest.mark.parametrize(("p", "plain", "expected"), [(0.1, 2.303, 2.072), (0.9, 0.105, 0.0105)])
def test_focal_by_hand(p, plain, expected):
    logits = torch.tensor([[math.log(p), math.log(1 - p)]])
    label = torch.tensor([0])
    assert losses.cross_entropy(logits, label, COUNTS).item() == pytest.approx(plain, abs=5e-4)
    assert losses.focal(logits, label, COUNTS).item() == pytest.approx(expected, abs=5e-4)
    squared = (1 - p) ** 2 * -math.log(p)
    assert losses.focal(logits, label, COUNTS, gamma=2).item() == pytest.approx(squared, rel=1e-5)


def test_focal_is_a_plain_mean():
    logits, labels = batch()
    p = logits.double().softmax(dim=1)[torch.arange(64), labels]
    assert losses.focal(logits, labels, COUNTS).item() == pytest.approx(((1 - p) * -p.log()).mean().item(), rel=1e-5)


# ------------------------------------------------------------------------------------------------ a margin per class


def test_ldam_by_hand():
    """n = 16 and 1: margins 1/4 and 1/2, times 30. Equal logits: log(1 + e^7.5) for class 0, log(1 + e^15) for 1."""
    logits, counts = torch.zeros(1, 2), torch.tensor([16, 1])
    for label, margin in ((0, 7.5), (1, 15.0)):
        found = losses.ldam(logits, torch.tensor([label]), counts).item()
        assert found == pytest.approx(math.log(1 + math.exp(margin)))
    found = losses.ldam(logits, torch.tensor([0]), counts, scale=2, largest=0.3).item()
    assert found == pytest.approx(math.log(1 + math.exp(2 * 0.15)))


def test_ldam_as_its_authors_wrote_it():
    """Cosines in, the margin taken off before the scale (kaidic/LDAM-DRW, losses.py), with and without weights."""
    logits, labels = batch()
    cosines = torch.tanh(logits)
    margins = 1.0 / np.sqrt(np.sqrt(COUNTS.numpy()))
    margins = torch.from_numpy(margins * (0.5 / np.max(margins))).float()
    own = F.one_hot(labels, 4).bool()
    moved = 30 * torch.where(own, cosines - margins[labels][:, None], cosines)
    expected = F.cross_entropy(moved, labels).item()
    assert losses.ldam(30 * cosines, labels, COUNTS).item() == pytest.approx(expected, rel=1e-5)
    weights = (1.0 - 0.9999) / (1.0 - np.power(0.9999, COUNTS.numpy()))
    weights = torch.from_numpy(weights / weights.sum() * 4).float()
    expected = F.cross_entropy(moved, labels, weight=weights).item()
    assert losses.ldam_class_balanced(30 * cosines, labels, COUNTS).item() == pytest.approx(expected, rel=1e-5)


# --------------------------------------------------------------------------------------------------- what all share


@every_loss
def test_a_scalar_that_learns(name):
    logits, labels = batch()
    logits.requires_grad_()
    loss = LOSSES[name](logits, labels, COUNTS)
    loss.backward()
    assert (loss.shape, loss.dtype) == ((), torch.float32)
    assert LOSSES[name](logits.flip(0), labels.flip(0), COUNTS).item() == pytest.approx(loss.item(), rel=1e-5)
    assert (logits.grad[torch.arange(64), labels] < 0).all()  # down the gradient the label's own logit rises


@every_loss
def test_counts_matter(name):
    logits, labels = batch()
    one, other = (LOSSES[name](logits, labels, counts).item() for counts in (COUNTS, COUNTS.flip(0)))
    assert (one == other) == (name in IGNORES_COUNTS)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"focal"}))  # focal weighs images, not classes
def test_equal_counts_and_no_margin_leave_cross_entropy(name):
    logits, labels = batch()
    options = {"scale": 0.0} if name.startswith("ldam") else {}
    found = LOSSES[name](logits, labels, torch.full((4,), 50), **options).item()
    assert found == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


@every_loss
def test_reject_classes_that_cannot_win_change_nothing(name):
    logits, labels = batch()
    padded = torch.cat([logits, torch.full((64, 3), -torch.inf)], dim=1).requires_grad_()
    loss = LOSSES[name](padded, labels, COUNTS)
    assert loss.item() == pytest.approx(LOSSES[name](logits, labels, COUNTS).item(), rel=1e-5)
    loss.backward()
    assert padded.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "shift"),
    [
        ("cross-entropy", torch.zeros(4)),
        ("balanced-softmax", COUNTS.log()),
        ("logit-adjustment", (COUNTS / COUNTS.sum()).log()),
    ],
)
def test_reject_classes_stand_in_the_softmax_unshifted(name, shift):
    logits, labels = batch(classes=6)
    labels = labels % 4
    shifted = logits + torch.cat([shift, torch.zeros(2)])
    found = LOSSES[name](logits, labels, COUNTS).item()
    assert found == pytest.approx(F.cross_entropy(shifted, labels).item(), rel=1e-5)


@every_loss
def test_extreme_logits(name):
    logits = torch.tensor([[100.0, -100, -100, 0], [-100, 100, -100, 0], [0, 0, -100, 100]])
    for labels in (torch.tensor([0, 1, 3]), torch.tensor([1, 2, 2])):  # all right, all wrong
        given = logits.clone().requires_grad_()
        loss = LOSSES[name](given, labels, COUNTS)
        loss.backward()
        assert loss.isfinite()
        assert loss.item() >= 0
        assert given.grad.isfinite().all()


@every_loss
def test_a_class_without_images(name):
    """It makes nothing infinite; it moves neither the others' weights nor their margins."""
    logits, labels = batch(classes=3)
    labels = labels % 2
    logits.requires_grad_()
    loss = LOSSES[name](logits, labels, torch.tensor([40, 7, 0]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    if name not in ("balanced-softmax", "logit-adjustment"):  # there it is shifted, as a class of one image
        assert loss.item() == pytest.approx(LOSSES[name](logits, labels, torch.tensor([40, 7])).item(), rel=1e-5)


@pytest.mark.parametrize("name", ["balanced-softmax", "logit-adjustment"])
def test_a_class_without_images_is_shifted_as_one_image(name):
    logits, labels = batch(classes=3)
    found, expected = (LOSSES[name](logits, labels, torch.tensor([40, 7, n])).item() for n in (0, 1))
    assert found == pytest.approx(expected, rel=1e-5)


@every_loss
def test_name(name):
    assert LOSSES[name] is getattr(losses, name.replace("-", "_"))
