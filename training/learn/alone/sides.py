"""What becomes of each reviewed image where there is no run: taught, compared on, or left out.

What is taught is calibrated on too, by gates that were fitted without it: so a class needs images of two moments.
"""

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.contract.bundle import Manifest
from service.contract.keys import key_text
from training.data.grouping import group, units
from training.data.listing import Listing
from training.data.readers import Keys
from training.learn.reviewed import Reviewed
from training.learn.sides import CALIBRATION, COMPARED, TRAIN, Sides, of_outliers, split_units

LEAST_MOMENTS, LEAST_COMPARED = 2, 1  # of each new class: bursts that are taught, images that are compared on


@dataclass(frozen=True)
class Sided:
    """N reviewed images: `side` of each, and `units` [N], images of one moment."""

    found: Reviewed
    side: Sides
    units: Keys

    def new(self, manifest: Manifest) -> list[str]:
        """The classes that the bundle lacks."""
        known = {c.name for c in manifest.classes}
        return [name for name in self.found.classes if name not in known]


def sided(found: Reviewed, manifest: Manifest, share: float, where: Path, notes: list[str]) -> Sided:
    """The side of each image; ValueError, with what is missing, where the bundle and these images do not suffice."""
    found = _not_had(found, (manifest.provenance.added or {}).get("trained_keys", ()), notes)
    side, unit = np.full(len(found), "", dtype="<U11"), np.zeros(len(found), np.uint64)
    names = found.classes
    mine = np.flatnonzero(~found.outliers)
    if len(mine):
        own = np.array([names.index(name) for name in found.labels[mine].tolist()], np.int64)
        listing = Listing([found.paths[i] for i in mine], own, tuple(names), {})
        unit[mine] = units(group(listing, "near", found.keys[mine], found.small[mine]).groups, found.keys[mine])
        given = found.given[mine]
        free = split_units(unit[mine], own, given != "", share, 0.0)
        side[mine] = np.where(given == "", free, given)
    outside = np.flatnonzero(found.outliers)
    unit[outside] = found.keys[outside]
    side[outside] = of_outliers(None, found, share, 0.0)[outside]
    made = Sided(found, side, unit)
    side[side == CALIBRATION] = TRAIN
    _require(made, manifest, where, notes)
    return made


def _not_had(found: Reviewed, had: Container[str], notes: list[str]) -> Reviewed:
    kept = np.array([key_text(key) not in had for key in found.keys.tolist()], bool)
    if dropped := int((~kept).sum()):
        notes.append(f"left out {dropped} images that the bundle has learned from already")
    return found.take(kept)


def _require(made: Sided, manifest: Manifest, where: Path, notes: list[str]) -> None:
    new = made.new(manifest)
    if not new:
        said = f" ({'; '.join(notes)})" if notes else ""
        raise ValueError(f"{where} has no image of a new class{said}: a bundle alone learns new classes. More images "
                         "of known ones and outliers move its thresholds (tailguard recalibrate), or teach the run "
                         "that it was exported from (tailguard learn RUN)")  # fmt: skip
    short = []
    for name in new:
        own = made.found.labels == name
        taught, compared = own & (made.side == TRAIN), int((own & (made.side == COMPARED)).sum())
        moments = len(np.unique(made.units[taught]))
        if moments < LEAST_MOMENTS or compared < LEAST_COMPARED:
            short.append(f"{name} has {own.sum()} images, of which {taught.sum()} would be taught, of {moments} "
                         f"moments, and {compared} compared on")  # fmt: skip
    if short:
        raise ValueError(f"{'; '.join(short)}: at least {LEAST_MOMENTS} moments and {LEAST_COMPARED} image are needed, "
                         "and what is of one burst stays together. Label more of it (12 of different moments do), or "
                         "leave it out of --from")  # fmt: skip
