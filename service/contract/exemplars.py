"""Some training images of each class as embeddings, and perhaps thumbnails: `exemplars.npz` of a bundle.

    known = exemplars.read(folder, manifest)               # None where the bundle has none
    index, distance = known.nearest(embedding, 3)          # of each row the three nearest exemplars
    manifest.classes[known.class_index[index[0, 0]]].name  # the class that the first row is nearest to

The file is read by hand (arrays.py), as its bundle may be anybody's.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.contract.arrays import read as read_arrays
from service.contract.bundle import BundleError
from service.contract.manifest import Manifest

MOST_BYTES = 64 * 2**20  # of the arrays
NORM_TOLERANCE = 5e-3  # float16 moves the length of a row by up to .0005
JPEG = b"\xff\xd8\xff"
DTYPES = {"embedding": "<f2", "class_index": "<i4", "thumbnails": "|u1", "thumbnail_ends": "<i8"}
REQUIRED = {"embedding", "class_index"}
ROWS_AT_ONCE = 1024  # of nearest: bounds the matrix of all distances


@dataclass(frozen=True)
class Exemplars:
    """`embedding` float32 [K, D], each row of length 1; `class_index` int32 [K]; `thumbnails` K JPEG files, b"" where
    an exemplar has none, or empty where no exemplar has one."""

    embedding: NDArray[np.float32]
    class_index: NDArray[np.int32]
    thumbnails: tuple[bytes, ...] = ()

    def nearest(self, embedding: NDArray[np.floating], k: int = 1) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(index, distance), both [N, min(k, K)], of the exemplars nearest to each row of `embedding` [N, D].

        The nearest come first, the first of equals before the others. Distance is 1 - cosine, from 0 to 2. Raises
        ValueError for another number of dimensions, for k below 1, and for a row that is zero or not finite.
        """
        if embedding.ndim != 2 or embedding.shape[1] != self.embedding.shape[1]:
            raise ValueError(
                f"an embedding of shape {embedding.shape} was given: these exemplars are [N, {self.embedding.shape[1]}]"
            )
        if k < 1:
            raise ValueError(f"k={k}: ask for one exemplar or more")
        rows = embedding.astype(np.float32)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise ValueError("an embedding has a row that is zero or not finite, which has no direction")
        rows = rows / lengths
        k = min(k, len(self.embedding))
        index = np.empty((len(rows), k), np.int64)
        distance = np.empty((len(rows), k), np.float32)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            apart = np.clip(1 - rows[part] @ self.embedding.T, 0, 2)
            index[part] = np.argsort(apart, axis=1, kind="stable")[:, :k]
            distance[part] = np.take_along_axis(apart, index[part], axis=1)
        return index, distance


def encode(embedding: NDArray[np.floating], class_index: Sequence[int], thumbnails: Sequence[bytes] = ()) -> bytes:
    """The content of the file, the same for the same exemplars. Raises ValueError where `decode` would refuse it."""
    arrays: dict[str, NDArray[np.generic]] = {
        "embedding": np.asarray(embedding, "<f2"), "class_index": np.asarray(class_index, "<i4"),
    }  # fmt: skip
    if any(thumbnails):
        arrays["thumbnails"] = np.frombuffer(b"".join(thumbnails), np.uint8)
        arrays["thumbnail_ends"] = np.cumsum([len(t) for t in thumbnails], dtype="<i8")
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    content = buffer.getvalue()
    decode(content, arrays["embedding"].shape[-1], int(np.max(arrays["class_index"], initial=0)) + 1)
    return content


def decode(content: bytes, dimensions: int, classes: int) -> Exemplars:
    """What `encode` wrote. Raises ValueError naming what is wrong with it."""
    arrays = read_arrays(content, DTYPES, REQUIRED, MOST_BYTES)
    embedding, class_index = arrays["embedding"].astype(np.float32), arrays["class_index"].astype(np.int32)
    if embedding.ndim != 2 or embedding.shape[1] != dimensions or not len(embedding):
        raise ValueError(f"embedding is {list(embedding.shape)}, wanted [1 or more, {dimensions}]")
    if class_index.shape != embedding.shape[:1]:
        raise ValueError(f"class_index is {list(class_index.shape)} beside {len(embedding)} embeddings")
    if not (np.abs(np.linalg.norm(embedding, axis=1) - 1) <= NORM_TOLERANCE).all():  # NaN is not either
        raise ValueError("an embedding is not finite or not of length 1")
    if class_index.min() < 0 or class_index.max() >= classes:
        raise ValueError(f"class_index runs from {class_index.min()} to {class_index.max()}, of {classes} classes")
    return Exemplars(embedding, class_index, _thumbnails(arrays, len(embedding)))


def read(folder: str | Path, manifest: Manifest) -> Exemplars | None:
    """The exemplars of the bundle in `folder`, whose hashes bundle.read has verified; None where it has none.

    Raises BundleError when the file is not what the manifest says.
    """
    given = manifest.exemplars
    if given is None or manifest.embedding is None:
        return None
    path = Path(folder) / given.file
    try:
        found = decode(path.read_bytes(), manifest.embedding.dimensions, len(manifest.classes))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be used: {error}: export the bundle again") from error
    pictures = sum(map(bool, found.thumbnails))
    if (len(found.class_index), pictures) != (given.count, given.thumbnails):
        raise BundleError(
            f"{path} holds {len(found.class_index)} exemplars and {pictures} thumbnails, its manifest says "
            f"{given.count} and {given.thumbnails}: export the bundle again"
        )
    return found


def _thumbnails(arrays: dict[str, NDArray[np.generic]], count: int) -> tuple[bytes, ...]:
    if ("thumbnails" in arrays) != ("thumbnail_ends" in arrays):
        raise ValueError("thumbnails and thumbnail_ends belong together, and one is missing")
    if "thumbnails" not in arrays:
        return ()
    pixels, ends = arrays["thumbnails"].tobytes(), arrays["thumbnail_ends"].ravel().tolist()
    if len(ends) != count or ends != sorted(ends) or ends[0] < 0 or ends[-1] != len(pixels):
        raise ValueError(f"thumbnail_ends do not cut {len(pixels)} bytes into {count} thumbnails")
    cut = tuple(pixels[a:b] for a, b in zip([0, *ends], ends, strict=False))
    if not all(t.startswith(JPEG) for t in cut if t):
        raise ValueError("a thumbnail is no JPEG file")
    return cut
