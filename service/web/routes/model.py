"""What the service says about its model: GET /model, /model/classes, /model/examples/…, /model/exemplars/…, /stats."""

import asyncio
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response

from service.contract.bundle import Manifest, Measured
from service.errors import NotFound
from service.web.context import runtime_of
from service.web.figures import ClassesAnswer, StatsAnswer, classes_answer, standing, stats_answer
from service.web.openapi import MODEL_ROUTE, path_parameters, problems
from service.web.schemas import ModelSummary, OperatingPointSummary, ScoreRange

EXAMPLES_FOLDER = "examples/"
EXAMPLE_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
NO_EXAMPLE = "'lion.png' is none of the examples: blue.png, red.png"
NO_PICTURE = "'lion.png' is no picture of this model's training examples: take the path from an answer to ?neighbours="

router = APIRouter(tags=["model"])


@router.get("/model", responses=problems("/model", MODEL_ROUTE))
async def model_summary(request: Request) -> ModelSummary:
    """What is in force: classes, operating points with their measured costs, evaluation and provenance."""
    model = runtime_of(request).in_force()
    return summary(model.manifest, model.engine.provider, model.operating_point, model.scope)


@router.get("/model/classes", responses=problems("/model/classes", MODEL_ROUTE))
async def model_classes(request: Request) -> ClassesAnswer:
    """The tail as measured on held-out images, and live: per class, and per group at the operating point in force."""
    runtime = runtime_of(request)
    return classes_answer(standing(runtime.ledger, runtime.in_force()))


@router.get("/stats", responses=problems("/stats", MODEL_ROUTE))
async def stats(request: Request) -> StatsAnswer:
    """Live rejection, accuracy and realised rejection by class and group, with 95% intervals, beside the calibration.

    `audit` holds what the audit sample says of the whole stream, without the bias of who chose what to label.

    Counted by the ledger, so it survives restarts, and is a fraction of a second behind. With several replicas on one
    PostgreSQL ledger all of them are in it, the others some seconds late.
    """
    runtime = runtime_of(request)
    model = runtime.in_force()
    shares = await asyncio.to_thread(model.metrics.stream.class_mix.shares)
    return stats_answer(standing(runtime.ledger, model), None if shares is None else shares.tolist())


@router.get(
    "/model/examples/{name}",
    response_class=Response,
    responses={
        200: {"description": "An image file", "content": {t: {} for t in sorted(set(EXAMPLE_TYPES.values()))}},
        **problems("/model/examples/lion.png", (*MODEL_ROUTE, NotFound), {NotFound: NO_EXAMPLE}),
    },
    openapi_extra={"parameters": path_parameters("name")},
)
async def model_example(request: Request) -> Response:
    """One of the bundle's example images."""
    model = runtime_of(request).in_force()
    name: str = request.path_params["name"]
    known = examples(model.manifest)
    if name not in known:  # only names the manifest lists: no path is ever built from anything else
        raise NotFound(f"{name[:100]!r} is none of the examples: {', '.join(known) or 'this bundle has none'}")
    content = (model.folder / EXAMPLES_FOLDER / name).read_bytes()
    return Response(content, media_type=EXAMPLE_TYPES[Path(name).suffix], headers={"cache-control": "max-age=3600"})


@router.get(
    "/model/exemplars/{name}",
    response_class=Response,
    responses={
        200: {"description": "A JPEG file", "content": {"image/jpeg": {}}},
        **problems("/model/exemplars/lion.png", (*MODEL_ROUTE, NotFound), {NotFound: NO_PICTURE}),
    },
    openapi_extra={"parameters": path_parameters("name")},
)
async def model_exemplar(request: Request) -> Response:
    """The picture of a training example, by the name that an answer gives; a name never means another picture."""
    model = runtime_of(request).in_force()
    name: str = request.path_params["name"]
    known = model.neighbours
    content = None if known is None else await asyncio.to_thread(known.thumbnail, name)
    if content is None:
        raise NotFound(
            f"{name[:100]!r} is no picture of this model's training examples: take the path from an answer to "
            "?neighbours="
        )
    return Response(content, media_type="image/jpeg", headers={"cache-control": "private, max-age=86400, immutable"})


def examples(manifest: Manifest) -> list[str]:
    """Names of the bundle's example images."""
    names = (f.removeprefix(EXAMPLES_FOLDER) for f in manifest.files if f.startswith(EXAMPLES_FOLDER))
    return sorted(n for n in names if Path(n).suffix in EXAMPLE_TYPES and "/" not in n)


def summary(manifest: Manifest, provider: str, operating_point: str, scope: str) -> ModelSummary:
    """The manifest without the long lists: no golden values, no calibration scores."""
    calibration: dict[str, Any] = manifest.calibration.model_dump(
        mode="json",
        exclude={"id_scores", "references", "class_shares", "presumed_shares", "quantile_levels", "quantiles"},
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
            "deciding_score_range": _range(manifest),
            "operating_point": operating_point,
            "threshold_scope": scope,
            "operating_points": {
                name: OperatingPointSummary(
                    description=point.description,
                    level=point.level,
                    threshold=point.threshold,
                    group_thresholds=point.group_thresholds,
                    class_thresholds=point.class_thresholds,
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
            "embedding": manifest.embedding,
            "exemplars": manifest.exemplars,
            "heat_map": manifest.heat_map,
            "sets": manifest.sets is not None,
            "taxonomy": manifest.taxonomy is not None,
            "reasons": manifest.reasons,
        }
    )


def _range(manifest: Manifest) -> ScoreRange:
    ids = manifest.calibration.id_scores
    seen = [v for values in manifest.calibration.quantiles.get(manifest.deciding_score, {}).values() for v in values]
    return ScoreRange(low=min([ids[0], *seen]), high=max([ids[-1], *seen]))


def _costs(measured: Measured) -> dict[str, Any]:
    return {"calibration": measured.calibration, "test": measured.test}
