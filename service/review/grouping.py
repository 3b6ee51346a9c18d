"""Groups of images that look alike: which group a new image joins, and which old group a new one continues.

Embeddings are unit-norm, so likeness is their dot product; a distance here is 1 - cosine, from 0 (the same) to 2.
Only numpy; clusters come from clustering.py, in a process of its own.
"""

import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
RADIUS_QUANTILE = 0.75  # a new image joins a group when it lies no further from the middle than 3 of 4 of the members
LEAST_SHARE = 0.5  # of an old group that must lie in a new one for the new one to continue it


class Centres(NamedTuple):
    """The middle of each group, unit-norm float32 [G, D], and how far from it its members reach, float32 [G]."""

    place: dict[str, int]  # of each group's id in the arrays
    middle: Floats
    radius: Floats


def new_id() -> str:
    """Of a group that continues no other."""
    return f"g{secrets.token_hex(6)}"


def middle(embedding: Floats) -> Floats:
    """The unit-norm mean of float32 [N, D]: [D]."""
    mean = embedding.mean(axis=0)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12), np.float32)


def centres(members: Mapping[str, Floats]) -> Centres:
    """Of each group with its members' embeddings [n, D]."""
    middles = [middle(embedding) for embedding in members.values()]
    distances = [1 - embedding @ m for embedding, m in zip(members.values(), middles, strict=True)]
    return Centres(
        {name: place for place, name in enumerate(members)},
        np.stack(middles) if middles else np.empty((0, 0), np.float32),
        np.array([np.quantile(d, RADIUS_QUANTILE) for d in distances], np.float32),
    )


def assign(embedding: Floats, known: Centres) -> list[str | None]:
    """For each of float32 [N, D] the id of the nearest group, when it lies within that group's radius; else None."""
    names = list(known.place)
    if not names or not len(embedding):
        return [None] * len(embedding)
    distance = 1 - embedding @ known.middle.T
    nearest = distance.argmin(axis=1)
    within = distance[np.arange(len(embedding)), nearest] <= known.radius[nearest]
    return [names[g] if near else None for g, near in zip(nearest.tolist(), within.tolist(), strict=True)]


def continued(cluster: Sequence[int], before: Sequence[str | None], taken: Iterable[str] = ()) -> list[str | None]:
    """The group of each image after a new grouping: ids of groups that mostly stay together live on.

    `cluster`: the new cluster of each image, -1 for an image that is alone (and gets None). `before`: its group until
    now, or None. A cluster takes the id of an old group when at least half of that group lies in it; of several such
    groups the largest part decides; an id goes to one cluster only, and none of `taken` to any.
    """
    sizes = Counter(group for group in before if group is not None)
    shared: Counter[tuple[int, str]] = Counter(
        (c, group) for c, group in zip(cluster, before, strict=True) if c >= 0 and group is not None
    )
    names: dict[int, str] = {}
    used = set(taken)
    for (c, group), count in sorted(shared.items(), key=lambda item: (-item[1], item[0])):
        if c not in names and group not in used and count >= LEAST_SHARE * sizes[group]:
            names[c] = group
            used.add(group)
    for c in cluster:
        if c >= 0 and c not in names:
            names[c] = new_id()
    return [names[c] if c >= 0 else None for c in cluster]


def alike_first(size: int, spread: float) -> float:
    """What groups are ordered by, largest first: how many images, each counted by its likeness to the middle."""
    return size * max(0.0, 1 - spread)
