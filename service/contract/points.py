"""Operating points of a manifest: thresholds, and what they cost."""

from typing import Literal

from pydantic import Field

from service.contract.reference import ByGroup, Frozen

Scope = Literal["group", "global"]  # thresholds by the group of the predicted class, or one for all images


class Cost(Frozen):
    """What a set of thresholds costs on named images. Shares in [0, 1]."""

    in_distribution_images: int
    outlier_images: int
    id_rejected: float
    id_rejected_by_group: ByGroup  # group of the true class
    id_rejected_by_predicted_group: ByGroup  # what a live service, which has no labels, can compare with
    # True group → predicted group → (share of the true group's images predicted so, share of those that is rejected):
    # what rejection is to be expected of another mix of groups. None: not noted, by earlier versions
    id_between_groups: dict[str, dict[str, tuple[float, float]]] | None = None
    outliers_caught: float | None  # None: there were no outliers
    outliers_caught_by_predicted_group: ByGroup


class Measured(Frozen):
    """Costs of the one global threshold and of the thresholds by predicted group, on calibration and on test images."""

    calibration: Cost
    test: Cost | None  # outliers: the unweighted mean over the OOD sets


class OperatingPoint(Frozen):
    """Reject when the deciding score is strictly larger than the threshold in force.

    A point with a level keeps that share of in-distribution images, and its thresholds are those of
    `calibration.references` at that level. Format 1, and points made from outliers, have none.
    """

    description: str
    level: float | None = Field(gt=0, lt=1)
    threshold: float
    group_thresholds: dict[str, float]  # by the group of the predicted class
    class_thresholds: dict[str, float] = Field(default={})  # by the name of a predicted class, in place of its group's
    # The share of in-distribution images predicted in a group that are refused at most, whatever the scores of other
    # groups look like: 1 - level with enough calibration images of its own, 1/(n + 1) with n that are fewer.
    group_promises: dict[str, float]
    global_cost: Measured
    group_cost: Measured

    def cost(self, scope: Scope) -> Measured:
        """What the thresholds of `scope` cost, on calibration and on test images."""
        return self.global_cost if scope == "global" else self.group_cost
