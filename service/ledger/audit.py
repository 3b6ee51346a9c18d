"""Figures of the whole stream from its audit sample: images drawn at random, looked at by a person.

Each labelled image of the sample stands for 1/rate images of the stream (Horvitz & Thompson 1952), whatever the rate
was when it came. Reviewers look at refused images first, so what is labelled of the sample is no random part of it:
accepted and refused images are weighted up apart, each to all that was drawn of them (post-stratification). What is
assumed: among the sampled images with the same decision, whether one gets a label does not depend on what it shows.
'unsure' is no label, and counted. Intervals are Wilson's at the effective number of images (Kish), an approximation.
"""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from pydantic import BaseModel, Field

from service.contract.bundle import OUTLIER_LABEL, Manifest
from service.contract.decision import Decision, Scope
from service.contract.intervals import wilson
from service.ledger.rows import Kind, Truth


class AuditKey(NamedTuple):
    """What sampled images are counted by."""

    rate: float
    operating_point: str
    scope: Scope
    by_deployment: bool
    label: str  # predicted
    decision: Decision
    kind: Kind | None  # None: without a label
    truth: str


class Estimate(BaseModel):
    """A share of the stream with its 95% interval; null without an image, or while one decision has no label at all."""

    images: int = Field(description="labelled images behind it")
    share: float | None
    low: float | None
    high: float | None


class Audit(BaseModel):
    """What the audit sample says of the stream, as far back as its rows are held."""

    sampled: int = Field(description="images in the sample")
    labelled: int = Field(description="of these: known to be of a class or of none")
    unsure: int = Field(description="of these: a person could not tell")
    outlier_share: Estimate = Field(description="of all images: they belong to no class of the model")
    outliers_rejected: Estimate = Field(description="of the outliers: rejected at the operating point in force")
    accuracy: Estimate = Field(description="of the images of known classes: predicted right, rejected or not")
    known_rejected: Estimate = Field(description="of the same: rejected at the operating point in force")
    accuracy_by_group: dict[str, Estimate] = Field(description="by the group of the true class")
    known_rejected_by_group: dict[str, Estimate]

    def shares(self) -> dict[tuple[str, str], tuple[float | None, float, float]]:
        """For the metrics: by name and group, "all" for all, the share and its interval; from 0 to 1 while unknown."""
        found = {
            ("outlier_share", "all"): self.outlier_share,
            ("outliers_rejected", "all"): self.outliers_rejected,
            ("accuracy", "all"): self.accuracy,
            ("known_rejected", "all"): self.known_rejected,
            **{("accuracy", group): estimate for group, estimate in self.accuracy_by_group.items()},
            **{("known_rejected", group): estimate for group, estimate in self.known_rejected_by_group.items()},
        }
        return {
            names: (e.share, 0.0 if e.low is None else e.low, 1.0 if e.high is None else e.high)
            for names, e in found.items()
        }


class Looked(NamedTuple):
    """Labelled images of one kind: how many, and how many of the stream each stands for."""

    key: AuditKey
    truth: str  # a class or "outlier"
    images: int
    weight: float


def audit(counts: Counter[AuditKey], manifest: Manifest, operating_point: str, scope: Scope) -> Audit:
    """Estimates from the sampled images of one model; those on rejection at this operating point and scope."""
    groups = {info.name: info.group for info in manifest.classes}
    truths = {*groups, OUTLIER_LABEL}
    looked = _looked(counts, truths)
    # weighted apart: labels of another point's images say nothing of how many of these were looked at
    in_force = (operating_point, scope, True)
    decided = _looked(Counter({key: images for key, images in counts.items() if key[1:4] == in_force}), truths)

    def known(items: Iterable[Looked], group: str | None = None) -> list[Looked]:
        return [i for i in items if i.truth != OUTLIER_LABEL and (group is None or groups[i.truth] == group)]

    def right(items: Iterable[Looked]) -> Estimate:
        return _estimate([(item, item.truth == item.key.label) for item in items])

    def rejected(items: Iterable[Looked]) -> Estimate:
        return _estimate([(item, item.key.decision == "reject") for item in items])

    return Audit(
        sampled=counts.total(),
        labelled=sum(item.images for item in looked),
        unsure=sum(images for key, images in counts.items() if key.kind == "unsure"),
        outlier_share=_estimate([(item, item.truth == OUTLIER_LABEL) for item in looked]),
        outliers_rejected=rejected(item for item in decided if item.truth == OUTLIER_LABEL),
        accuracy=right(known(looked)),
        known_rejected=rejected(known(decided)),
        accuracy_by_group={group: right(known(looked, group)) for group in manifest.group_names},
        known_rejected_by_group={group: rejected(known(decided, group)) for group in manifest.group_names},
    )


def _looked(counts: Counter[AuditKey], truths: set[str]) -> list[Looked]:
    """The labelled images, weighted up to all that were sampled with the same decision; weight 0: it cannot be."""
    drawn: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    labelled = []
    for key, images in counts.items():
        drawn[key.decision] += images / key.rate  # type: ignore[assignment]
        truth = None if key.kind is None else Truth(key.kind, key.truth).counted
        if truth is not None and truth in truths:
            seen[key.decision] += images / key.rate  # type: ignore[assignment]
            labelled.append((key, truth, images))
    whole = all(seen[decision] for decision in drawn)
    return [
        Looked(key, truth, images, drawn[key.decision] / seen[key.decision] / key.rate if whole else 0.0)
        for key, truth, images in labelled
    ]


def _estimate(items: list[tuple[Looked, bool]]) -> Estimate:
    images = sum(item.images for item, _ in items)
    total = sum(item.images * item.weight for item, _ in items)
    if not total:
        return Estimate(images=images, share=None, low=None, high=None)
    share = sum(item.images * item.weight for item, counts in items if counts) / total
    effective = total**2 / sum(item.images * item.weight**2 for item, _ in items)
    low, high = wilson(share * effective, effective)
    return Estimate(images=images, share=share, low=low, high=high)
