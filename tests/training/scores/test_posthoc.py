"""Fitted scores against scikit-learn, against loops in float64, and where statistics are degenerate."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torch import nn

from training.scores import fitted as posthoc
from training.scores import gaussian
from training.scores.fitted import Reference, Seen, bank_images
from training.scores.gaussian import RIDGE

COUNTS = (200, 90, 40, 18, 8, 1)
SIZE = 16
FITS = {
    "react": (posthoc.fit_react, posthoc.react),
    "fdbd": (posthoc.fit_fdbd, posthoc.fdbd),
    "nci": (posthoc.fit_nci, posthoc.nci),
    "vim": (posthoc.fit_vim, posthoc.vim),
    "ncm": (posthoc.fit_ncm, posthoc.ncm),
    "mahalanobis": (gaussian.fit_mahalanobis, gaussian.mahalanobis),
    "mahalanobis-pp": (gaussian.fit_mahalanobis_pp, gaussian.mahalanobis_pp),
    "rmds": (gaussian.fit_rmds, gaussian.rmds),
    "rmds-pp": (gaussian.fit_rmds_pp, gaussian.rmds_pp),
    "knn": (posthoc.fit_knn, posthoc.knn),
}
every_fit = pytest.mark.parametrize("name", FITS)


class Given(NamedTuple):
    reference: Reference
    inside: Seen
    outside: Seen


def clusters(seed):
    """A long tail of six clusters, each on its own two features; three shared features and one dead one.

    Outliers are weak on every class's features and strong on the shared ones. Reject logits: the first is high inside,
    the second outside.
    """
    random = torch.Generator().manual_seed(seed)
    means = torch.cat([3 * torch.eye(6).repeat_interleave(2, dim=1), torch.full((6, 3), 0.5), torch.zeros(6, 1)], dim=1)
    alive = (torch.arange(SIZE) < SIZE - 1).float()
    weight, bias = 0.4 * (means - means.mean(dim=0)), torch.linspace(-3.0, -3.4, 6)

    def images(centres, reject):
        features = ((centres + 0.5 * torch.randn(len(centres), SIZE, generator=random)) * alive).relu()
        noise = torch.randn(len(centres), 2, generator=random)
        return Seen(features, features @ weight.T + bias, torch.tensor(reject) + noise)

    labels = torch.arange(6).repeat_interleave(torch.tensor(COUNTS))
    train = images(means[labels], [2.0, -9.0])
    inside = images(means[labels[::6]], [2.0, -9.0])
    outside = images(torch.cat([torch.zeros(12), torch.full((3,), 2.5), torch.zeros(1)]).expand(50, -1), [-5.0, 9.0])
    return Given(Reference(train.features, train.logits, labels, weight, bias, train.reject), inside, outside)


@pytest.fixture(scope="module")
def given():
    return clusters(seed=1)


def score(name, reference, seen):
    fit, value = FITS[name]
    return value(seen, **fit(reference)).numpy()


def doubles(*tensors):
    return [t.numpy().astype(np.float64) for t in tensors]


# ---- Against independent derivations ----


def test_react_by_hand(given):
    features, weight, bias, train = doubles(
        given.inside.features, given.reference.weight, given.reference.bias, given.reference.features
    )
    ceiling = np.quantile(train, 0.9)
    logits = np.where(features > ceiling, ceiling, features) @ weight.T + bias
    assert (features > ceiling).any()
    expected = -np.log(np.exp(logits).sum(axis=1))
    np.testing.assert_allclose(score("react", given.reference, given.inside), expected, rtol=1e-5)


def test_fdbd_by_loops(given):
    """The distance to a boundary found as such: how far to walk along w_i − w_j until both logits are equal."""
    features, weight, bias, train = doubles(
        given.inside.features, given.reference.weight, given.reference.bias, given.reference.features
    )
    expected = []
    for f in features:
        best = int(np.argmax(weight @ f + bias))
        distances = []
        for other in set(range(6)) - {best}:
            normal = weight[other] - weight[best]
            step = ((weight[best] - weight[other]) @ f + bias[best] - bias[other]) / (normal @ normal)
            at = f + step * normal
            assert weight[best] @ at + bias[best] == pytest.approx(weight[other] @ at + bias[other])
            distances.append(np.linalg.norm(at - f))
        expected.append(-np.mean(distances) / np.linalg.norm(f - train.mean(axis=0)))
    np.testing.assert_allclose(score("fdbd", given.reference, given.inside), expected, rtol=1e-4)


def test_fdbd_where_two_classes_share_one_row(given):
    weight = given.reference.weight.clone()
    weight[1] = weight[0]
    found = score("fdbd", given.reference._replace(weight=weight), given.inside)
    assert np.isfinite(found).all()
    assert np.abs(found).max() < 1e3


def test_fdbd_of_one_class_is_constant_and_finite(given):
    one = given.reference._replace(weight=given.reference.weight[:1], logits=given.reference.logits[:, :1])
    assert not score("fdbd", one, given.inside._replace(logits=given.inside.logits[:, :1])).any()


def test_nci_by_loops(given):
    features, weight, bias, train = doubles(
        given.inside.features, given.reference.weight, given.reference.bias, given.reference.features
    )
    expected = []
    for f in features:
        away = f - train.mean(axis=0)
        row = weight[np.argmax(weight @ f + bias)]
        cosine = row @ away / np.linalg.norm(row) / np.linalg.norm(away)
        expected.append(-cosine * np.linalg.norm(row) - 0.001 * sum(abs(x) for x in f))
    np.testing.assert_allclose(score("nci", given.reference, given.inside), expected, rtol=1e-5)


def test_vim_as_the_reconstruction_error_of_a_pca(given):
    """PCA around u: training features mirrored in u have u as their mean and the same second moments around it."""
    features, logits, train, train_logits, weight, bias = doubles(
        given.outside.features, given.outside.logits, given.reference.features, given.reference.logits,
        given.reference.weight, given.reference.bias,
    )  # fmt: skip
    origin = np.linalg.lstsq(weight, -bias, rcond=1e-5)[0]  # the head's rows sum to 0: rank 5
    pca = PCA(n_components=SIZE // 2, svd_solver="full").fit(np.concatenate([train, 2 * origin - train]))

    def residual(x):
        return np.linalg.norm(x - pca.inverse_transform(pca.transform(x)), axis=1)

    alpha = train_logits.max(axis=1).mean() / residual(train).mean()
    expected = alpha * residual(features) - np.log(np.exp(logits).sum(axis=1))
    np.testing.assert_allclose(score("vim", given.reference, given.outside), expected, rtol=1e-4)


def test_ncm_by_loops(given):
    features, train = doubles(given.inside.features, given.reference.features)
    labels = given.reference.labels.numpy()
    features, train = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features, train))
    means = [train[labels == c].mean(axis=0) for c in range(6)]
    expected = [-max(f @ m / np.linalg.norm(m) for m in means) for f in features]
    np.testing.assert_allclose(score("ncm", given.reference, given.inside), expected, rtol=1e-5)


def test_background_by_hand():
    """logsumexp z of the training images is 1 … 101, so its 5% quantile is 6 and c = 2."""
    mass = torch.arange(1.0, 102.0)
    logits = torch.stack([mass, mass], dim=1) - np.log(2)
    reference = Reference(torch.zeros(101, 1), logits, torch.zeros(101, dtype=torch.int64), torch.zeros(2, 1),
                          torch.zeros(2))  # fmt: skip
    constants = posthoc.fit_background(reference)
    assert float(constants["constant"]) == pytest.approx(2.0)
    seen = Seen(torch.zeros(3, 1), torch.zeros(3, 2), torch.tensor([[-50.0], [2.0], [50.0]]))
    expected = np.array([2.0, 2.0 + np.log(2), 50.0]) - np.log(2)  # below, at and above the background
    np.testing.assert_allclose(posthoc.background(seen, **constants), expected, rtol=1e-6)


def gaussian_distances(deviations, differences):
    """Squared distances by scikit-learn, the ridge added as data: SIZE·2 further rows ±√(n/2·ridge) on each axis."""
    n = len(deviations)
    ridge = RIDGE * np.mean(deviations**2)
    axes = np.eye(SIZE) * np.sqrt(ridge * n / 2)
    oracle = EmpiricalCovariance(assume_centered=True).fit(np.concatenate([deviations, axes, -axes]))
    return oracle.mahalanobis(differences) * n / (n + 2 * SIZE)  # its covariance divides by n + 2·SIZE


def left_out_distance(train, labels):
    """The median distance of an image to its class, mean and covariance computed anew without it, one by one."""
    ridge = RIDGE * np.mean(np.concatenate([train[labels == c] - train[labels == c].mean(0) for c in set(labels)]) ** 2)
    found = []
    for i in np.flatnonzero(np.bincount(labels)[labels] > 1):
        rest, own = np.delete(train, i, axis=0), np.delete(labels, i)
        means = {c: rest[own == c].mean(axis=0) for c in set(own)}
        deviations = rest - np.stack([means[c] for c in own])
        covariance = deviations.T @ deviations / len(train) + ridge * np.eye(train.shape[1])
        away = train[i] - means[labels[i]]
        found.append(away @ np.linalg.solve(covariance, away))
    return np.sort(found)[(len(found) - 1) // 2]


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("relative", [False, True])
def test_mahalanobis_family_against_scikit_learn(given, normalised, relative):
    features, train = doubles(given.outside.features, given.reference.features)
    labels = given.reference.labels.numpy()
    if normalised:
        features, train = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features, train))
    means = [train[labels == c].mean(axis=0) for c in range(6)]
    within = np.concatenate([train[labels == c] - means[c] for c in range(6)])
    expected = np.min([gaussian_distances(within, features - mean) for mean in means], axis=0)
    if relative:
        whole = train.mean(axis=0)
        expected = expected - gaussian_distances(train - whole, features - whole)
    expected = expected / left_out_distance(train, labels)
    name = ("rmds" if relative else "mahalanobis") + ("-pp" if normalised else "")
    np.testing.assert_allclose(score(name, given.reference, given.outside), expected, rtol=1e-3, atol=1e-3)


def test_knn_against_scikit_learn():
    """3,000 images, so K = 3; the score is (d² − 2) / 2 of the distance d to the K-th neighbour."""
    random = torch.Generator().manual_seed(0)
    train, features = torch.randn(3000, 8, generator=random), torch.randn(40, 8, generator=random)
    labels = torch.arange(3000) % 7
    found = score("knn", reference_of(train, labels), seen_of(features))
    bank, queries = (x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True) for x in (train, features))
    distances, _ = NearestNeighbors(n_neighbors=3).fit(bank).kneighbors(queries)
    np.testing.assert_allclose(np.sqrt(2 + 2 * found.astype(np.float64)), distances[:, -1], atol=1e-3)


def test_pytorch_ood_agrees(given):
    """Where that library can be imported (it needs torchvision, which the project does not)."""
    detector = pytest.importorskip("pytorch_ood.detector")
    reference, features = given.reference, given.inside.features
    head = nn.Linear(SIZE, 6)
    head.weight.data, head.bias.data = reference.weight.clone(), reference.bias.clone()
    theirs = {
        "fdbd": detector.fDBD(None, head),
        "nci": detector.NCI(None, head, alpha=0.001),
        "vim": detector.ViM(None, SIZE // 2, reference.weight, reference.bias),
    }
    for name, other in theirs.items():
        expected = other.fit_features(reference.features, reference.labels).predict_features(features)
        np.testing.assert_allclose(score(name, reference, given.inside), expected.detach().numpy(), rtol=1e-3)


# ---- The bank ----


def test_bank_keeps_the_tail_whole_and_cuts_the_head():
    counts = torch.tensor([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])  # CIFAR10-LT
    labels = torch.arange(10).repeat_interleave(counts)[
        torch.randperm(12406, generator=torch.Generator().manual_seed(0))
    ]
    chosen = bank_images(labels)
    kept = labels[chosen].bincount()
    assert 4096 - 10 < len(chosen) == len(chosen.unique()) <= 4096
    assert kept.tolist() == [641] * 5 + [387, 232, 139, 83, 50]
    assert (chosen == bank_images(labels)).all()


def test_bank_spreads_over_a_class_in_order():
    chosen = bank_images(torch.zeros(40960, dtype=torch.int64))
    assert chosen.tolist() == list(range(0, 40960, 10))


def test_bank_of_few_images_is_all_of_them():
    labels = torch.tensor([3, 0, 3, 9])
    assert sorted(bank_images(labels).tolist()) == [0, 1, 2, 3]


def test_bank_holds_one_image_of_each_of_too_many_classes():
    assert len(bank_images(torch.arange(5000).repeat(2))) == 5000


# ---- Degenerate statistics ----


def reference_of(features, labels, classes=10):
    random = torch.Generator().manual_seed(9)
    weight, bias = torch.randn(classes, features.shape[1], generator=random), torch.zeros(classes)
    return Reference(features, features @ weight.T + bias, labels, weight, bias)


def seen_of(features, classes=10):
    weight = reference_of(features, None, classes).weight
    return Seen(features, features @ weight.T, torch.zeros(len(features), 0))


@every_fit
@pytest.mark.parametrize("case", ["fewer images than features", "one image per class", "all alike", "all zero"])
def test_degenerate_training_features_give_finite_scores(name, case):
    random = torch.Generator().manual_seed(0)
    features = torch.randn(10, 64, generator=random).relu()
    labels = torch.arange(10) % (10 if case == "one image per class" else 3)  # classes 3 to 9 have no images
    if case.startswith("all"):
        features = features[:1].expand(10, -1) * (0 if case == "all zero" else 1)
    new = torch.cat([torch.randn(5, 64, generator=random), torch.zeros(1, 64), features[:1]])
    assert np.isfinite(score(name, reference_of(features, labels), seen_of(new))).all()


@every_fit
def test_half_the_features_dead_and_scores_still_mean_something(name):
    """ViM's residual is then rounding alone, and Mahalanobis distance divides by the ridge alone."""
    given = clusters(seed=2)
    padded = Reference(*given.reference)._replace(
        features=torch.cat([given.reference.features, torch.zeros(len(given.reference.features), SIZE)], dim=1),
        weight=torch.cat([given.reference.weight, torch.zeros(6, SIZE)], dim=1),
    )
    inside, outside = (
        s._replace(features=torch.cat([s.features, torch.zeros(len(s.features), SIZE)], dim=1))
        for s in (given.inside, given.outside)
    )
    low, high = score(name, padded, inside), score(name, padded, outside)
    assert (low[:, None] < high).mean() > 0.9


def test_mahalanobis_keeps_its_digits_far_from_the_centre():
    """Tight clusters far apart (neural collapse): expanding the square would lose the distance within a cluster."""
    random = torch.Generator().manual_seed(0)
    means = 100 * torch.eye(4, 8)
    labels = torch.arange(400) % 4
    train = means[labels] + 1e-3 * torch.randn(400, 8, generator=random)
    reference = reference_of(train, labels, classes=4)
    new = means + 1e-3 * torch.randn(4, 8, generator=random)
    found = score("mahalanobis", reference, seen_of(new, classes=4))
    within = (train - torch.stack([train[labels == c].mean(dim=0) for c in range(4)])[labels]).double()
    precision = torch.linalg.inv(within.T @ within / 400)
    away = new.double() - torch.stack([train[labels == c].double().mean(dim=0) for c in range(4)])
    expected = ((away @ precision) * away).sum(dim=1)
    expected = expected.numpy() / left_out_distance(train.double().numpy(), labels.numpy())
    np.testing.assert_allclose(found, expected, rtol=0.05)


def test_with_fewer_images_than_features_a_part_of_them_gives_distances_of_the_same_size():
    """Else thresholds from heads that learnt from four fifths, cross-fitted ones, refuse next to nothing."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(100) % 2
    train = torch.randn(100, 400, generator=random) + labels[:, None]
    new = seen_of(torch.randn(200, 400, generator=random) + torch.arange(200)[:, None] % 2, classes=2)
    whole, part = (score("mahalanobis", reference_of(train[:n], labels[:n], classes=2), new) for n in (100, 80))
    assert np.median(whole) == pytest.approx(1, abs=0.1)
    assert np.median(part) == pytest.approx(np.median(whole), rel=0.03)


def test_classes_of_one_image_each_have_distances_in_no_unit():
    """No image can be left out there, and none is a division by zero."""
    found = score(
        "mahalanobis", reference_of(torch.eye(3), torch.arange(3), classes=3), seen_of(2 * torch.eye(3), classes=3)
    )
    assert np.isfinite(found).all()
