"""How the calibration images turned out, one by one: `calibration.npz` of a bundle, from which costs can be weighed.

    found = outcomes.read(folder, manifest)     # None where the bundle has none

Read as exemplars are (arrays.py): what an array claims of itself is compared with its bytes before it is believed.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.contract import arrays
from service.contract.bundle import BundleError
from service.contract.calibration.calibrate import Weighted
from service.contract.calibration_file import OutcomesFile
from service.contract.manifest import Manifest

FILE = "calibration.npz"
OUTLIER = -1
MOST_BYTES = 256 * 2**20
DTYPES = {"label": "<i4", "predicted": "<i4", "score": "<f4", "weight": "<f4"}


@dataclass(frozen=True)
class Outcomes:
    """Of N calibration images: true class (OUTLIER for one of none), predicted class, deciding score, and how much each
    counts for the expected mix of classes, 1 on average over those of a class."""

    label: NDArray[np.int64]
    predicted: NDArray[np.int64]
    score: NDArray[np.float64]
    weight: NDArray[np.float64]

    @classmethod
    def of(cls, inside: Weighted, outside: Weighted) -> "Outcomes":
        """Of in-distribution images and of outliers, which follow them."""
        assert inside.images.labels is not None
        return cls(
            label=np.append(inside.images.labels, np.full(len(outside.weights), OUTLIER)),
            predicted=np.append(inside.images.predicted, outside.images.predicted),
            score=np.append(inside.images.scores, outside.images.scores),
            weight=np.append(inside.weights, outside.weights),
        )

    @property
    def known(self) -> NDArray[np.bool_]:
        """bool [N]: in-distribution."""
        return np.asarray(self.label != OUTLIER)

    def described(self) -> OutcomesFile:
        known = int(self.known.sum())
        return OutcomesFile(file=FILE, in_distribution_images=known, outlier_images=len(self.label) - known)


def encode(found: Outcomes) -> bytes:
    """The content of the file, the same for the same outcomes."""
    buffer = io.BytesIO()
    columns = {name: np.asarray(getattr(found, name), dtype) for name, dtype in DTYPES.items()}
    np.savez(buffer, allow_pickle=False, **columns)
    return buffer.getvalue()


def decode(content: bytes, classes: int) -> Outcomes:
    """What `encode` wrote. Raises ValueError naming what is wrong with it."""
    columns = arrays.read(content, DTYPES, set(DTYPES), MOST_BYTES)
    shapes = {name: values.shape for name, values in columns.items()}
    if len(set(shapes.values())) != 1 or columns["label"].ndim != 1:
        raise ValueError(f"its columns are {shapes}: they must be one of the same length each")
    label, predicted = columns["label"].astype(np.int64), columns["predicted"].astype(np.int64)
    if not len(label) or not (label != OUTLIER).any():
        raise ValueError("it holds no in-distribution image")
    for name, values, least in (("label", label, OUTLIER), ("predicted", predicted, 0)):
        if values.min() < least or values.max() >= classes:
            raise ValueError(f"{name} runs from {values.min()} to {values.max()}, of {classes} classes")
    score, weight = columns["score"].astype(np.float64), columns["weight"].astype(np.float64)
    if not np.isfinite(score).all() or not np.isfinite(weight).all() or weight.min() < 0:
        raise ValueError("a score or weight is not finite, or a weight is below 0")
    return Outcomes(label, predicted, score, weight)


def read(folder: str | Path, manifest: Manifest) -> Outcomes | None:
    """The outcomes of the bundle in `folder`, whose hashes bundle.read has verified; None where it has none.

    Raises BundleError when the file is not what the manifest says.
    """
    if manifest.outcomes is None:
        return None
    path = Path(folder) / manifest.outcomes.file
    try:
        found = decode(path.read_bytes(), len(manifest.classes))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be used: {error}: export the bundle again") from error
    if (said := found.described()) != manifest.outcomes.model_copy(update={"file": FILE}):
        raise BundleError(
            f"{path} holds {said.in_distribution_images} images and {said.outlier_images} outliers, its manifest says "
            f"{manifest.outcomes.in_distribution_images} and {manifest.outcomes.outlier_images}: export it again"
        )
    return found
