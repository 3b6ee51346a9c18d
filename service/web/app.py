"""The service from top to bottom: start, a request's way from bytes to a decision, health, end.

    bytes → uploads → pipeline (images → batch → engine) → decision → answer

`create_app(settings)` makes the ASGI application; `python -m service serve` runs it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter, time
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic_core import to_json
from starlette.middleware.cors import CORSMiddleware

from service.contract.decision import decide_row
from service.errors import InvalidParameter, NotReady, TailGuardError, kind_of, problem
from service.inference.model import DecisionParameters, Model
from service.ledger.rows import Entry
from service.runtime import Service, of
from service.settings import Settings
from service.web import body as uploads
from service.web.answers import answer, milliseconds
from service.web.deadline import deadline_of
from service.web.forms import Upload
from service.web.middleware import Direct, Observe
from service.web.oip import routes as oip
from service.web.openapi import MANY_FILES, ONE_FILE, UPLOAD_ERRORS, problems
from service.web.problems import Refusals
from service.web.routes import admin, feedback, stats
from service.web.routes import model as describe
from service.web.schemas import Answer, BatchAnswer, Health, Wishes

router = APIRouter()


# ---------------------------------------------------------------------------------------------------------------------
# Start and end


def create_app(settings: Settings) -> FastAPI:
    """The application. Its lifespan raises BundleError, EngineError or SettingsError before any port is opened."""
    service = Service(settings)
    app = FastAPI(
        title="TailGuard",
        version="1",
        description="Classifies an image, says how uncertain it is, and accepts or rejects it at a threshold.",
        lifespan=_lifespan,
        docs_url=None,  # the bundled documentation pages load scripts from other hosts; /openapi.json is the document
        redoc_url=None,
    )
    app.state.service = service
    for part in (router, describe.router, stats.router, feedback.router, admin.router, oip.router):
        app.include_router(part)
    refusals = Refusals(service.metrics)
    refusals.install(app)
    direct = {
        ("POST", "/classify"): Direct(classify, Wishes),
        ("POST", "/classify/batch"): Direct(classify_batch, Wishes),
    }
    app.add_middleware(Observe, service=service, refusals=refusals, direct=direct)
    if settings.cors_origins:
        origins = [origin.strip() for origin in settings.cors_origins.split(",")]
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"])
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    try:
        service.start()
    except Exception as error:
        service.failure = error  # for the one line that the process says; uvicorn keeps it to itself
        raise
    try:
        yield
    finally:
        await service.stop()


# ---------------------------------------------------------------------------------------------------------------------
# Classify


@router.post(
    "/classify", response_model=Answer, responses=problems("/classify", *UPLOAD_ERRORS), openapi_extra=ONE_FILE
)
async def classify(request: Request, wishes: Annotated[Wishes, Query()]) -> Response:
    """Classify one image and decide whether the model knows what it sees."""
    service = of(request)
    current = service.ready()
    parameters = current.decision_parameters(**wishes.model_dump())
    current.pipeline.check_room()  # a full queue is told before the body is read
    deadline, timeout_s = deadline_of(request, service.settings.request_timeout_s)
    with current.pipeline.visit(), service.memory.share() as share:
        with uploads.slow_body_as_problem(timeout_s):
            async with asyncio.timeout_at(deadline):
                upload = await uploads.receive_one(request, service.settings.max_body_bytes, share)
        received = _received(request, service)
        async with uploads.dropped_when_client_leaves(request):
            with current.pipeline.reserve(1):
                found = await _classify_one(request, service, current, parameters, 0, upload, received, deadline)
    return Response(to_json(found), media_type="application/json")


@router.post("/classify/batch", response_model=BatchAnswer, responses=problems("/classify/batch", *UPLOAD_ERRORS),
             openapi_extra=MANY_FILES)  # fmt: skip
async def classify_batch(request: Request, wishes: Annotated[Wishes, Query()]) -> Response:
    """Classify several images: an answer or a problem for each, in the order sent."""
    service = of(request)
    current = service.ready()
    parameters = current.decision_parameters(**wishes.model_dump())
    current.pipeline.check_room()
    deadline, timeout_s = deadline_of(request, service.settings.request_timeout_s)
    with current.pipeline.visit(), service.memory.share() as share:
        with uploads.slow_body_as_problem(timeout_s):
            async with asyncio.timeout_at(deadline):
                files = await uploads.receive_many(request, service.settings.max_body_bytes, share)
        received = _received(request, service)
        if len(files) > current.pipeline.queue_images:
            raise InvalidParameter(
                f"{len(files)} files came, at most {current.pipeline.queue_images} fit: send fewer at once"
            )

        async def item(position: int, upload: Upload) -> dict[str, Any]:
            name = upload.filename or str(position)
            try:
                found = await _classify_one(request, service, current, parameters, position, upload, received, deadline)
                return {"file": name, "answer": found, "problem": None}
            except TailGuardError as error:
                service.metrics.refused.labels(kind_of(error).slug).inc()
                request_id = request.state.request_id
                shown = problem(kind_of(error), str(error), instance=request.url.path, request_id=request_id)
                return {"file": name, "answer": None, "problem": shown}

        async with uploads.dropped_when_client_leaves(request):
            with current.pipeline.reserve(len(files)):
                async with asyncio.TaskGroup() as group:
                    items = [group.create_task(item(i, upload)) for i, upload in enumerate(files)]
    body = {"request_id": request.state.request_id, "results": [i.result() for i in items]}
    return Response(to_json(body), media_type="application/json")


async def _classify_one(
    request: Request,
    service: Service,
    current: Model,
    parameters: DecisionParameters,
    position: int,
    upload: Upload,
    received: float,
    deadline: float,
) -> dict[str, Any]:
    """bytes → row → verdict → answer. The caller holds a slot of the pipeline."""
    row = await current.pipeline.submit(upload.data, deadline)
    done = perf_counter()
    verdict = decide_row(current.manifest, row.probabilities, row.scores, parameters.operating_point, parameters.scope)
    queue_s = done - received - row.decode_s - row.inference_s
    service.metrics.decode_seconds.observe(row.decode_s)
    service.metrics.queue_seconds.observe(max(0.0, queue_s))
    current.metrics.count_decision(row.scores, verdict)
    request.state.decided = done
    started: float = request.state.started
    times = {
        "receive_ms": milliseconds(received - started),
        "decode_ms": milliseconds(row.decode_s),
        "queue_ms": milliseconds(queue_s),
        "inference_ms": milliseconds(row.inference_s),
        "total_ms": milliseconds(done - started),
    }
    found = answer(request.state.request_id, current, parameters, row, verdict, times)
    if service.shadow is not None and parameters.is_default:
        service.shadow.offer(upload.data, found["label"], verdict.decision)
    if service.ledger is not None:
        key: str | None = getattr(request.state, "key", None)
        request_id: str = request.state.request_id
        service.ledger.record(
            Entry(time(), request_id, position, current.manifest, row.scores, verdict, key, upload.data)
        )
    if service.tracer is not None:
        _trace(request, received, done, row.decode_s, row.inference_s, found)
    return found


def _received(request: Request, service: Service) -> float:
    now = perf_counter()
    service.metrics.receive_seconds.observe(now - request.state.started)
    return now


def _trace(
    request: Request, received: float, done: float, decode_s: float, inference_s: float, found: dict[str, Any]
) -> None:
    """What service/observe/tracing.py makes spans of: when each stage of this request began and ended."""
    inferred = done - inference_s
    request.state.stages = {
        "receive": (request.state.started, received),
        "queue": (received, inferred - decode_s),
        "decode": (inferred - decode_s, inferred),
        "inference": (inferred, done),
        "respond": (done, perf_counter()),
    }
    request.state.attributes = {f"tailguard.{name}": found[name] for name in ("label", "decision", "p_value")}


# ---------------------------------------------------------------------------------------------------------------------
# Health and metrics: none of these touches the inference path


@router.get("/health/live", responses=problems("/health/live", 500))
async def live() -> Health:
    """The process answers."""
    return Health(status="live")


@router.get("/health/ready", responses=problems("/health/ready", 500, 503))
async def ready(request: Request) -> Health:
    """The model is verified and the service is not draining."""
    service = of(request)
    if service.draining:
        raise NotReady("the service is draining: send requests to another replica")
    service.ready()
    return Health(status="ready")


@router.get("/metrics", response_class=Response, responses={
    200: {"description": "Prometheus text format", "content": {"text/plain": {"schema": {"type": "string"}}}},
    **problems("/metrics", 401, 429, 500),
})  # fmt: skip
async def metrics(request: Request) -> Response:
    """Everything counted since the start, for Prometheus."""
    return Response(of(request).render_metrics(), headers={"content-type": CONTENT_TYPE_LATEST})
