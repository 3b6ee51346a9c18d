"""Which classes does the stream hold now, and which scores does calibration expect of such a mix?

The probabilities of recent accepted images are kept in memory, and EM finds the mix they come from (see
contract/calibration/prior.py). Refused images are left out: they may belong to no class. So a class of which more is
refused than of others is estimated a little too rare.
"""

import time
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.contract.bundle import Cost, Manifest
from service.contract.calibration.prior import stream_shares
from service.contract.reference import ALL

Floats = NDArray[np.float64]

MOST_IMAGES = 4096
MOST_VALUES = 2**20  # probabilities kept: 4 MB, and about a second of EM
LEAST_IMAGES = 200  # before which nothing is estimated
LEAST_S = 10.0  # between two estimates; and never more than a twentieth of the time
TIMES = 20


class ClassMix:
    """`observe` is called from the event loop and takes about a microsecond, `shares` from any thread."""

    def __init__(self, manifest: Manifest) -> None:
        presumed = manifest.calibration.presumed_shares
        self._presumed = None if presumed is None else np.array(presumed)
        classes = len(manifest.classes)
        rows = 0 if presumed is None else max(LEAST_IMAGES, min(MOST_IMAGES, MOST_VALUES // classes))
        self._recent = np.zeros((rows, classes), np.float32)
        self._seen = 0
        self._shares: Floats | None = None
        self._due_s = 0.0

    def observe(self, probabilities: NDArray[np.float32]) -> None:
        """Remember an accepted image in place of the oldest. Does nothing for a bundle that presumes no known mix."""
        if self._presumed is not None:
            self._recent[self._seen % len(self._recent)] = probabilities
            self._seen += 1

    @property
    def known(self) -> Floats | None:
        """The last estimate, as it is."""
        return self._shares

    def shares(self) -> Floats | None:
        """The stream's mix [C]; None while it is not known. Seconds of work at times: not for the event loop."""
        started = time.monotonic()
        if self._presumed is not None and self._seen >= LEAST_IMAGES and started >= self._due_s:
            recent = self._recent[: self._seen].astype(np.float64)
            self._shares = stream_shares(recent, self._presumed)
            self._due_s = time.monotonic() + max(LEAST_S, TIMES * (time.monotonic() - started))
        return self._shares


def expected_cdf(manifest: Manifest, bounds: Sequence[float], shares: Floats | None) -> list[float]:
    """The share of deciding scores at most each of `bounds` that calibration expects of a stream of this mix [C].

    Calibration's own distribution, moved by what each group has more or less of than calibration expected: groups, not
    classes, because the manifest holds the scores of groups. None: of the expected mix.
    """
    calibration = manifest.calibration
    own = [bisect_right(calibration.id_scores, bound) / len(calibration.id_scores) for bound in bounds]
    if shares is None:
        return own
    moved = np.array(own)
    by_group = calibration.quantiles.get(manifest.deciding_score, {})
    for group in manifest.group_names:
        members = [i for i, info in enumerate(manifest.classes) if info.group == group]
        more = float(shares[members].sum()) - sum(calibration.class_shares[i] for i in members)
        values = by_group.get(group, ())
        of_group = np.interp(bounds, values, calibration.quantile_levels, 0, 1) if values else np.array(own)
        moved += more * of_group
    return [float(share) for share in np.maximum.accumulate(np.clip(moved, 0, 1))]


def expected_rejection(manifest: Manifest, cost: Cost, shares: Floats | None) -> dict[str, float]:
    """What share of in-distribution images is refused in a stream of this mix [C]: of all, and by predicted group.

    By Bayes' rule from how images of each true group are predicted and refused at calibration. Of a bundle that does
    not say so, all alone follows, from refusal by true group; the rest, and everything without a mix, is as calibrated.
    """
    by_predicted = {g: cost.id_rejected_by_predicted_group.get(g) for g in manifest.group_names}
    known = {g: cost.id_rejected if share is None else share for g, share in by_predicted.items()}
    if shares is None:
        return {ALL: cost.id_rejected, **known}
    mix = dict.fromkeys(manifest.group_names, 0.0)
    for info, share in zip(manifest.classes, shares.tolist(), strict=True):
        mix[info.group] += share
    rejected = {g: cost.id_rejected if (r := cost.id_rejected_by_group.get(g)) is None else r for g in mix}
    expected = {ALL: sum(mix[g] * rejected[g] for g in mix), **known}
    for group in mix if cost.id_between_groups else ():
        pairs = [(mix[true] * to[group][0], to[group][1])
                 for true, to in (cost.id_between_groups or {}).items() if group in to]  # fmt: skip
        if (images := sum(weight for weight, _ in pairs)) > 0:
            expected[group] = sum(weight * share for weight, share in pairs) / images
    return expected


def expected_images(manifest: Manifest, shares: Floats | None) -> float:
    """How many calibration images of the expected mix tell as much as those behind `expected_cdf` of this one.

    A tail of few calibration images, weighted up, makes the expectation that uncertain: 1 / sum of share² / images
    over the groups, which is all of the images for their own mix, and never more.
    """
    calibration = manifest.calibration
    if shares is None:
        return calibration.in_distribution_images
    spread = 0.0
    for group in manifest.group_names:
        members = [i for i, info in enumerate(manifest.classes) if info.group == group]
        spread += float(shares[members].sum()) ** 2 / max(calibration.images_by_group.get(group, 0), 1)
    return min(float(calibration.in_distribution_images), 1 / spread)
