"""What the service says about its model, and the web page: GET /model, /model/classes, /model/examples/{name}, /."""

from pathlib import Path
from statistics import fmean
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from service.contract.bundle import ClassInfo, Manifest, Measured
from service.errors import NotFound
from service.inference.model import Model
from service.ledger.figures import Live
from service.web.openapi import problems
from service.web.routes.stats import live
from service.web.schemas import (
    ClassesAnswer,
    ClassMetrics,
    GroupMetrics,
    ModelName,
    ModelSummary,
    OperatingPointSummary,
)

EXAMPLES = "examples/"
EXAMPLE_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
PAGE = (Path(__file__).parent.parent / "pages" / "index.html").read_text(encoding="utf-8")
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}

router = APIRouter()


def _model(request: Request) -> Model:
    model: Model = request.app.state.service.ready()
    return model


@router.get("/model", responses=problems("/model", 401, 429, 500, 503))
async def model_summary(request: Request) -> ModelSummary:
    """What is in service: classes, operating points with their measured costs, evaluation and provenance."""
    current = _model(request)
    return summary(current.manifest, current.engine.provider, current.operating_point, current.scope)


@router.get("/model/classes", responses=problems("/model/classes", 401, 429, 500, 503))
async def model_classes(request: Request) -> ClassesAnswer:
    """The tail as measured on held-out images, and live: per class, and per group at the operating point in force."""
    current = _model(request)
    manifest = current.manifest
    since, found = live(request.app.state.service.ledger, current)
    return ClassesAnswer(
        model=ModelName(name=manifest.name, version=manifest.version),
        operating_point=current.operating_point,
        threshold_scope=current.scope,
        since=since,
        classes=[
            ClassMetrics(class_index=i, **info.model_dump(), live=found.classes[i])
            for i, info in enumerate(manifest.classes)
        ],
        groups={group: _group_metrics(current, group, found.groups[group]) for group in current.manifest.group_names},
    )


@router.get(
    "/model/examples/{name}",
    response_class=Response,
    responses={
        200: {"description": "An image file", "content": {t: {} for t in sorted(set(EXAMPLE_TYPES.values()))}},
        **problems("/model/examples/lion.png", 401, 404, 429, 500, 503),
    },
    openapi_extra={
        "parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    },  # by hand: FastAPI would document a 422 that a string can never cause
)
async def model_example(request: Request) -> Response:
    """One of the bundle's example images."""
    current = _model(request)
    name: str = request.path_params["name"]
    known = examples(current.manifest)
    if name not in known:  # only names the manifest lists: no path is ever built from anything else
        raise NotFound(f"{name[:100]!r} is none of the examples: {', '.join(known) or 'this bundle has none'}")
    content = (current.folder / EXAMPLES / name).read_bytes()
    return Response(content, media_type=EXAMPLE_TYPES[Path(name).suffix], headers={"cache-control": "max-age=3600"})


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def page() -> HTMLResponse:
    return HTMLResponse(PAGE, headers=PAGE_HEADERS)


def examples(manifest: Manifest) -> list[str]:
    """Names of the bundle's example images."""
    names = (f.removeprefix(EXAMPLES) for f in manifest.files if f.startswith(EXAMPLES))
    return sorted(n for n in names if Path(n).suffix in EXAMPLE_TYPES and "/" not in n)


def summary(manifest: Manifest, provider: str, operating_point: str, scope: str) -> ModelSummary:
    """The manifest without the long lists: no golden values, no calibration scores."""
    calibration: dict[str, Any] = manifest.calibration.model_dump(
        mode="json", exclude={"id_scores", "references", "class_shares", "quantile_levels", "quantiles"}
    )
    return ModelSummary.model_validate(
        {
            "name": manifest.name,
            "version": manifest.version,
            "created": manifest.created.isoformat(),
            "sha256": manifest.sha256,
            "precision": manifest.precision,
            "passes": manifest.passes,
            "method": manifest.provenance.method,
            "dataset": manifest.provenance.dataset,
            "provider": provider,
            "input": manifest.input.model_dump(),
            "groups": manifest.groups,
            "classes": [c.name for c in manifest.classes],
            "scores": list(manifest.scores),
            "deciding_score": manifest.deciding_score,
            "operating_point": operating_point,
            "threshold_scope": scope,
            "operating_points": {
                name: OperatingPointSummary(
                    description=point.description,
                    level=point.level,
                    threshold=point.threshold,
                    group_thresholds=point.group_thresholds,
                    group_promises=point.group_promises,
                    global_cost=_costs(point.global_cost),
                    group_cost=_costs(point.group_cost),
                )
                for name, point in manifest.operating_points.items()
            },
            "calibration": calibration,
            "evaluation": manifest.evaluation,
            "provenance": manifest.provenance.model_dump(mode="json"),
            "examples": examples(manifest),
        }
    )


def _costs(measured: Measured) -> dict[str, Any]:
    return {"calibration": measured.calibration, "test": measured.test}


def _group_metrics(current: Model, group: str, live: Live) -> GroupMetrics:
    members = [c for c in current.manifest.classes if c.group == group]
    point = current.manifest.operating_points[current.operating_point]
    cost = point.cost(current.scope).calibration
    return GroupMetrics(
        classes=len(members),
        train_count=sum(c.train_count for c in members),
        accuracy=_mean(members, "accuracy"),
        rejected=_mean(members, "rejected"),
        calibration_id_rejected=cost.id_rejected_by_group.get(group),
        calibration_outliers_caught=cost.outliers_caught_by_predicted_group.get(group),
        live=live,
    )


def _mean(members: list[ClassInfo], name: str) -> float | None:
    values = [v for c in members if (v := getattr(c, name)) is not None]
    return fmean(values) if values else None
