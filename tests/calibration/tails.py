"""Long tails to draw calibration images and fresh ones from: synthetic ones, and scores of real images."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.contract.calibration.calibrate import Scored
from tests.drift import scores as drift

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
FRESH_IMAGES = 20_000  # of a synthetic tail in a draw, at least 20 of each class


@dataclass(frozen=True)
class Tail:
    """`counts` [C] are those of the training images; `split` draws (calibration images, fresh ones) of each class."""

    name: str
    counts: Ints
    split: Callable[[np.random.Generator, Ints], tuple[Scored, Scored]]


# ---- Synthetic ------------------------------------------------------------------------------------------------------


def synthetic(name: str, counts: Ints, shift: float, errors: float) -> Tail:
    """Normal scores, those of the rarest class higher by `shift` standard deviations, in proportion to log count.

    A share `errors` of the rarest class's images (in proportion likewise) is taken for a class drawn by frequency, and
    has a score one standard deviation higher.
    """
    logs = np.log(counts)
    rarity = (logs.max() - logs) / max(float(np.ptp(logs)), 1e-9)

    def draw(random: np.random.Generator, images: Ints) -> Scored:
        labels = np.repeat(np.arange(len(counts)), images)
        wrong = random.random(len(labels)) < errors * rarity[labels]
        predicted = np.where(wrong, random.choice(len(counts), len(labels), p=counts / counts.sum()), labels)
        scores = random.normal(shift * rarity[labels] + (predicted != labels), 1.0)
        return Scored(scores, predicted, labels)

    def split(random: np.random.Generator, held: Ints) -> tuple[Scored, Scored]:
        return draw(random, held), draw(random, np.full(len(counts), max(FRESH_IMAGES // len(counts), 20)))

    return Tail(name, counts, split)


# ---- Real images ----------------------------------------------------------------------------------------------------


def of_pool(name: str, counts: Ints, pool: Scored) -> Tail:
    """Images that no network was trained on: a draw takes calibration images, the others are the fresh ones."""
    assert pool.labels is not None
    labels = pool.labels
    members = [np.flatnonzero(labels == c) for c in range(len(counts))]

    def split(random: np.random.Generator, held: Ints) -> tuple[Scored, Scored]:
        shuffled = [random.permutation(m) for m in members]
        parts = [
            np.concatenate([m[:n] for m, n in zip(shuffled, held, strict=True)]),
            np.concatenate([m[n:] for m, n in zip(shuffled, held, strict=True)]),
        ]
        first, second = (Scored(pool.scores[p], pool.predicted[p], labels[p]) for p in parts)
        return first, second

    return Tail(name, counts, split)


def cifar10() -> Tail:
    """CIFAR-10's test images as the embedded bundle scores them (tests/drift/scores.npz), cut to its long tail."""
    test = drift.load()["test"]
    counts = (5000 * (1 / 100) ** (np.arange(10) / 9) + 1e-9).astype(np.int64)
    pool = Scored(test.score.astype(np.float64), test.predicted.astype(np.int64), test.label.astype(np.int64))
    return of_pool("CIFAR-10-LT, the embedded bundle", counts, pool)


def digits(classes: int) -> Tail:
    """scikit-learn's digits of the first `classes` figures."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    kept = labels < classes
    counts = (600 * (1 / 40) ** (np.arange(classes) / max(classes - 1, 1))).astype(np.int64)
    return of_pool(f"digits, {classes} class{'' if classes == 1 else 'es'}", counts, scored(images[kept], labels[kept]))


def plankton() -> Tail:
    """The shared folder's plankton: all 121 taxa, whose counts are nature's own."""
    images, rest = archive("plankton_48")
    labels = rest["labels"].astype(np.int64)
    return of_pool("plankton, 121 taxa", np.bincount(labels), scored(reduced(images), labels))


def cifar100() -> Tail:
    """CIFAR-100's test images, by a classifier of the long-tailed training images."""
    (train, its), (test, theirs) = archive("cifar100_lt_ir100_train"), archive("cifar100_test")
    labels, features = its["labels"].astype(np.int64), reduced(np.concatenate([train, test]))
    pool = nearest_mean(features[: len(train)], labels, features[len(train) :], theirs["labels"].astype(np.int64))
    return of_pool("CIFAR-100-LT", np.bincount(labels), pool)


def clusters() -> Tail:
    """1,000 clusters of CIFAR-10's training images as classes: no data set at hand has as many."""
    from sklearn.cluster import MiniBatchKMeans

    features = reduced(archive("cifar10_train_full")[0])
    means = MiniBatchKMeans(1000, random_state=0, n_init=1, batch_size=4096, max_iter=20)
    labels = means.fit_predict(features[:, :20].astype(np.float32))
    names, labels = np.unique(labels, return_inverse=True)
    return of_pool(f"{len(names)} clusters of CIFAR-10", np.bincount(labels), scored(features, labels))


def scored(features: Floats, labels: Ints, fit_share: float = 0.4) -> Scored:
    """`nearest_mean` fitted on a share of each class, at least one image, and applied to the others."""
    order = np.random.default_rng(0).permutation(len(labels))
    rank = np.empty(len(labels), np.int64)
    for c in np.unique(labels):
        members = order[labels[order] == c]
        rank[members] = np.arange(len(members))
    fit = rank < np.maximum(fit_share * np.bincount(labels)[labels], 1)
    return nearest_mean(features[fit], labels[fit], features[~fit], labels[~fit])


def nearest_mean(fit: Floats, fit_labels: Ints, features: Floats, labels: Ints) -> Scored:
    """Score and class of images by linear discriminant analysis.

    The score is the squared Mahalanobis distance to the nearest class mean, with a pooled covariance.
    """
    means = np.stack([fit[fit_labels == c].mean(axis=0) for c in range(int(fit_labels.max()) + 1)])
    centred = fit - means[fit_labels]
    covariance = centred.T @ centred / len(centred)
    covariance += 0.1 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    whiten = np.linalg.cholesky(np.linalg.inv(covariance))
    images, centres = features @ whiten, means @ whiten
    distances = (images**2).sum(1)[:, None] - 2 * images @ centres.T + (centres**2).sum(1)
    return Scored(distances.min(axis=1), distances.argmin(axis=1), labels)


def reduced(images: NDArray[np.uint8], dimensions: int = 60) -> Floats:
    """Images [N, H, W, C] to the leading principal components of their square roots at 8 or 12 px."""
    step = images.shape[1] // (12 if images.shape[1] % 12 == 0 else 8)
    small = images[:, : images.shape[1] // step * step, : images.shape[2] // step * step].astype(np.float32)
    n, height, width, channels = small.shape
    small = small.reshape(n, height // step, step, width // step, step, channels).mean(axis=(2, 4)).reshape(n, -1)
    rooted = np.sqrt(small / 255)
    rooted -= rooted.mean(axis=0)
    values, vectors = np.linalg.eigh(rooted.T @ rooted / n)
    return np.asarray(rooted @ vectors[:, np.argsort(-values)[:dimensions]], np.float64)


def archive(name: str) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.generic]]]:
    """An archive of the shared folder: uint8 [N, H, W, C], and the arrays beside the pictures."""
    from PIL import Image

    with np.load(SHARED / f"{name}.npz") as kept:
        n, height, width, channels = map(int, kept["shape"])
        grid, rest = int(kept["grid"]), {k: kept[k] for k in kept.files if not k.startswith("webp_")}
        parts = []
        for start in range(0, n, grid * grid):
            picture = Image.open(io.BytesIO(kept[f"webp_{start // grid**2:04d}"].tobytes())).convert("RGB")
            tiles = np.asarray(picture).reshape(-1, height, grid, width, 3).transpose(0, 2, 1, 3, 4)
            parts.append(tiles.reshape(-1, height, width, 3)[: n - start, ..., :channels])
    return np.concatenate(parts), rest
