"""How many images are refused as unknown, as unsure and as unfit: what a manifest says under `reasons`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.contract.calibration import calibrate
from service.contract.calibration.groups import Groups
from service.contract.calibration.unfit import Flags
from service.contract.reasons import REASONS
from training.evaluation.fitness import Fitness
from training.evaluation.predict import Outputs
from training.runs.files import Json
from training.scores.either import Either

Codes = NDArray[np.int64]  # [N]: 0 accepted, else 1 + the place in REASONS
OUTLIERS = "training outliers held back"


@dataclass(frozen=True)
class Teller:
    """What is needed to tell why an image is refused, at one operating point and scope."""

    either: Either
    fitness: Fitness
    groups: Groups
    scope: str

    def codes(self, outputs: Outputs, unfit: Flags, point: Json) -> Codes:
        """Of images with these outputs, as service.contract.reasons names them."""
        limit = calibrate.limits(self.groups.of_class[outputs.predictions], point, self.scope)
        score = outputs.scores[self.either.name].astype(np.float64)
        unknown, unsure = self.either.parts(outputs.scores[self.either.unknown], outputs.probabilities)
        unsure_alone = (unknown <= limit) & (unknown < unsure) & ~np.isnan(score)
        named = np.where(unsure_alone, 1 + REASONS.index("unsure"), 1 + REASONS.index("unknown"))
        named = np.where(score <= limit, 0, named)
        return np.where(unfit, 1 + REASONS.index("unfit"), named)

    def told(self, codes: Codes, predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> Json:
        """service.contract.reasons.Told of in-distribution images."""
        of_true, of_predicted = self.groups.of_class[labels], self.groups.of_class[predicted]
        return {
            "all": shares(codes),
            "by_group": {g: shares(codes[of_true == g]) for g in self.groups.names},
            "by_predicted_group": {g: shares(codes[of_predicted == g]) for g in self.groups.names},
        }


def shares(codes: Codes) -> Json:
    """service.contract.reasons.Shares; of no images 0."""
    counts = np.bincount(codes, minlength=1 + len(REASONS))[1:]
    return {"images": len(codes), **dict(zip(REASONS, (counts / max(len(codes), 1)).tolist(), strict=True))}


def mean_shares(rows: Sequence[Json]) -> Json:
    """Of one set of images as several heads see it."""
    return {"images": rows[0]["images"], **{r: float(np.mean([row[r] for row in rows])) for r in REASONS}}


@dataclass
class Found:
    """What is told of sets of images while figures are made, at the operating point `default`; nothing without a
    teller."""

    teller: Teller | None
    default: str
    test: Json | None = None
    outliers: dict[str, Json] = field(default_factory=dict)

    def unfit(self, name: str, outputs: Outputs) -> Flags:
        """Which images of an OOD set are, where its features stand in the place of pixels."""
        flags = self.teller.fitness.ood.get(name) if self.teller else None
        return np.zeros(len(outputs.predictions), bool) if flags is None else flags

    def see_test(self, outputs: Outputs, unfit: Flags, labels: NDArray[np.int64], points: Mapping[str, Json]) -> None:
        """Tell of in-distribution test images."""
        if self.teller:
            self.test = self._told(self.teller, outputs, unfit, labels, points)

    def _told(
        self, teller: Teller, outputs: Outputs, unfit: Flags, labels: NDArray[np.int64], points: Mapping[str, Json]
    ) -> Json:
        return teller.told(teller.codes(outputs, unfit, points[self.default]), outputs.predictions, labels)

    def see(self, name: str, outputs: Outputs | None, unfit: Flags, points: Mapping[str, Json]) -> None:
        """Tell of a set of outliers."""
        if self.teller and outputs is not None:
            self.outliers[name] = shares(self.teller.codes(outputs, unfit, points[self.default]))

    def record(
        self, outputs: Outputs, unfit: Flags, labels: NDArray[np.int64], points: Mapping[str, Json], rests_on: str
    ) -> Json | None:
        """The manifest's `reasons`, from the images that thresholds come from; `rests_on` names these."""
        if self.teller is None:
            return None
        calibration = self._told(self.teller, outputs, unfit, labels, points)
        either = self.teller.either
        share = either.unsure_part.share / either.refused
        return {
            "unknown_score": either.unknown,
            "unknown": either.unknown_part.model_dump(),
            "unsure": either.unsure_part.model_dump(),
            "limits": self.teller.fitness.limits.model_dump(),
            "measured": {"calibration": calibration, "test": self.test, "outliers": self.outliers},
            "levels": (
                f"of the {100 * either.refused:.3g}% of images that may be refused {100 * share:.3g}% for being "
                f"unsure, the rest for being unknown; fitted on {rests_on}"
            ),
        }  # fmt: skip
