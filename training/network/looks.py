"""What a frozen trunk says of some images in each of their views, on one thread of this process or of a worker.

The features of a chunk of images follow from the chunk alone, so that whoever computes it, they are the same.
"""

from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from training.data.crops import cropped
from training.network.session import session

Floats = NDArray[np.float32]
Places = NDArray[np.int64]


class Source(Protocol):
    """N images at the size that the trunk takes. Slices are taken by several threads at once.

    `keys` uint64 [N] are those of their contents, asked for where features are known already.
    """

    @property
    def keys(self) -> NDArray[np.uint64]: ...

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """Changes with the images, their order and how they are brought to size."""
        ...

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        """uint8 [n, H, W, 3] of a slice; where there are `known` features, of places too."""
        ...

    def elsewhere(self) -> "Source":
        """The same images for a worker of a cluster; asked for where there is one."""
        ...


class Chunk(NamedTuple):
    """Images whose features are computed and kept together: `number`, and the `places` that are still wanted."""

    number: int
    places: Places

    @property
    def where(self) -> slice | Places:
        """The places as a slice where they follow on each other."""
        first, last = int(self.places[0]), int(self.places[-1]) + 1
        return slice(first, last) if last - first == len(self.places) else self.places


@dataclass(frozen=True)
class Looks:
    """V `views` of an image: 0 the image, 1 its mirror where `mirror`, then crops drawn from (seed, image, view).

    `graph` is ONNX, images uint8 [N, H, W, 3] → features float32 [N, F].
    """

    graph: bytes
    views: int
    mirror: bool
    seed: int

    @cached_property
    def _session(self) -> Any:
        return session(self.graph)

    def opened(self) -> "Looks":
        """These looks with the graph loaded, before several threads share them."""
        _ = self._session
        return self

    def features(self, images: Source, chunk: Chunk) -> Floats:
        """float32 [n, V, F] of the chunk's places, in their order."""
        pixels = images[chunk.where]
        views = (self.view(pixels, view, chunk.places) for view in range(self.views))
        return np.stack([self._session.run(None, {"images": seen})[0] for seen in views], axis=1)

    def view(self, pixels: NDArray[np.uint8], view: int, places: Places) -> NDArray[np.uint8]:
        """One view of images [n, H, W, 3] that stand at `places` of their set."""
        if view == 0:
            return pixels
        if view == 1 and self.mirror:
            return np.ascontiguousarray(pixels[:, :, ::-1])
        rows = (
            (place, cropped(image, np.random.default_rng([self.seed, place, view])))
            for place, image in zip(places.tolist(), pixels, strict=True)
        )
        return np.stack([row[:, ::-1] if self.mirror and (place + view) % 2 else row for place, row in rows])


class Run(Protocol):
    """Who computes chunks: the threads of this process, or a cluster."""

    def __call__(
        self, looks: Looks, images: Source, chunks: list[Chunk]
    ) -> Generator[tuple[Chunk, Floats], None, None]:
        """Each chunk with its features, as they come; closing it gives up what is under way."""
        ...
