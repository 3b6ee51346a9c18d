"""Images at the size of a network, made when they are asked for: memory holds what is in use, however many there are.

images = Fitted(paths, keys, target)       # or an array uint8 [N, H, W, 3] in the place of paths
images[64:128]                             # uint8 [64, target.height_px, target.width_px, 3]
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract import images
from service.contract.bundle import Input
from training.data.decode import MAX_PIXELS, read, reason_of, resized
from training.data.readers import DataError, Keys, Pixels


@dataclass(frozen=True)
class Fitted:
    """N image files, or an array of N images, whose content keys are `keys`, each as the service would see it.

    Like an array uint8 [N, H, W, 3] that is only read: by a slice or by indices, from several threads at once where
    that is wanted (decoding and resizing let others work meanwhile). Files that are `checked` must have their keys: of
    what was changed since they were read, hours ago perhaps, features were kept as those of what was there.
    """

    source: Sequence[str] | Pixels
    keys: Keys
    target: Input
    checked: bool = False

    dtype = np.dtype(np.uint8)
    ndim = 4

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.source), self.target.height_px, self.target.width_px, 3

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: slice | NDArray[Any]) -> Pixels:
        """uint8 [n, H, W, 3]. DataError where a file cannot be read (any more)."""
        rows = np.arange(len(self.source))[index]
        if isinstance(self.source, np.ndarray):
            return resized(self.source[rows], self.target)
        pixels = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for place, row in enumerate(rows.tolist()):
            pixels[place] = _decoded(self.source[row], self.target, int(self.keys[row]) if self.checked else None)
        return pixels

    def elsewhere(self) -> "Fitted":
        """These images for a program in another folder or on another machine, which makes sure that they are these."""
        if isinstance(self.source, np.ndarray):
            return replace(self, source=np.asarray(self.source))
        return replace(self, source=[os.path.abspath(path) for path in self.source], checked=True)

    def fingerprint(self) -> str:
        """Changes with the images, their order and how they are brought to size; not with the names of files."""
        digest = hashlib.sha256(self.target.model_dump_json().encode())
        digest.update(np.ascontiguousarray(self.keys).data)
        return digest.hexdigest()


def _decoded(path: str, target: Input, key: int | None) -> Pixels:
    try:
        return images.load(read(path, key), target, max_pixels=MAX_PIXELS).pixels
    except Exception as error:  # decoders raise nearly anything
        raise DataError(f"{path} cannot be read as an image ({reason_of(error)}): mend or remove it") from error
