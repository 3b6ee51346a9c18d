"""Training images that travel with a bundle: a few of each class, those that bring the others nearest to one of them.

Of each class images are taken one by one, each time the one that most raises the sum over the class of the cosine to
the nearest taken one (facility location; greedy is within 1 - 1/e of the best, Nemhauser et al. 1978). Rare classes are
taken whole. The nearest of 32 chosen so told the class of test images as well as the nearest of all training images, or
better; random ones, herding and k-centre lost up to 18 points (training/LOG.md).
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.contract import exemplars
from service.contract.embedding import ExemplarFile

if TYPE_CHECKING:  # they load torch, which the command line that names MOST_OF_A_CLASS does without
    from training.data.readers import ImageSet, Pixels
    from training.export.embedding import Embedded, Floats, Ints
    from training.export.graph import Embed

FILE = "exemplars.npz"
MOST_OF_A_CLASS = 32
MOST_BYTES = 4_000_000
THUMBNAIL_PX = 96  # longest side
JPEG_QUALITY = 80
BATCH_IMAGES = 64


def choose(rows: Floats, labels: Ints, most: int) -> Ints:
    """Places in `rows` [N, D], of length 1, of at most `most` images of each class, class after class, the most telling
    first."""
    found = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        found.append(members[_covering(rows[members], min(most, len(members)))])
    return np.concatenate(found)


def of_each_class(classes: int, dimensions: int, wanted: int = MOST_OF_A_CLASS) -> int:
    """How many of those wanted fit into the file, at least one."""
    return max(1, min(wanted, MOST_BYTES // (2 * dimensions * classes)))


def made(
    embed: Embed, train: ImageSet, known: Embedded, truth: Ints, licence: str | None, wanted: int = MOST_OF_A_CLASS
) -> tuple[bytes, ExemplarFile]:
    """(content of the file, what the manifest says of it) from the images `train`.

    Chosen by `known`; their embedding in the file is that of `embed`, the graph that is served. `truth` are the classes
    of the calibration images, by which they are judged. With `licence`, the terms of the pictures, they have thumbnails
    as far as MOST_BYTES allow. `wanted` of each class at most.
    """
    labels = train.labels[known.index]
    most = of_each_class(len(np.unique(labels)), known.rows.shape[1], wanted)
    taken = choose(known.rows, labels, most)
    parts = [train.images[known.index[taken[s : s + BATCH_IMAGES]]] for s in range(0, len(taken), BATCH_IMAGES)]
    served = np.concatenate([embed(pixels) for pixels in parts])
    pictures = thumbnails(parts, labels[taken], MOST_BYTES - 2 * served.size) if licence else []
    content = exemplars.encode(served, labels[taken].tolist(), pictures)
    right = right_by_nearest(known.held, truth, served, labels[taken])
    of_all = right_by_nearest(known.held, truth, known.rows, labels)
    given = sum(map(bool, pictures))
    return content, ExemplarFile(
        file=FILE,
        count=len(taken),
        chosen=(
            f"at most {most} training images of each class, those that bring the others of the class nearest to one of "
            f"them; of {len(truth)} calibration images {right:.1%} are of the class of the nearest one, and "
            f"{of_all:.1%} of that of the nearest among {len(labels)} training images"
        ),
        thumbnails=given,
        thumbnails_licence=licence if given else None,
    )


def right_by_nearest(queries: Floats, truth: Ints, known: Floats, labels: Ints) -> float:
    """Share of `queries` [Q, D] whose nearest row of `known` [K, D] is of their class."""
    parts = [queries[start : start + BATCH_IMAGES] for start in range(0, len(queries), BATCH_IMAGES)]
    found = np.concatenate([labels[(part @ known.T).argmax(axis=1)] for part in parts])
    return float((found == truth).mean())


def thumbnails(parts: list[Pixels], labels: Ints, most_bytes: int) -> list[bytes]:
    """A JPEG of each image, or b"" where the files would take more than `most_bytes`: the first of each class first."""
    files = [jpeg(image) for part in parts for image in part]
    rank = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    order = np.argsort(rank, kind="stable")
    fits = np.cumsum([len(files[i]) for i in order]) <= most_bytes
    for i in order[~fits].tolist():
        files[i] = b""
    return files


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """uint8 [H, W, 3] as JPEG, at most THUMBNAIL_PX on the longest side."""
    picture = Image.fromarray(image)
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _covering(rows: Floats, count: int) -> Ints:
    """`count` places in `rows` [n, D]; each next one most raises the sum of the cosines to the nearest taken one."""
    cosines = rows @ rows.T
    best = np.full(len(rows), -1, np.float32)  # of each row to the nearest taken one
    taken: list[int] = []
    for _ in range(count):
        worth = np.maximum(cosines, best[:, None]).sum(axis=0)
        worth[taken] = -np.inf
        taken.append(int(worth.argmax()))
        best = np.maximum(best, cosines[:, taken[-1]])
    return np.array(taken, np.int64)
