"""Streams of images as the counters see them: Poisson arrivals, by group, score bucket and decision, over windows."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from service.contract.bundle import Manifest
from service.contract.decision import threshold
from service.observe.model_metrics import deciding_bounds
from tests.drift.scores import GROUPS, Scored

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Counts:
    """Images in a window: by predicted group [..., 3], rejected of these, and by bucket of the deciding score [..., B].

    Buckets are not cumulative; the last holds what is beyond all bounds.
    """

    group: Floats
    rejected: Floats
    bucket: Floats

    @property
    def images(self) -> Floats:
        total: Floats = self.group.sum(-1)
        return total


class Cells:
    """All that the metrics tell apart about an image, as one index; a set of images is a distribution over it."""

    def __init__(self, manifest: Manifest, sets: dict[str, Scored]) -> None:
        self.bounds = np.array(deciding_bounds(manifest))
        point = manifest.operating_points[manifest.default_operating_point]
        self.limits = np.array([threshold(point, manifest.threshold_scope, group) for group in GROUPS])
        self._group_of = np.array([GROUPS.index(info.group) for info in manifest.classes])
        found = {name: self._keys(scored) for name, scored in sets.items()}
        self._known = np.unique(np.concatenate(list(found.values())))
        self._index = {name: np.searchsorted(self._known, keys) for name, keys in found.items()}
        self._sets = sets

    def _keys(self, scored: Scored) -> NDArray[np.int64]:
        group = self._group_of[scored.predicted]
        bucket = np.searchsorted(self.bounds, scored.score.astype(np.float64))  # a bucket holds its upper bound
        return (group * (len(self.bounds) + 1) + bucket) * 2 + (scored.score > self.limits[group])

    def shares(self, name: str, class_mix: Floats | None = None) -> Floats:
        """The distribution [cells] of a set; `class_mix` [C] weighs its true classes to these shares."""
        labels, weights = self._sets[name].label, np.ones(len(self._index[name]))
        if class_mix is not None:
            weights = (class_mix / np.bincount(labels, minlength=len(class_mix)))[labels]
        total: Floats = np.bincount(self._index[name], weights, minlength=len(self._known))
        return total / total.sum()

    @cached_property
    def _sums(self) -> NDArray[np.float32]:
        """[cells, 3 + 3 + B]: 1 where a cell counts."""
        rest, rejected = np.divmod(self._known, 2)
        group, bucket = np.divmod(rest, len(self.bounds) + 1)
        in_group = np.eye(len(GROUPS))[group]
        parts = [in_group, in_group * rejected[:, None], np.eye(len(self.bounds) + 1)[bucket]]
        return np.hstack(parts).astype(np.float32)

    def draw(self, random: np.random.Generator, shares: Floats, images: float, steps: tuple[int, ...]) -> Floats:
        """What arrives in each of `steps` intervals with `images` expected in one: [*steps, columns], see `split`."""
        there = shares > 0
        arrived = random.poisson(shares[there] * images, (*steps, int(there.sum()))).astype(np.float32)
        return (arrived @ self._sums[there]).astype(np.float64)

    def expected(self, shares: Floats) -> Floats:
        """The columns of one image drawn from `shares`."""
        return shares @ self._sums.astype(np.float64)

    def split(self, columns: Floats) -> Counts:
        return Counts(*np.split(columns, [len(GROUPS), 2 * len(GROUPS)], axis=-1))


def over_window(columns: Floats, steps: int) -> Floats:
    """Sums over the last `steps` intervals, for each interval that has so many behind it: [..., T − steps + 1, K]."""
    total = np.cumsum(columns, axis=-2)
    first = np.zeros_like(total[..., :1, :])
    total = np.concatenate([first, total], axis=-2)
    return total[..., steps:, :] - total[..., :-steps, :]
