"""Why an image is refused: unknown, unsure or unfit. What a manifest says of it, and the naming of one refusal.

    unknown    like nothing in training: a score of its distance from what was learnt lies beyond the threshold
    unsure     known, but between classes: only the doubt about the class does, or both lie within the threshold of the
               default operating point, and a stricter one refuses the image
    unfit      the picture itself allows no answer: dark, blank, blurred or too small

The deciding score is the larger of two standardised parts, so one threshold, one p-value and one promise hold for both
(selective classification with outliers: Xia & Bouganis 2022; Narasimhan et al. 2024). A picture is unfit by its pixels,
whatever its score, and the images that thresholds are calibrated on count as refused where they are unfit: so what an
operating point promises holds for all three together.
"""

import math
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from service.contract.reference import Frozen

QUALITY = "quality"  # the graph's output, float32 [N, 3]: MEASURES of the pixels it was given
MEASURES = ("brightness", "contrast", "sharpness")
MOST_AWAY = 1e-3  # float32 of the graph, float64 here
LEAST_DOUBT = 1e-4  # of 1 - p: below it the rounding of p, 6e-8, would show in the log-odds

Reason = Literal["unknown", "unsure", "unfit"]
Unfit = Literal["small", "dark", "blank", "blurred"]
REASONS: tuple[Reason, ...] = get_args(Reason)


class Part(Frozen):
    """A score made comparable with the other one: (score - at) / scale. Both parts have the same value where `share` of
    the images that the thresholds are calibrated on are beyond it."""

    at: float
    scale: float = Field(gt=0)
    share: float = Field(gt=0, lt=1)

    def value(self, score: float) -> float:
        """The standardised score; NaN stays NaN."""
        return (score - self.at) / self.scale


class Limits(Frozen):
    """The least that a picture must have; the grey picture of the model's input has values from 0 to 1."""

    brightness: float = Field(ge=0)  # its mean
    contrast: float = Field(ge=0)  # its standard deviation
    sharpness: float = Field(ge=0)  # the variance of its Laplacian
    side_px: int = Field(ge=1)  # the shorter side of the upload
    images: int = Field(ge=1)  # training images whose pixels they come from
    chosen: str  # by which rule: a sentence

    def broken(self, quality: NDArray[np.float32], side_px: int) -> Unfit | None:
        """The first limit that a picture falls below, by its MEASURES [3] and the upload's shorter side."""
        if side_px < self.side_px:
            return "small"
        brightness, contrast, sharpness = quality.tolist()
        if brightness < self.brightness:
            return "dark"
        if contrast < self.contrast:
            return "blank"
        return "blurred" if sharpness < self.sharpness else None


class Shares(Frozen):
    """Of how many images, and the share refused for each reason."""

    images: int = Field(ge=0)
    unknown: float
    unsure: float
    unfit: float


class Told(Frozen):
    """Shares of in-distribution images: of all, by the group of the true class, by that of the predicted one."""

    all: Shares
    by_group: dict[str, Shares]
    by_predicted_group: dict[str, Shares]


class MeasuredReasons(Frozen):
    """At the default operating point, with the bundle's own threshold scope."""

    calibration: Told
    test: Told | None
    outliers: dict[str, Shares]  # the held-back training outliers, and each OOD set


class Reasons(Frozen):
    """How the refusals of a bundle are told apart. The deciding score is the larger of the two parts."""

    unknown_score: str  # one of the graph's, larger = less like training
    unknown: Part
    unsure: Part  # of `doubt`
    limits: Limits
    measured: MeasuredReasons
    levels: str  # of which images the parts were fitted, and the split of the refusals: a sentence

    def check(self, manifest: Any) -> None:
        """ValueError where `manifest`, a Manifest, has not the scores, or its golden examples have another deciding
        score than the larger of the two parts."""
        if self.unknown_score not in manifest.scores or self.unknown_score == manifest.deciding_score:
            raise ValueError(f"reasons.unknown_score {self.unknown_score!r} is none of the other scores of the graph")
        for example in manifest.golden:
            given = example.scores[manifest.deciding_score]
            unknown = example.scores[self.unknown_score]
            made, away = self.parts(unknown, max(example.probabilities)), MOST_AWAY * max(1.0, abs(given))
            # a bundle that learned alone keeps the score of a known class, whose probability new ones have lowered
            if not self.unknown.value(unknown) - away <= given <= made + away:
                raise ValueError(
                    f"reasons give golden example {example.file!r} the deciding score {made:.6g}, the graph {given:.6g}"
                )

    def name(self, score: float, limit: float, unknown: float, best: float) -> Reason:
        """Why an image with fit pixels is refused: from its deciding score, its score of what is unknown and its
        largest probability. A part that is no number says unknown.

        `limit` is that of the operating point, or of the bundle's default point where that is larger. A stricter
        point, of costs say, refuses images within it: what was learnt looks so too, so they are unsure, not unknown.
        """
        if score <= limit:
            return "unsure"
        one, other = self.unknown.value(unknown), self.unsure.value(doubt(best))
        # above the limit, or at least not below the other: in float32 the two may fall on either side of the limit
        return "unsure" if one <= limit and one < other and not math.isnan(score) else "unknown"

    def parts(self, unknown: float, best: float) -> float:
        """The deciding score, from the two that it is made of."""
        return max(self.unknown.value(unknown), self.unsure.value(doubt(best)))


def doubt(best: float) -> float:
    """Log-odds that the class is another than the most probable one, whose probability is `best`. It ranks as 1 -
    max softmax does (Hendrycks & Gimpel 2017), without an end at 1."""
    return math.log(max(1 - best, LEAST_DOUBT)) - math.log(max(best, LEAST_DOUBT))
