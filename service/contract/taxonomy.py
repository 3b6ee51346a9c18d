"""What can still be said of a refused image: the deepest node of a tree above the classes that can be promised.

    tree = Tree(manifest.taxonomy)
    tree.deepest(probabilities)        # Node(path=("fruit", "citrus"), ...), or None: nothing can be promised

A node's probability is the sum of those of the classes below it. From the deepest level upwards the most probable node
is taken as soon as its probability reaches that level's threshold, which comes from calibration images that resemble
refused ones (calibration/taxonomy.py): of the in-distribution images that are told a node there, at most `error` are
told a wrong one. Of an image of no class at all nothing is promised: it lies below no node.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from service.contract.reference import Frozen

MOST_DEPTH = 32
ROUNDING = 1e-6  # of a sum of float32 probabilities
Path = tuple[str, ...]


class Level(Frozen):
    """One depth of the tree; 1 is that of the nodes below the root. `threshold` None: too few images to promise it."""

    depth: int = Field(ge=1, le=MOST_DEPTH)
    threshold: float | None
    told: int = Field(ge=0)  # uncertain calibration images that are told a node of this depth
    wrong: int = Field(ge=0)  # of them
    measured_told: int = Field(default=0, ge=0)  # refused held-out images that are told one
    measured_wrong: int = Field(default=0, ge=0)


class Told(Frozen):
    """What refused images are told, on held-out images."""

    images: int = Field(ge=0)  # in-distribution
    refused: int = Field(ge=0)  # of them, at the default operating point
    told: int = Field(ge=0)  # refused ones that are told a node
    wrong: int = Field(ge=0)  # of these
    outliers_told: float | None  # share of refused images of no class that are told a node: mean over the OOD sets


class Taxonomy(Frozen):
    """`paths`: for each class the nodes above it, from the root down, without the class; () for one below the root."""

    source: str  # where it is from: nested folders, a column of the list, or a file's name
    paths: tuple[Path, ...]
    error: float = Field(gt=0, lt=1)  # promised at most, of those told a node
    uncertain: int = Field(ge=0)  # calibration images that thresholds rest on: the most outlying ones
    levels: tuple[Level, ...]  # by depth, ascending, without gaps
    measured: Told | None

    @model_validator(mode="after")
    def _levels(self) -> "Taxonomy":
        deepest = max(map(len, self.paths), default=0)
        if [level.depth for level in self.levels] != list(range(1, deepest + 1)) or not deepest:
            raise ValueError(f"levels must be those of the depths 1 to {deepest}, which the paths reach")
        if any(not name.strip() or "/" in name for path in self.paths for name in path):
            raise ValueError("the names of nodes must not be blank and hold no /")
        return self

    def grown(self, names: Sequence[str]) -> "Taxonomy":
        """With more classes at the end, each where its own name says, Fruit/Fig; nothing is measured of it yet."""
        more = [tuple(name.split("/")[:-1])[: len(self.levels)] for name in names]
        return self.model_copy(update={"paths": (*self.paths, *more), "measured": None})

    @property
    def promise(self) -> float:
        """The share of images told a node that are told the right one, at least."""
        return round(1 - self.error, 9)


class Node(NamedTuple):
    """A node that can be promised; `depth` is the length of its path."""

    path: Path
    depth: int
    probability: float

    @property
    def joined(self) -> str:
        """Its path in one text, fruit/citrus: no name holds a /."""
        return "/".join(self.path)


class Nodes:
    """The nodes of one depth: `paths` of K of them, `of_class` int [C] the node above each class, -1 where none is."""

    def __init__(self, paths: Sequence[Path], depth: int) -> None:
        cut = [path[:depth] if len(path) >= depth else () for path in paths]
        self.paths = list(dict.fromkeys(path for path in cut if path))
        place = {path: i for i, path in enumerate(self.paths)}
        self.of_class = np.array([place.get(path, -1) for path in cut], np.int64)
        self._members = self.of_class >= 0
        self._index = self.of_class[self._members]

    def sums(self, probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
        """The probability of each node [K] from those of the classes [C]."""
        members = probabilities[self._members].astype(np.float64)
        return np.asarray(np.bincount(self._index, members, len(self.paths)), np.float64)


class Tree:
    """The tree of a bundle, made once; `deepest` takes some microseconds."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self._levels = [
            (Nodes(taxonomy.paths, level.depth), level.depth, level.threshold)
            for level in reversed(taxonomy.levels)
            if level.threshold is not None
        ]

    def deepest(self, probabilities: NDArray[np.floating]) -> Node | None:
        """The deepest node that can be promised of an image from its probabilities [C]; None where none can."""
        for nodes, depth, threshold in self._levels:
            sums = nodes.sums(probabilities)
            best = int(sums.argmax())
            if sums[best] >= threshold - ROUNDING:  # NaN is not
                return Node(nodes.paths[best], depth, min(float(sums[best]), 1.0))
        return None
