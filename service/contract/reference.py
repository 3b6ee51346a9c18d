"""What p-values and thresholds are read from: the calibration scores of a group of classes, or of all images.

A p-value is the share of calibration images at least as outlying as an image, the image itself counted among them. A
threshold is the largest score whose p-value is above 1 - level. As both come from the same numbers, an image is refused
at `id95` exactly when its p-value is at most .05.
"""

import math
from bisect import bisect_left

from pydantic import BaseModel, ConfigDict, Field, model_validator

ALL = "all"  # the reference of the one threshold for all images
ByGroup = dict[str, float | None]  # by the name of a group; None: no image of that group was measured
RESERVED_GROUPS = frozenset({"", ALL, "none", "outlier", "outliers"})  # have another meaning in metrics and quantiles


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ClassGroup(Frozen):
    """Classes with similar numbers of training images, counted before calibration images were set aside."""

    name: str
    least_images: int = Field(ge=0)  # of its rarest class
    most_images: int = Field(ge=0)  # of its most frequent class

    @model_validator(mode="after")
    def _valid(self) -> "ClassGroup":
        if self.name in RESERVED_GROUPS:
            raise ValueError(f"a group cannot be called {self.name!r}: choose another name")
        if self.least_images > self.most_images:
            raise ValueError(f"group {self.name!r} has bounds {self.least_images} to {self.most_images}: exchange them")
        return self


class Reference(Frozen):
    """The p-value as a step function of the deciding score.

    p_values[k] belongs to scores s with scores[k-1] < s <= scores[k]; the last one to scores above all. Where only some
    of many calibration scores are kept, each step has the p-value of its lower end, so none is too small.
    """

    images: int = Field(ge=0)  # calibration images predicted in the group
    borrowed: int = Field(ge=0)  # images of the nearest groups, which stand above the group's own where these are few
    scores: tuple[float, ...] = Field(min_length=1)  # strictly ascending
    p_values: tuple[float, ...]  # one more than scores, descending, in (0, 1]

    @model_validator(mode="after")
    def _steps(self) -> "Reference":
        if any(a >= b for a, b in zip(self.scores, self.scores[1:], strict=False)):
            raise ValueError("the scores of a reference must be strictly ascending")
        if len(self.p_values) != len(self.scores) + 1:
            raise ValueError(
                f"{len(self.scores)} scores need {len(self.scores) + 1} p-values, not {len(self.p_values)}"
            )
        if any(a < b for a, b in zip(self.p_values, self.p_values[1:], strict=False)):
            raise ValueError("the p-values of a reference must be descending")
        if not 0 < self.p_values[-1] <= self.p_values[0] <= 1:
            raise ValueError("the p-values of a reference must be above 0 and at most 1")
        return self

    def p_value(self, score: float) -> float:
        """That of one score. One that is not a number counts as larger than all."""
        return self.p_values[-1 if math.isnan(score) else bisect_left(self.scores, score)]

    def threshold(self, level: float) -> float:
        """The largest score accepted at `level`: above it, and only there, the p-value is at most 1 - level.

        Raises ValueError when there are too few images for any p-value that small.
        """
        refused = false_alarms(level)
        for k, p in enumerate(self.p_values[1:]):
            if p <= refused:
                return self.scores[k]
        raise ValueError(
            f"{self.images + self.borrowed} calibration images give no p-value below {self.p_values[-1]:.3g}: "
            f"they cannot support a level of {level:g}"
        )


def false_alarms(level: float) -> float:
    """The share of in-distribution images that a level allows to be refused: .05 at .95, without rounding errors."""
    return round(1 - level, 9)
