"""Images that must share a side of every split: near duplicates (bursts, frames of one video), or given groups.

`--group-by` near | none | folder | column:NAME | pattern:REGEX

Near duplicates are looked for within a class: two images are linked where their colours and their layout agree, and
what is linked, directly or over others, is one group. On photographs of groceries taken in bursts a nearest neighbour
across a random split is of the same class in 78% of cases, across a split by these groups in 37%, and on photographs of
other visits in 32% (by thumbnails and colour histograms; 10 splits). The bounds were chosen on these photographs.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from training.data.listing import Listing, some
from training.data.readers import DataError, Keys, Labels, Pixels
from training.data.splits import FEWEST_IMAGES
from training.data.thumbnails import Vectors, thumbnails
from training.layout import several

# (least cosine of colours, least cosine of thumbnails). A group above MOST_OF_A_CLASS is linked anew by the next pair:
# where all images look alike (microscopes, scans) the looser bounds would link everything.
LEVELS = (
    (0.88, 0.50), (0.90, 0.50), (0.91, 0.55), (0.92, 0.60), (0.93, 0.65), (0.94, 0.70), (0.95, 0.80), (0.98, 0.95),
    (0.985, 0.985),
)  # fmt: skip
MOST_OF_A_CLASS = 0.5
BINS = 8  # of each colour channel
BLOCK_IMAGES = 2048
Groups = NDArray[np.int64]  # [N]: a number for each image's group


@dataclass(frozen=True)
class Grouped:
    """int64 [N] group of each image, how they were found, and a sentence about it."""

    groups: Groups
    by: str

    def note(self) -> str:
        sizes = np.bincount(self.groups)
        shared = sizes[sizes > 1]
        if not len(shared):
            return f"grouped by {self.by}: every image stands alone"
        number = several(len(shared), "group")
        return (
            f"grouped by {self.by}: {shared.sum()} of {len(self.groups)} images are in {number} of up to "
            f"{sizes.max()}, which no split parts"
        )


def group(listing: Listing, by: str, keys: Keys, small: Pixels) -> Grouped:
    """The groups of a listing's images by `--group-by`; images with equal `keys` are always together.

    `small` uint8 [N, S, S, 3] are what near duplicates are found in. DataError for a rule that does not fit the data.
    """
    n = len(listing.paths)
    if by == "near":
        return Grouped(_joined(n, [*_near_links(listing.labels, small), _equal(keys)]), "near duplicates")
    if by == "none":
        return Grouped(_joined(n, [_equal(keys)]), "equal content alone")
    alone = [name or f"\0{i}" for i, name in enumerate(_names(listing, by))]  # without a group it stands alone
    return Grouped(_joined(n, [_equal(np.unique(np.array(alone), return_inverse=True)[1]), _equal(keys)]), by)


def _names(listing: Listing, by: str) -> list[str]:
    """The group of each image by a rule that a person gave, "" for none."""
    kind, _, argument = by.partition(":")
    if kind == "folder" and not argument:
        return _folders(listing.paths)
    if kind == "column" and argument:
        if argument not in listing.columns:
            known = ", ".join(sorted(listing.columns)) or "none"
            raise DataError(f"--group-by {by}: the data have no column {argument!r}; columns are {known}")
        return listing.columns[argument]
    if kind == "pattern" and argument:
        return [_match(argument, path) for path in listing.paths]
    raise DataError(f"--group-by {by}: use near, none, folder, column:NAME or pattern:REGEX")


def parted_notes(parts: Mapping[str, Listing], by: str) -> list[str]:
    """Sentences about groups that the given parts part: a visit in train and in test. Near duplicates are told apart
    from these, by how they look."""
    if by in ("near", "none"):
        return []
    names = {part: set(_names(listing, by)) - {""} for part, listing in parts.items()}
    said = []
    for part, harm in (("val", "thresholds are too tight"), ("test", "figures are better than the truth")):
        if both := sorted(names["train"] & names.get(part, set())):
            count = several(len(both), "group")
            said.append(f"{count} of {by} in train and in {part} ({some(both)}), so {harm}: leave each in one part")
    return said


def units(groups: Groups, keys: Keys) -> Keys:
    """One key for each image's group, of its contents alone: what splits.held_back takes.

    A hash of the smallest key in the group: uniform whatever the group's size, and the same under any names and order.
    """
    smallest = np.full(groups.max(initial=-1) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, groups, keys)
    hashed = [
        int.from_bytes(hashlib.blake2b(key.to_bytes(8, "big"), digest_size=8).digest(), "big")
        for key in smallest.tolist()
    ]
    return np.array(hashed, np.uint64)[groups]


def _folders(paths: Sequence[str]) -> list[str]:
    """The folder of each path, however it is spelled: a/x.jpg, ./a/y.jpg and links lead to one folder."""
    spelled = [os.path.dirname(path) for path in paths]
    real = {folder: os.path.realpath(folder) for folder in set(spelled)}
    return [real[folder] for folder in spelled]


def _match(pattern: str, path: str) -> str:
    try:
        found = re.search(pattern, path)
    except re.error as error:
        raise DataError(f"--group-by pattern:{pattern} is no regular expression ({error})") from error
    if found is None:
        return ""
    return "\0".join(part or "" for part in found.groups()) or found.group()


# ---- Near duplicates ----

Links = tuple[NDArray[np.int64], NDArray[np.int64]]  # pairs of images


def colours(pixels: Pixels) -> Vectors:
    """[N, BINS³]: square roots of colour histograms, so that a product of rows is their Bhattacharyya coefficient."""
    out = np.empty((len(pixels), BINS**3), np.float32)
    weights = np.array([BINS * BINS, BINS, 1])
    for i, image in enumerate(pixels):
        cells = (image // (256 // BINS)).reshape(-1, 3) @ weights
        out[i] = np.sqrt(np.bincount(cells, minlength=BINS**3) / len(cells))
    return out


def _near_links(labels: Labels, small: Pixels) -> Iterator[Links]:
    """Links within each class by the loosest of LEVELS that leaves no group above MOST_OF_A_CLASS of it."""
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        most = max(MOST_OF_A_CLASS * len(members), FEWEST_IMAGES - 1)
        vectors = colours(small[members]), thumbnails(small[members])
        waiting = [np.arange(len(members))]  # of these images, which have yet to be linked, level by level
        for bounds in LEVELS:
            too_large = []
            for rows in waiting:
                first, second = _pairs(vectors[0][rows], vectors[1][rows], *bounds)
                groups = _joined(len(rows), [(first, second)])
                large = (np.bincount(groups) > most)[groups] if bounds != LEVELS[-1] else np.zeros(len(rows), bool)
                kept = ~large[first]
                yield members[rows[first[kept]]], members[rows[second[kept]]]
                too_large += [rows[groups == number] for number in np.unique(groups[large])]
            waiting = too_large


def _pairs(one: Vectors, two: Vectors, least_one: float, least_two: float) -> Links:
    """Pairs (i < j) of images alike in both."""
    firsts, seconds = [], []
    for start in range(0, len(one), BLOCK_IMAGES):
        for other in range(start, len(one), BLOCK_IMAGES):
            a, b = slice(start, start + BLOCK_IMAGES), slice(other, other + BLOCK_IMAGES)
            alike = (one[a] @ one[b].T > least_one) & (two[a] @ two[b].T > least_two)
            i, j = np.nonzero(alike)
            ahead = start + i < other + j
            firsts.append(start + i[ahead])
            seconds.append(other + j[ahead])
    return np.concatenate(firsts), np.concatenate(seconds)


def _equal(values: NDArray[np.int64] | Keys) -> Links:
    """Links between images with equal values: each to the next."""
    order = np.argsort(values, kind="stable")
    same = np.flatnonzero(values[order][1:] == values[order][:-1])
    return order[same], order[same + 1]


def _joined(n: int, links: Iterable[Links]) -> Groups:
    """int64 [n]: the connected components of the links."""
    pairs = list(links)
    first = np.concatenate([p for p, _ in pairs]) if pairs else np.empty(0, np.int64)
    second = np.concatenate([p for _, p in pairs]) if pairs else np.empty(0, np.int64)
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)
