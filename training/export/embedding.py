"""The embedding that the graph gives: the features on which the head stands, reduced where that loses nothing.

Of a method with two branches it is that of stage 1, whose scores accept or reject. The reduction is a projection onto
the main directions of the training features, their mean not taken off: so the cosine of two images stays what it was.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from training.data.loading import Data
from training.data.readers import Images
from training.evaluation.predict import BATCH_IMAGES, embed
from training.runs.checkpoint import Run
from training.runs.files import Json

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
# Half of it keeps the neighbours of known classes as well, and loses 3 of 53 points on classes never seen (LOG.md).
MOST_DIMENSIONS = 256
MOST_LOST = 0.005  # of either measure, where features are reduced
MOST_PER_CLASS = 1000  # training images that are looked at
QUERIES, NEIGHBOURS = 1000, 4000  # images whose likeness is measured


class Reduced(nn.Module):
    """Features [N, F] → [N, D] of length 1, in float32. Without `directions` [F, D] the features themselves."""

    directions: Tensor | None

    def __init__(self, directions: Floats | None = None) -> None:
        super().__init__()
        self.register_buffer("directions", None if directions is None else torch.from_numpy(directions))

    def forward(self, features: Tensor) -> Tensor:
        x = features.float()
        return F.normalize(x if self.directions is None else x @ self.directions, dim=1)


@dataclass(frozen=True)
class Embedded:
    """`module` is for the graph, `record` for the manifest; `rows` [n, D] are the training images `index` [n], `held`
    [Q, D] the calibration images."""

    module: Reduced
    record: Json
    rows: Floats
    index: Ints
    held: Floats


@dataclass(frozen=True)
class Likeness:
    """How well nearness tells the class of held-back images."""

    nearest: NDArray[np.bool_]  # [Q]: whether the nearest training image is of the same class
    pairs: float  # AUROC of the cosine, for pairs of the same class against others

    def lost(self, other: "Likeness") -> float:
        """What `other` has less, the worse of the two, in [0, 1]: of neighbours no more than is sure of so few."""
        fewer = self.nearest.astype(float) - other.nearest
        return max(float(fewer.mean() - fewer.std() / len(fewer) ** 0.5), self.pairs - other.pairs)


def fit(run: Run, data: Data, device: torch.device) -> Embedded:
    """The embedding of a run; how far it is reduced is decided on the calibration images.

    Raises ValueError where all training images have features of length 0.
    """
    index = looked_at(data.train.labels)
    features, labels = _features(run, data.train.images, index, device), data.train.labels[index]
    held = _features(run, data.calibration.images, np.arange(len(data.calibration.labels)), device)
    if not features.any():
        raise ValueError("the network gives every training image the same features, all 0: train it again")
    size = features.shape[1]
    full = likeness(held, data.calibration.labels, features, labels)
    found = f"{size} features on which the head stands"
    if run.passes == 2:
        found += ", of the branch that accepts or rejects"
    module, text = Reduced(), f"{found}, all of them; {_said(full)}"
    if size > MOST_DIMENSIONS:
        directions = main_directions(features, MOST_DIMENSIONS)
        smaller, smaller_held = unit(features @ directions), unit(held @ directions)
        kept = likeness(smaller_held, data.calibration.labels, smaller, labels)
        against = f"{_said(kept)}; by all {size} {full.nearest.mean():.1%} and {full.pairs:.1%}"
        if full.lost(kept) <= MOST_LOST:
            module, features, held = Reduced(directions), smaller, smaller_held
            text = f"{found}, on their {MOST_DIMENSIONS} main directions (PCA of the training features); {against}"
        else:
            text = f"{found}, all of them: {MOST_DIMENSIONS} main directions would lose too much ({against})"
    return Embedded(module, {"dimensions": features.shape[1], "made_from": text}, features, index, held)


def looked_at(labels: Ints) -> Ints:
    """Indices of at most MOST_PER_CLASS images of each class, evenly over their order, ascending."""
    found = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        found.append(members[np.linspace(0, len(members) - 1, min(len(members), MOST_PER_CLASS)).round().astype(int)])
    return np.sort(np.concatenate(found))


def main_directions(features: Floats, count: int) -> Floats:
    """[F, count] orthonormal: the directions of the largest second moments of `features` [N, F]."""
    moments = features.T.astype(np.float64) @ features.astype(np.float64) / len(features)
    return np.ascontiguousarray(np.linalg.eigh(moments)[1][:, ::-1][:, :count].astype(np.float32))


def likeness(queries: Floats, truth: Ints, known: Floats, labels: Ints) -> Likeness:
    """Of `queries` [Q, D] against `known` [K, D], both of length 1; of many of either a sample, the same each time."""
    from sklearn.metrics import roc_auc_score  # takes as long to import as torch

    random = np.random.default_rng(0)
    some, others = (random.permutation(len(a))[:most] for a, most in ((queries, QUERIES), (known, NEIGHBOURS)))
    cosines = queries[some] @ known[others].T
    same = truth[some][:, None] == labels[others][None]
    nearest = same[np.arange(len(some)), cosines.argmax(axis=1)]
    mixed = same.any() and not same.all()
    return Likeness(nearest, float(roc_auc_score(same.ravel(), cosines.ravel())) if mixed else 1.0)


def unit(rows: Floats) -> Floats:
    """Rows of length 1; a row of zeros stays."""
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), np.float32)


def _features(run: Run, images: Images, index: Ints, device: torch.device) -> Floats:
    """Features of length 1 [n, F] of some images, few of them in memory at a time."""
    parts = []
    for start in range(0, len(index), BATCH_IMAGES):
        some = index[start : start + BATCH_IMAGES]
        parts.append(embed(run.scoring, images[some, :1] if images.ndim == 3 else images[some], device))
    return unit(np.concatenate(parts))


def _said(found: Likeness) -> str:
    return (
        f"of {len(found.nearest)} calibration images {found.nearest.mean():.1%} have a nearest training image of their "
        f"own class, and the cosine tells pairs of one class from others with AUROC {found.pairs:.1%}"
    )
