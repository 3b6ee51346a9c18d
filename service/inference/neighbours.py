"""The training examples that travel with a bundle, read when somebody first asks for them."""

import threading
from collections.abc import Mapping
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.contract import exemplars
from service.contract.bundle import Manifest
from service.contract.exemplars import Exemplars

MOST_NEIGHBOURS = 100  # of one image: nobody looks at more


class Neighbour(NamedTuple):
    """One training example near an image."""

    class_index: int
    exemplar: int  # its place in the bundle's file
    distance: float  # 1 - cosine of the embeddings, from 0 to 2
    thumbnail: str | None  # the name of its picture, where the bundle holds one


class Neighbours:
    """Of one bundle that has exemplars. May be used from several threads."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest
        self._reading = threading.Lock()
        self._known: Exemplars | None = None

    def near(self, embedding: NDArray[np.float32], count: int) -> list[Neighbour]:
        """The `count` examples nearest to an embedding [D], the nearest first. Blocks: of many it takes milliseconds.

        None are near to one that is zero or not finite, which has no direction. Raises BundleError where the file has
        changed since the bundle was loaded.
        """
        known = self._read()
        if not (np.isfinite(embedding).all() and embedding.any()):
            return []
        index, distance = known.nearest(embedding[None], count)
        return [
            Neighbour(int(known.class_index[i]), int(i), float(far), self._names.get(int(i)))
            for i, far in zip(index[0], distance[0], strict=True)
        ]

    def thumbnail(self, name: str) -> bytes | None:
        """The JPEG file of that name; None where there is none."""
        known = self._read()
        place = next((i for i, known_name in self._names.items() if known_name == name), None)
        return None if place is None else known.thumbnails[place]

    @cached_property
    def _names(self) -> Mapping[int, str]:
        """By place: the hash of each picture, so that a name never means another one."""
        pictures = self._read().thumbnails
        return {i: sha256(content).hexdigest()[:32] for i, content in enumerate(pictures) if content}

    def _read(self) -> Exemplars:
        with self._reading:
            if self._known is None:
                self._known = exemplars.read(self._folder, self._manifest)
                assert self._known is not None  # asked only where the manifest names some
            return self._known
