"""Data placeholders: mixtures of two classes, and of no one class, as outliers of any term."""

import pytest
import torch

from tests.training import tiny
from training.methods.methods import build_network, find, resolve
from training.methods.placeholders import LEAST_SHARE, mixtures, with_placeholders


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_mixture_lies_between_two_images_of_different_classes():
    """One axis for each class: a mixture has two of them, each with at least .35 of the sum, at the length between."""
    labels = torch.tensor([0, 1, 2, 3] * 50)
    features = torch.eye(4)[labels] * (1 + labels[:, None])  # lengths 1, 2, 3, 4
    mixed = mixtures(features, labels, seeded())
    assert 100 < len(mixed) < 200  # a quarter of the partners is of the same class
    parts = (mixed > 0).sum(dim=1)
    assert (parts == 2).all()
    lengths = mixed.norm(dim=1)
    for row, length in zip(mixed, lengths, strict=True):
        first, second = row.nonzero()[:, 0].tolist()
        weights = [row[first].item() / (first + 1), row[second].item() / (second + 1)]  # what each was taken with
        shares = [weight / sum(weights) for weight in weights]
        assert LEAST_SHARE - 1e-5 <= min(shares) <= 0.5
        assert length.item() == pytest.approx(shares[0] * (first + 1) + shares[1] * (second + 1), rel=1e-5)


def test_unit_features_stay_of_unit_length():
    features = torch.nn.functional.normalize(torch.randn(64, 8, generator=seeded()), dim=1)
    mixed = mixtures(features, torch.arange(64) % 3, seeded(1))
    assert mixed.norm(dim=1).tolist() == pytest.approx([1] * len(mixed), abs=1e-6)


def test_images_of_one_class_give_none():
    assert mixtures(torch.randn(16, 8), torch.zeros(16).long(), seeded()).shape == (0, 8)


def test_the_generator_alone_decides():
    features, labels = torch.randn(32, 8, generator=seeded()), torch.arange(32) % 4
    assert torch.equal(mixtures(features, labels, seeded(1)), mixtures(features, labels, seeded(1)))
    assert not torch.equal(mixtures(features, labels, seeded(1))[0], mixtures(features, labels, seeded(2))[0])


def step_of(method, outliers):
    network = build_network(find(method), 8, 8)
    features, out = torch.randn(2, 12, 64), torch.randn(outliers, 64)
    return tiny.step(
        network=network, logits=network.head(features), reject=network.rejects(features.flatten(0, 1)).view(2, 12, -1),
        features=features, labels=torch.arange(12) % 8, outlier_logits=network.head(out),
        outlier_reject=network.rejects(out), outlier_features=out, generator=seeded(),
    )  # fmt: skip


@pytest.mark.parametrize("outliers", [0, 5])
def test_they_join_the_outliers_with_what_the_network_says_of_them(outliers):
    step = step_of("tailguard-joint", outliers)
    found = with_placeholders(step)
    assert torch.equal(found.outlier_features[:outliers], step.outlier_features)
    assert torch.equal(found.outlier_logits[:outliers], step.outlier_logits)
    mixed = found.outlier_features[outliers:]
    assert len(mixed) > 0
    assert torch.allclose(found.outlier_logits[outliers:], step.network.head(mixed))
    assert torch.allclose(found.outlier_reject[outliers:], step.network.rejects(mixed))
    assert found.logits is step.logits


def test_a_setting_gives_them_to_any_row_with_an_outlier_term():
    assert resolve(tiny.config(method="oe", placeholders=True)).placeholders
    assert not resolve(tiny.config(method="tailguard-placeholders", placeholders=False)).placeholders
