"""Figures of a model from the ledger's tallies: rejection, and accuracy from feedback, each with its interval.

Rejection counts what the deployment decided at the operating point and scope in force, so that it compares with what
calibration promises for them; images that requests had decided at a point of their own are left out. Accuracy counts
all. Rejection is by predicted class and group, everything from feedback by true class and group. Feedback is a sample
that somebody chose to label: its shares are those of the stream only when the choice was random.
"""

from collections import Counter

from pydantic import BaseModel, Field

from service.contract.bundle import OUTLIER_LABEL, Manifest
from service.contract.decision import Scope
from service.contract.intervals import wilson
from service.contract.reasons import REASONS, Reason
from service.contract.reference import ALL
from service.ledger.rows import Tally, TallyKey


class Share(BaseModel):
    """`count` of `of` images, with the 95% interval of Wilson (1927); null where there are no images."""

    count: int
    of: int
    share: float | None
    low: float | None
    high: float | None


class ReasonFigures(BaseModel):
    """Images rejected for one reason at the operating point in force."""

    promised: float | None = Field(
        description="of in-distribution images at calibration, by predicted group; null: another operating point is in "
        "force than the bundle's own"
    )
    live: Share = Field(description="of the images predicted so")


class LiveFigures(BaseModel):
    """Of one class or group, or of all."""

    rejected: Share = Field(description="of the images predicted so; expected: calibration, by predicted group")
    accuracy: Share = Field(description="of the images that feedback says are so: predicted right")
    confirmed_rejected: Share = Field(description="of the images that feedback says are so: rejected all the same")


class Figures(BaseModel):
    """One model's tallies, summed up. `classes` are in the manifest's order."""

    all: LiveFigures
    groups: dict[str, LiveFigures]
    classes: list[LiveFigures]
    outliers_rejected: Share = Field(description="of the images that feedback says belong to no class")


def share(count: int, of: int) -> Share:
    """A share and its interval. Raises ValueError unless 0 <= count <= of."""
    if not 0 <= count <= of:
        raise ValueError(f"{count} of {of} is no share")
    if of == 0:
        return Share(count=0, of=0, share=None, low=None, high=None)
    low, high = wilson(count, of)
    return Share(count=count, of=of, share=count / of, low=low, high=high)


def figures(images: Counter[TallyKey], manifest: Manifest, operating_point: str, scope: Scope) -> Figures:
    """Sum tallies up by class and group of `manifest`."""
    by_class: dict[str, Counter[str]] = {info.name: Counter() for info in manifest.classes}
    truths = {*by_class, OUTLIER_LABEL, ""}
    outliers: Counter[str] = Counter()
    for (point, its_scope, by_deployment, label, decision, truth), count in images.items():
        if label not in by_class or truth not in truths:
            continue  # of a bundle whose classes were renamed under the same version
        in_force = by_deployment and (point, its_scope) == (operating_point, scope)
        rejected = count if decision == "reject" else 0
        if truth == OUTLIER_LABEL:
            if in_force:
                outliers.update(images=count, rejected=rejected)
        elif not truth:
            if in_force:
                by_class[label].update(images=count, rejected=rejected)
        else:
            by_class[truth].update(labelled=count, correct=count if truth == label else 0)
            if in_force:
                by_class[truth].update(confirmed=count, confirmed_rejected=rejected)
    by_group: dict[str, Counter[str]] = {group: Counter() for group in manifest.group_names}
    total: Counter[str] = Counter()
    for info in manifest.classes:
        by_group[info.group].update(by_class[info.name])
        total.update(by_class[info.name])
    return Figures(
        all=_live_figures(total),
        groups={group: _live_figures(sums) for group, sums in by_group.items()},
        classes=[_live_figures(by_class[info.name]) for info in manifest.classes],
        outliers_rejected=share(outliers["rejected"], outliers["images"]),
    )


def _live_figures(sums: Counter[str]) -> LiveFigures:
    return LiveFigures(
        rejected=share(sums["rejected"], sums["images"]),
        accuracy=share(sums["correct"], sums["labelled"]),
        confirmed_rejected=share(sums["confirmed_rejected"], sums["confirmed"]),
    )


def reason_figures(
    tally: Tally | None, manifest: Manifest, operating_point: str, scope: Scope, live: Figures
) -> dict[str, dict[Reason, ReasonFigures]] | None:
    """By ALL and group, then by reason; None of a bundle that tells none. `live`: of the same point and scope."""
    if manifest.reasons is None:
        return None
    counts: dict[tuple[str, Reason], int] = {}
    for (point, its_scope, by_deployment, group, reason), images in ({} if tally is None else tally.refusals).items():
        if by_deployment and (point, its_scope) == (operating_point, scope):
            for where in (ALL, group):
                counts[where, reason] = counts.get((where, reason), 0) + images
    own = (operating_point, scope) == (manifest.default_operating_point, manifest.threshold_scope)
    told = manifest.reasons.measured.calibration
    promised = {ALL: told.all, **told.by_predicted_group}
    seen = {ALL: live.all, **live.groups}
    return {
        where: {
            reason: ReasonFigures(
                promised=getattr(promised[where], reason) if own and where in promised else None,
                live=share(min(counts.get((where, reason), 0), figures.rejected.count), figures.rejected.of),
            )
            for reason in REASONS
        }
        for where, figures in seen.items()
    }
