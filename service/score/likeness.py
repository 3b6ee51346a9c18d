"""The columns of what an image resembles: the nearest training examples, and the embedding itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.contract.bundle import Manifest
from service.inference.neighbours import MOST_NEIGHBOURS, Neighbours
from service.inference.wanted import NOTHING, Wanted
from service.score.errors import ScoreError

DECIMALS = 6  # of the embedding: what a float32 of length 1 is exact to


class Likeness(NamedTuple):
    """`neighbours` columns in pairs, label and distance (1 - cosine), nearest first; the embedding as a list."""

    neighbours: int = 0
    embedding: bool = False
    known: Neighbours | None = None

    @property
    def wanted(self) -> Wanted:
        """Of the graph."""
        return Wanted(embedding=True) if self.neighbours or self.embedding else NOTHING

    def columns(self) -> dict[str, Literal["string", "float32", "vector"]]:
        """Their names and types."""
        found: dict[str, Literal["string", "float32", "vector"]] = {}
        for i in range(1, self.neighbours + 1):
            found |= {f"neighbour_{i}": "string", f"neighbour_{i}_distance": "float32"}
        if self.embedding:
            found["embedding"] = "vector"
        return found

    def values(
        self, manifest: Manifest, embedding: NDArray[np.float32] | None
    ) -> Iterator[str | float | list[float] | None]:
        """Of one image, in the order of the columns; None of an embedding that has no direction or is not finite."""
        if embedding is None:
            return
        if self.neighbours and self.known is not None:
            found = self.known.near(embedding, self.neighbours)
            for near in found:
                yield manifest.classes[near.class_index].name
                yield near.distance
            yield from [None, None] * (self.neighbours - len(found))
        if self.embedding:
            finite = np.isfinite(embedding).all()
            yield [round(value, DECIMALS) for value in embedding.tolist()] if finite else None


NO_LIKENESS = Likeness()


def likeness(folder: Path, manifest: Manifest, neighbours: int, embedding: bool) -> Likeness:
    """What `--neighbours` and `--embedding` ask for. Raises ScoreError for what the bundle has not got."""
    if embedding and manifest.embedding is None:
        raise ScoreError(f"--embedding: {folder} gives none: export the model again, or leave --embedding out")
    if not neighbours:
        return Likeness(embedding=embedding)
    if manifest.exemplars is None:
        raise ScoreError(
            f"--neighbours {neighbours}: {folder} holds no training examples: export it again, or leave it out"
        )
    if neighbours > (most := min(MOST_NEIGHBOURS, manifest.exemplars.count)):
        raise ScoreError(f"--neighbours {neighbours}: of the examples of {folder} 1 to {most} can be named")
    return Likeness(neighbours, embedding, Neighbours(folder, manifest))
