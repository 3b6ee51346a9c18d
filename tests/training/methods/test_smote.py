"""SMOTE: counts, and that every new point lies between two old ones of its class."""

import numpy as np
import pytest
import torch
from imblearn.over_sampling import SMOTE

from training.methods.smote import smote

COUNTS = [40, 12, 6, 3, 2, 1, 1]


def cloud(counts=COUNTS, size=5, seed=0):
    """Random features and labels in mixed order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    return torch.randn(len(labels), size, generator=generator) + 3 * labels[:, None], labels


def nearest(own, k):
    """[n, k]: indices of each point's k nearest others."""
    distances = torch.cdist(own.double(), own.double()).fill_diagonal_(torch.inf)
    return distances.argsort(dim=1)[:, :k]


def off_segments(points, own, k):
    """How far each point lies from the nearest segment between a point of `own` and one of its k neighbours."""
    pairs = nearest(own, k)
    start = own.double().repeat_interleave(k, dim=0)  # (n·k, F)
    step = own.double()[pairs.flatten()] - start
    offset = points.double()[:, None] - start  # (P, n·k, F)
    u = ((offset * step).sum(-1) / step.square().sum(-1)).clamp(0, 1)
    return (offset - u[..., None] * step).norm(dim=-1).min(dim=1).values


def test_originals_first_then_equal_counts():
    features, labels = cloud()
    grown, grown_labels = smote(features, labels, seed=0)
    n = len(labels)
    assert torch.equal(grown[:n], features)
    assert torch.equal(grown_labels[:n], labels)
    assert grown_labels.bincount().tolist() == [40] * 7
    assert grown.shape == (280, 5)
    assert (grown.dtype, grown_labels.dtype) == (torch.float32, torch.int64)
    assert (grown_labels[n:] != 0).all()


@pytest.mark.parametrize("neighbours", [1, 2, 5])
def test_new_points_lie_between_neighbours(neighbours):
    features, labels = cloud()
    grown, grown_labels = smote(features, labels, seed=0, neighbours=neighbours)
    new, new_labels = grown[len(labels) :], grown_labels[len(labels) :]
    for c in (1, 2, 3, 4):
        k = min(neighbours, COUNTS[c] - 1)
        found = new[new_labels == c]
        assert off_segments(found, features[labels == c], k).max() < 1e-5
        assert torch.cdist(found, features).min() > 1e-5  # and none is a copy
    # the check can fail: with one neighbour fewer, some point lies on no segment
    if neighbours > 1:
        assert off_segments(new[new_labels == 1], features[labels == 1], neighbours - 1).max() > 0.01


def test_all_neighbours_are_used():
    """Three points have two neighbours each, so new points come to lie on all three sides."""
    corners = torch.tensor([[0.0, 0], [1, 0], [0, 1]])
    features, labels = torch.cat([torch.zeros(300, 2), corners]), torch.tensor([0] * 300 + [1] * 3)
    new = smote(features, labels, seed=0)[0][303:]
    x, y = new.T
    sides = torch.stack([y.abs() < 1e-6, x.abs() < 1e-6, (x + y - 1).abs() < 1e-6])
    assert sides.any(dim=0).all()
    assert (sides.sum(dim=1) > 50).all()


def test_along_a_segment_uniformly():
    features = torch.cat([torch.zeros(2000, 1), torch.tensor([[0.0], [1.0]])])
    new = smote(features, torch.tensor([0] * 2000 + [1] * 2), seed=0)[0][2002:, 0].sort().values
    expected = (torch.arange(len(new)) + 0.5) / len(new)
    assert (new - expected).abs().max() < 1.95 / len(new) ** 0.5  # Kolmogorov-Smirnov at .001


def test_one_image_is_repeated():
    features, labels = cloud()
    grown, grown_labels = smote(features, labels, seed=0)
    for c in (5, 6):
        assert torch.equal(grown[grown_labels == c], features[labels == c].expand(40, -1))


def test_is_imbalanced_learns():
    """Where every class has neighbours enough: its own result, bit for bit."""
    features, labels = cloud([40, 12, 6])
    sampler = SMOTE(random_state=np.random.RandomState(7), k_neighbors=5)
    expected, expected_labels = sampler.fit_resample(features.numpy(), labels.numpy())
    grown, grown_labels = smote(features, labels, seed=7)
    assert np.array_equal(grown.numpy(), expected)
    assert np.array_equal(grown_labels.numpy(), expected_labels)


def test_classes_draw_apart():
    """Two classes of two points each: with one stream of numbers for both, their steps would be the same."""
    features = torch.cat([torch.zeros(50, 1), torch.tensor([[0.0], [1.0], [0.0], [1.0]])])
    grown, labels = smote(features, torch.tensor([0] * 50 + [1, 1, 2, 2]), seed=0)
    assert not torch.allclose(grown[54:][labels[54:] == 1], grown[54:][labels[54:] == 2])


def test_the_seed_alone_decides():
    features, labels = cloud()
    one = smote(features, labels, seed=3)[0]
    np.random.seed(0)
    assert torch.equal(one, smote(features, labels, seed=3)[0])
    assert not torch.equal(one, smote(features, labels, seed=4)[0])


@pytest.mark.parametrize("counts", [[5, 5], [1, 1], [4], [0, 3, 0, 3]])
def test_nothing_to_add(counts):
    features, labels = cloud(counts)
    grown, grown_labels = smote(features, labels, seed=0)
    assert torch.equal(grown, features)
    assert torch.equal(grown_labels, labels)


def test_no_images():
    grown, labels = smote(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), seed=0)
    assert grown.shape == (0, 4)
    assert labels.shape == (0,)


def test_low_precision_and_gradients():
    """Features as the network gives them: bfloat16, int32 labels, part of a graph."""
    features, labels = cloud()
    given = features.bfloat16().requires_grad_()
    grown, grown_labels = smote(given, labels.int(), seed=0)
    assert torch.equal(grown[: len(labels)], features.bfloat16().float())
    assert not grown.requires_grad
    assert (grown.dtype, grown_labels.dtype) == (torch.float32, torch.int32)


def test_no_neighbours():
    with pytest.raises(ValueError, match="neighbours is 0"):
        smote(*cloud(), seed=0, neighbours=0)
