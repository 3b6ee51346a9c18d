"""Groups of classes for decisions, metrics and dashboards, made for any counts: from the head to the tail.

Classes share a group when the most frequent has fewer than FACTOR times the images of the rarest. (The tables of the
papers cut differently: metrics.class_groups.)
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.contract.reference import ClassGroup

FACTOR = 5


@dataclass(frozen=True)
class Groups:
    """`groups` from the most frequent classes to the rarest; `of_class` [C]: the name of each class's group."""

    groups: tuple[ClassGroup, ...]
    of_class: NDArray[np.str_]
    counts: NDArray[np.int64]  # [C] that the groups were made from

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(group.name for group in self.groups)


def group_classes(counts: ArrayLike) -> Groups:
    """The fewest groups, from the training images of each class [C] before calibration images are set aside.

    Taken from the rarest class upwards: a group ends before the first class with FACTOR times the images of its rarest,
    so that the tail, which has the fewest calibration images, gets as many classes as it can. Raises ValueError for
    empty or negative counts.
    """
    given = np.asarray(counts, np.int64)
    if given.ndim != 1 or not len(given) or given.min() < 0:
        raise ValueError(f"counts are {given.tolist()}: give the number of training images of each class")
    cuts: list[tuple[int, int]] = []  # (rarest, most frequent) of each group, the tail first
    for count in np.unique(given).tolist():
        if cuts and count < FACTOR * cuts[-1][0]:
            cuts[-1] = (cuts[-1][0], count)
        else:
            cuts.append((count, count))
    found = tuple(
        ClassGroup(name=name, least_images=least, most_images=most)
        for name, (least, most) in zip(names(len(cuts)), reversed(cuts), strict=True)
    )
    of_class = [next(g.name for g in found if g.least_images <= n <= g.most_images) for n in given]
    return Groups(found, np.array(of_class), given)


def names(groups: int) -> tuple[str, ...]:
    """From the head to the tail."""
    if groups == 1:
        return ("balanced",)
    middle = groups - 2
    return ("head", *(("middle",) if middle == 1 else (f"middle-{i + 1}" for i in range(middle))), "tail")
