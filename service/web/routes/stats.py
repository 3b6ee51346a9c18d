"""GET /stats: what the live stream and feedback say about the model, beside what its calibration promised."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import fmean

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from service.contract.bundle import ClassInfo, Cost, Manifest
from service.contract.decision import Scope
from service.inference.model import Model
from service.ledger.figures import Figures, Live, Share, figures
from service.ledger.writer import Ledger
from service.runtime import of
from service.web.openapi import problems
from service.web.schemas import ModelName

router = APIRouter()


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
    live: Live


class GroupStats(BaseModel):
    promised: Promised
    live: Live


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


def live(ledger: Ledger | None, current: Model) -> tuple[datetime | None, Figures]:
    """Since when, and what, the ledger has counted for the model in service, as of the last commit."""
    tally = None if ledger is None else ledger.tally(current.manifest)
    images = Counter() if tally is None else tally.images
    since = None if tally is None else datetime.fromtimestamp(tally.since, UTC)
    return since, figures(images, current.manifest, current.operating_point, current.scope)


@router.get("/stats", responses=problems("/stats", 401, 429, 500, 503))
async def stats(request: Request) -> StatsAnswer:
    """Live rejection, accuracy and realised rejection by class and group, with 95% intervals, beside the calibration.

    Counted by the ledger, so it survives restarts, and is a fraction of a second behind. With several replicas on one
    PostgreSQL ledger all of them are in it, the others some seconds late.
    """
    service = of(request)
    current = service.ready()
    manifest = current.manifest
    since, found = live(service.ledger, current)
    cost = _cost(current)
    return StatsAnswer(
        model=ModelName(name=manifest.name, version=manifest.version),
        operating_point=current.operating_point,
        threshold_scope=current.scope,
        since=since,
        all=GroupStats(
            promised=Promised(
                rejected=cost.id_rejected,
                accuracy=_mean_accuracy(manifest.classes),
                confirmed_rejected=cost.id_rejected,
            ),
            live=found.all,
        ),
        groups={
            g: GroupStats(promised=_promised(manifest, cost, g), live=found.groups[g]) for g in manifest.group_names
        },
        classes=[
            ClassStats(
                name=info.name,
                class_index=i,
                group=info.group,
                promised=Promised(rejected=None, accuracy=info.accuracy, confirmed_rejected=info.rejected),
                live=found.classes[i],
            )
            for i, info in enumerate(manifest.classes)
        ],
        outliers_rejected=found.outliers_rejected,
        promised_outliers_rejected=cost.outliers_caught,
    )


def _cost(current: Model) -> Cost:
    point = current.manifest.operating_points[current.operating_point]
    return point.cost(current.scope).calibration


def _promised(manifest: Manifest, cost: Cost, group: str) -> Promised:
    return Promised(
        rejected=cost.id_rejected_by_predicted_group.get(group),
        accuracy=_mean_accuracy([info for info in manifest.classes if info.group == group]),
        confirmed_rejected=cost.id_rejected_by_group.get(group),
    )


def _mean_accuracy(classes: Sequence[ClassInfo]) -> float | None:
    values = [info.accuracy for info in classes if info.accuracy is not None]
    return fmean(values) if values else None
