"""What a bundle alone learns from: its exemplars, and reviewed images with their embeddings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from service.contract.bundle import Manifest
from service.contract.exemplars import Exemplars
from training.learn.alone.gate import Gate, Taught
from training.learn.alone.graph import Grown, derivable
from training.learn.alone.inherited import OUTLIER, Seen
from training.learn.alone.sides import Sided
from training.learn.sides import TRAIN

Outputs = Mapping[str, NDArray[Any]]  # of a graph, by name


@dataclass(frozen=True)
class Learned:
    """A bundle, its exemplars, and reviewed images with their embeddings `rows` [N, D]."""

    parent: Manifest
    known: Exemplars
    made: Sided
    rows: NDArray[np.float32]

    @property
    def new(self) -> list[str]:
        return self.made.new(self.parent)

    @property
    def counts(self) -> dict[str, int]:
        """New class to images taught."""
        found, side = self.made.found, self.made.side
        return {name: int(((found.labels == name) & (side == TRAIN)).sum()) for name in self.new}

    @property
    def truth(self) -> NDArray[np.int64]:
        """[N]: the class of each reviewed image, the new ones behind those of the bundle."""
        place = {name: i for i, name in enumerate([*(c.name for c in self.parent.classes), *self.new])}
        return np.array([place.get(name, OUTLIER) for name in self.made.found.labels.tolist()], np.int64)

    def taught(self) -> Taught:
        """Exemplars, then reviewed images; outliers are a class of their own behind all others."""
        chosen = self.made.side == TRAIN
        labels = np.where(self.truth == OUTLIER, len(self.parent.classes) + len(self.new), self.truth)[chosen]
        # each exemplar is a unit of its own; no key of a content is that small
        alone = np.arange(len(self.known.class_index), dtype=np.uint64)
        return Taught(
            np.concatenate([self.known.embedding, self.rows[chosen]]),
            np.concatenate([self.known.class_index.astype(np.int64), labels]),
            np.concatenate([alone, self.made.units[chosen]]),
        )

    def seen(self, outputs: Outputs, chosen: NDArray[np.bool_]) -> Seen:
        """What a graph said of some of the reviewed images."""
        scores = {name: outputs[name].astype(np.float64)[chosen] for name in derivable(self.parent)}
        return Seen(outputs["probabilities"].argmax(1)[chosen], scores, self.truth[chosen], self.parent.deciding_score)

    def crossed(self, before: Outputs, fitted: Gate, module: Grown) -> Seen:
        """What the taught images of new classes would get from gates that were fitted without them, `before` being
        what the graph in front says: as good as images that were held back, and none is lost to them."""
        taught = self.made.side == TRAIN
        q = torch.from_numpy(fitted.crossed[len(self.known.class_index) :])
        names = derivable(self.parent)
        given = {name: torch.from_numpy(before[name][taught]) for name in ("probabilities", *names)}
        found, scores = module.answer(given["probabilities"], q, [given[name] for name in names])
        of = {name: score.numpy().astype(np.float64) for name, score in zip(names, scores, strict=True)}
        truth = self.truth[taught]
        seen = Seen(found.numpy().argmax(1), of, truth, self.parent.deciding_score)
        return seen.take(truth >= len(self.parent.classes))
