"""Images that occur more than once: exactly, by their pixels, and nearly, by 8 x 8 thumbnails.

Thumbnails are compared by their normalised correlation (Torralba, Fergus and Freeman, "80 million tiny images", PAMI
2008). The result is a list of candidates: two different rod-shaped plankton in one pose may have the same thumbnail,
and a crop, a mirror image or a rotation is not found. Look at the examples before you remove anything.
"""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from service.contract.progress import Progress
from training.data.readers import Labels, Pixels
from training.data.thumbnails import Vectors, thumbnails, unit

NEAR_COSINE = 0.985  # of thumbnails; on CIFAR-10-LT every pair above it is the same photograph
SAME_COSINE = 0.95  # of the whole images: what tells a copy from a look-alike where shapes are few
SAVED_ANEW_COSINE = 0.99  # of whole images: a photograph at another quality or size; those of a burst have less
BLOCK_IMAGES = 512


@dataclass(frozen=True)
class ImagePart:
    """Images of one part of a data set: uint8 [N, S, S, 3], the labels [N] where there are any, a name for each."""

    name: str
    pixels: Pixels
    names: list[str]
    labels: Labels | None = None

    @cached_property
    def thumbnails(self) -> Vectors:
        return thumbnails(self.pixels)


@dataclass(frozen=True)
class Near:
    """An image of the second part and its nearest in the first: their places, and both cosines in [-1, 1]."""

    first: int
    second: int
    thumbnail_cosine: float
    full_cosine: float


def exact(parts: list[ImagePart]) -> list[list[tuple[int, int]]]:
    """Groups of two or more images with the same pixels, each image as (part, index), in the order of the parts."""
    places: dict[bytes, list[tuple[int, int]]] = defaultdict(list)
    for p, part in enumerate(parts):
        for i, image in enumerate(part.pixels):
            places[hashlib.blake2b(image.tobytes(), digest_size=16).digest()].append((p, i))
    return [group for group in places.values() if len(group) > 1]


def flat(vectors: Vectors) -> NDArray[np.bool_]:
    """bool [N]: which thumbnails are those of images of one colour."""
    return np.asarray(~vectors.any(axis=1))


def near(first: ImagePart, second: ImagePart) -> list[Near]:
    """For each image of `second` its nearest in `first`, where the thumbnails' cosine is above NEAR_COSINE.

    Pairs with equal pixels are left out (they are `exact`'s). The surest pairs, by the whole images, come first.
    """
    if not len(first.pixels) or not len(second.pixels):
        return []
    known, wanted = first.thumbnails, second.thumbnails
    found: list[Near] = []
    starts = range(0, len(wanted), BLOCK_IMAGES)
    for start in Progress(starts, desc=f"{first.name} against {second.name}", unit="block", leave=False, delay=1):
        cosines = wanted[start : start + BLOCK_IMAGES] @ known.T
        best = cosines.argmax(axis=1)
        values = np.take_along_axis(cosines, best[:, None], axis=1)[:, 0]
        for row in np.flatnonzero(values > NEAR_COSINE):
            i, j = int(best[row]), start + int(row)
            if not np.array_equal(first.pixels[i], second.pixels[j]):
                whole = _full_cosine(first.pixels[i], second.pixels[j])
                found.append(Near(i, j, float(values[row]), whole))
    return sorted(found, key=lambda pair: -pair.full_cosine)


def of_two_classes(part: ImagePart) -> list[Near]:
    """Images of one part that are one of another class once more, saved anew; each pair of places once, the surest
    first. Of an image that is there several times one pair is enough: it is compared with those behind it."""
    assert part.labels is not None
    known, found = part.thumbnails, list[Near]()
    starts = range(0, len(known), BLOCK_IMAGES)
    for start in Progress(starts, desc="classes against each other", unit="block", leave=False, delay=1):
        rows = slice(start, start + BLOCK_IMAGES)
        cosines = known[rows] @ known[start:].T
        cosines[part.labels[rows, None] == part.labels[None, start:]] = -1.0
        best = cosines.argmax(axis=1)
        values = np.take_along_axis(cosines, best[:, None], axis=1)[:, 0]
        for row in np.flatnonzero(values > NEAR_COSINE).tolist():
            i, j = sorted((start + row, start + int(best[row])))
            whole = _full_cosine(part.pixels[i], part.pixels[j])
            if whole > SAVED_ANEW_COSINE:
                found.append(Near(i, j, float(values[row]), whole))
    once = {(pair.first, pair.second): pair for pair in found}
    return sorted(once.values(), key=lambda pair: -pair.full_cosine)


def two_classes_note(part: ImagePart, pairs: list[Near]) -> list[str]:
    """A sentence for a person about `of_two_classes`; none of no pair."""
    if not pairs:
        return []
    first = f"{part.names[pairs[0].first]} and {part.names[pairs[0].second]}"
    return [f"{len(pairs)} pairs of training images of two classes look like one photograph, saved twice ({first}): "
            "that teaches nothing, and one of a pair may judge what was learned from the other; look at them, and "
            "decide on one class"]  # fmt: skip


def _full_cosine(one: Pixels, other: Pixels) -> float:
    both = unit(np.stack([one, other]).reshape(2, -1).astype(np.float32))
    return float(both[0] @ both[1])
