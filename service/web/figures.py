"""A model's promises beside what the live stream says of it: one building of figures, which two routes show.

Promised: measured at calibration or on held-out images. Live: counted by the ledger at the operating point in force.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

from pydantic import BaseModel, Field

from service.contract.bundle import ClassInfo, Cost
from service.contract.decision import Scope
from service.contract.reasons import Reason
from service.contract.reference import ALL
from service.contract.sets import SetFigures
from service.inference.model import Model
from service.ledger.audit import Audit
from service.ledger.figures import Figures, LiveFigures, ReasonFigures, Share, figures, reason_figures
from service.ledger.writer import Ledger
from service.web.said import TaxonomyFigures, set_figures, taxonomy_figures
from service.web.schemas import ModelName


class ClassMetrics(BaseModel):
    name: str
    class_index: int
    group: str
    train_count: int
    accuracy: float | None
    rejected: float | None
    path: list[str] | None = Field(description="nodes of the taxonomy above it, from the root; null: no taxonomy")
    live: LiveFigures


class GroupMetrics(BaseModel):
    """Means over the classes of a group that were measured, and the costs of the operating point in force."""

    classes: int
    train_count: int
    accuracy: float | None
    rejected: float | None
    calibration_id_rejected: float | None
    calibration_outliers_caught: float | None
    live: LiveFigures


class ClassesAnswer(BaseModel):
    model: ModelName
    operating_point: str
    threshold_scope: Scope
    since: datetime | None = Field(description="when the ledger first saw this model; null: not yet, or no ledger")
    classes: list[ClassMetrics]
    groups: dict[str, GroupMetrics]
    sets: list[SetFigures] | None = Field(
        description="conformal sets at several levels on held-out images, by group of the true class; null: no sets"
    )
    taxonomy: TaxonomyFigures | None = Field(description="what refused images are told, and how often it is wrong")


class Promised(BaseModel):
    """Measured at calibration or on held-out images; null where there were none."""

    rejected: float | None = Field(description="by predicted class or group")
    accuracy: float | None = Field(description="mean over the classes")
    confirmed_rejected: float | None = Field(description="by true class or group")


class ClassStats(BaseModel):
    name: str
    class_index: int
    group: str
    promised: Promised
    live: LiveFigures
    stream_share: float | None = Field(
        description="of the class in recent accepted images, by EM on their probabilities (Saerens et al. 2002); null: "
        "too few so far, or a bundle that does not say which mix its probabilities presume"
    )


class GroupStats(BaseModel):
    promised: Promised
    live: LiveFigures
    reasons: dict[Reason, ReasonFigures] | None = Field(
        default=None, description="why images were rejected; null: the bundle does not tell"
    )


class StatsAnswer(BaseModel):
    """The whole stream, its groups, and its classes."""

    model: ModelName
    operating_point: str
    threshold_scope: Scope
    since: datetime | None = Field(description="when the ledger first saw this model; null: not yet, or no ledger")
    all: GroupStats
    groups: dict[str, GroupStats]
    classes: list[ClassStats]
    outliers_rejected: Share = Field(description="of the images that feedback says belong to no class")
    promised_outliers_rejected: float | None
    audit: Audit | None = Field(description="of the whole stream, from the audit sample; null: no image was sampled")


@dataclass(frozen=True)
class Standing:
    """How a model stands: its costs at calibration, and what the ledger has counted, as of its last commit."""

    model: Model
    cost: Cost
    since: datetime | None
    live: Figures
    audit: Audit | None
    reasons: dict[str, dict[Reason, ReasonFigures]] | None


def standing(ledger: Ledger | None, model: Model) -> Standing:
    """The figures of the model in force at its operating point."""
    manifest, point, scope = model.manifest, model.operating_point, model.scope
    tally = None if ledger is None else ledger.tally(manifest)
    audit = None if ledger is None else ledger.audit(manifest, point, scope)
    live = figures(Counter() if tally is None else tally.images, manifest, point, scope)
    return Standing(
        model=model,
        cost=manifest.operating_points[point].cost(scope).calibration,
        since=None if tally is None else datetime.fromtimestamp(tally.since, UTC),
        live=live,
        audit=audit if audit is not None and audit.sampled else None,
        reasons=reason_figures(tally, manifest, point, scope, live),
    )


def stats_answer(standing: Standing, shares: Sequence[float] | None) -> StatsAnswer:
    """The body of GET /stats; `shares`: of each class in the stream, if they are known."""
    told = standing.reasons or {}
    model, cost, live = standing.model, standing.cost, standing.live
    classes = model.manifest.classes
    return StatsAnswer(
        **_head(standing),
        all=GroupStats(
            promised=_promised(classes, cost.id_rejected, cost.id_rejected), live=live.all, reasons=told.get(ALL)
        ),
        groups={
            group: GroupStats(
                promised=_promised(
                    _members(model, group),
                    cost.id_rejected_by_predicted_group.get(group),
                    cost.id_rejected_by_group.get(group),
                ),
                live=live.groups[group],
                reasons=told.get(group),
            )
            for group in model.manifest.group_names
        },
        classes=[
            ClassStats(
                name=info.name,
                class_index=i,
                group=info.group,
                promised=Promised(rejected=None, accuracy=info.accuracy, confirmed_rejected=info.rejected),
                live=live.classes[i],
                stream_share=None if shares is None else shares[i],
            )
            for i, info in enumerate(classes)
        ],
        outliers_rejected=live.outliers_rejected,
        promised_outliers_rejected=cost.outliers_caught,
        audit=standing.audit,
    )


def classes_answer(standing: Standing) -> ClassesAnswer:
    """The body of GET /model/classes."""
    model, cost, live = standing.model, standing.cost, standing.live
    return ClassesAnswer(
        **_head(standing),
        classes=[
            ClassMetrics(
                class_index=i,
                **info.model_dump(),
                path=None if (tree := model.manifest.taxonomy) is None else list(tree.paths[i]),
                live=live.classes[i],
            )
            for i, info in enumerate(model.manifest.classes)
        ],
        groups={
            group: _group(_members(model, group), cost, group, live.groups[group])
            for group in model.manifest.group_names
        },
        sets=set_figures(model.manifest),
        taxonomy=taxonomy_figures(model.manifest.taxonomy),
    )


def _head(standing: Standing) -> dict[str, Any]:
    model = standing.model
    return {
        "model": ModelName(name=model.manifest.name, version=model.manifest.version),
        "operating_point": model.operating_point,
        "threshold_scope": model.scope,
        "since": standing.since,
    }


def _group(members: Sequence[ClassInfo], cost: Cost, group: str, live: LiveFigures) -> GroupMetrics:
    return GroupMetrics(
        classes=len(members),
        train_count=sum(info.train_count for info in members),
        accuracy=_mean([info.accuracy for info in members]),
        rejected=_mean([info.rejected for info in members]),
        calibration_id_rejected=cost.id_rejected_by_group.get(group),
        calibration_outliers_caught=cost.outliers_caught_by_predicted_group.get(group),
        live=live,
    )


def _promised(members: Sequence[ClassInfo], rejected: float | None, confirmed: float | None) -> Promised:
    accuracy = _mean([info.accuracy for info in members])
    return Promised(rejected=rejected, accuracy=accuracy, confirmed_rejected=confirmed)


def _members(model: Model, group: str) -> list[ClassInfo]:
    return [info for info in model.manifest.classes if info.group == group]


def _mean(values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return fmean(measured) if measured else None
