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
REQUIRED = {"label": "<i4", "predicted": "<i4", "score": "<f4", "weight": "<f4"}
DTYPES = REQUIRED | {"unfit": "|u1"}  # 0 or 1; bundles of earlier versions do not say it


@dataclass(frozen=True)
class Outcomes:
    """Of N calibration images: true class (OUTLIER for one of none), predicted class, deciding score as thresholds come
    from it, how much each counts for the expected mix of classes, 1 on average over those of a class, and whether it is
    unfit, so that it is refused whatever it scores; None where nobody noted that."""

    label: NDArray[np.int64]
    predicted: NDArray[np.int64]
    score: NDArray[np.float64]
    weight: NDArray[np.float64]
    unfit: NDArray[np.bool_] | None = None

    @classmethod
    def of(cls, inside: Weighted, outside: Weighted, unfit: NDArray[np.bool_]) -> "Outcomes":
        """Of in-distribution images and of outliers, which follow them, here and in `unfit`."""
        assert inside.images.labels is not None
        return cls(
            label=np.append(inside.images.labels, np.full(len(outside.weights), OUTLIER)),
            predicted=np.append(inside.images.predicted, outside.images.predicted),
            score=np.append(inside.images.scores, outside.images.scores),
            weight=np.append(inside.weights, outside.weights),
            unfit=unfit,
        )

    @property
    def known(self) -> NDArray[np.bool_]:
        """bool [N]: in-distribution."""
        return np.asarray(self.label != OUTLIER)

    @property
    def refused_anyway(self) -> NDArray[np.bool_]:
        """bool [N]: refused at any threshold, as far as it was noted."""
        return np.zeros(len(self.label), bool) if self.unfit is None else self.unfit

    def described(self) -> OutcomesFile:
        known = int(self.known.sum())
        return OutcomesFile(file=FILE, in_distribution_images=known, outlier_images=len(self.label) - known)


def encode(found: Outcomes) -> bytes:
    """The content of the file, the same for the same outcomes."""
    buffer = io.BytesIO()
    given = {name: getattr(found, name) for name in DTYPES}
    columns = {name: np.asarray(values, DTYPES[name]) for name, values in given.items() if values is not None}
    np.savez(buffer, allow_pickle=False, **columns)
    return buffer.getvalue()


def decode(content: bytes, classes: int) -> Outcomes:
    """What `encode` wrote. Raises ValueError naming what is wrong with it."""
    columns = arrays.read(content, DTYPES, set(REQUIRED), MOST_BYTES)
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
    if (unfit := columns.get("unfit")) is not None and unfit.astype(np.int64).max() > 1:
        raise ValueError("unfit holds more than 0 and 1")
    return Outcomes(label, predicted, score, weight, None if unfit is None else unfit.astype(bool))


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
