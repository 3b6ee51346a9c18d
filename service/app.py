"""The service from top to bottom: start, a request's way from bytes to a decision, health, end.

    bytes → uploads → images → batcher → engine (ONNX) → decision → answer

`create_app(settings)` makes the ASGI application; `python -m service serve` runs it.
"""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Annotated

import structlog
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service import describe, images, model, uploads
from service.answers import answer, milliseconds
from service.bundle import BundleError
from service.decision import Scope, decide
from service.errors import DeadlineExceeded, InvalidParameter, NotReady, TailGuardError, kind_of, problem
from service.images import Loaded
from service.metrics import Metrics
from service.middleware import Observe, install_error_handlers
from service.model import Choice, Model
from service.openapi import MANY_FILES, ONE_FILE, UPLOAD_ERRORS, problems
from service.schemas import Answer, BatchAnswer, BatchItem, Health, Problem, StageTimes
from service.settings import Settings
from service.uploads import Upload

log = structlog.get_logger()
router = APIRouter()


@dataclass
class Service:
    """What the requests share, at `app.state.service`. `model` is None until it is loaded and verified."""

    settings: Settings
    metrics: Metrics = field(default_factory=Metrics)
    model: Model | None = None
    draining: bool = False
    failure: Exception | None = None  # why the start failed

    def __post_init__(self) -> None:
        self.decode_pool = ThreadPoolExecutor(self.settings.decode_threads, thread_name_prefix="decode")

    def ready(self) -> Model:
        """The model in service. Raises NotReady while there is none."""
        if self.model is None:
            raise NotReady("the service is starting: ask again in a second")
        return self.model


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
    app.include_router(router)
    app.include_router(describe.router)
    app.add_middleware(Observe, metrics=service.metrics, settings=settings)
    install_error_handlers(app, service.metrics)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    try:
        loaded = service.model = model.load(service.settings, service.metrics)
    except (BundleError, TailGuardError) as error:
        service.failure = error
        raise
    manifest = loaded.manifest
    log.info("model ready", bundle=str(loaded.folder), model=f"{manifest.name}/{manifest.version}",
             provider=loaded.engine.provider, operating_point=loaded.operating_point, scope=loaded.scope)  # fmt: skip
    try:
        yield
    finally:
        service.draining = True
        if not await loaded.batcher.drain(service.settings.drain_s):
            log.warning("images were still in work at the end of the drain", images=loaded.batcher.held)
        loaded.batcher.close()
        service.decode_pool.shutdown(wait=False, cancel_futures=True)


# ---------------------------------------------------------------------------------------------------------------------
# Classify


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _wishes(
    request: Request,
    top_k: Annotated[int | None, Query(ge=1, description="classes to name, at most all; default 5")] = None,
    operating_point: Annotated[str | None, Query(description="one of the model's; see GET /model")] = None,
    thresholds: Annotated[Scope | None, Query(description="by group of the predicted class, or one for all")] = None,
) -> tuple[Model, Choice]:
    current = _service(request).ready()
    return current, current.choose(top_k, operating_point, thresholds)


Wishes = Annotated[tuple[Model, Choice], Depends(_wishes)]


@router.post("/classify", responses=problems("/classify", *UPLOAD_ERRORS), openapi_extra=ONE_FILE)
async def classify(request: Request, wishes: Wishes) -> Answer:
    """Classify one image and decide whether the model knows what it sees."""
    service, (current, choice) = _service(request), wishes
    timeout_s = service.settings.request_timeout_s
    deadline = asyncio.get_running_loop().time() + timeout_s
    with uploads.slow_body_as_problem(timeout_s):
        async with asyncio.timeout_at(deadline):
            upload = await uploads.receive_one(request, service.settings.max_body_bytes)
    received = _received(request, service)
    async with uploads.dropped_when_client_leaves(request):
        with current.batcher.reserve(1):
            return await _classify_one(request, service, current, choice, upload, received, deadline)


@router.post("/classify/batch", responses=problems("/classify/batch", *UPLOAD_ERRORS), openapi_extra=MANY_FILES)
async def classify_batch(request: Request, wishes: Wishes) -> BatchAnswer:
    """Classify several images: an answer or a problem for each, in the order sent."""
    service, (current, choice) = _service(request), wishes
    timeout_s = service.settings.request_timeout_s
    deadline = asyncio.get_running_loop().time() + timeout_s
    with uploads.slow_body_as_problem(timeout_s):
        async with asyncio.timeout_at(deadline):
            files = await uploads.receive_many(request, service.settings.max_body_bytes)
    received = _received(request, service)
    if len(files) > service.settings.queue_images:
        raise InvalidParameter(
            f"{len(files)} files came, at most {service.settings.queue_images} fit: send fewer at once"
        )

    async def item(position: int, upload: Upload) -> BatchItem:
        name = upload.filename or str(position)
        try:
            found = await _classify_one(request, service, current, choice, upload, received, deadline)
            return BatchItem(file=name, answer=found)
        except TailGuardError as error:
            kind = kind_of(error)
            service.metrics.refused.labels(kind.slug).inc()
            shown = problem(kind, str(error), instance=request.url.path, request_id=request.state.request_id)
            return BatchItem(file=name, problem=Problem.model_validate(shown))

    async with uploads.dropped_when_client_leaves(request):
        with current.batcher.reserve(len(files)):
            async with asyncio.TaskGroup() as group:
                items = [group.create_task(item(i, upload)) for i, upload in enumerate(files)]
    return BatchAnswer(request_id=request.state.request_id, results=[i.result() for i in items])


async def _classify_one(
    request: Request, service: Service, current: Model, choice: Choice, upload: Upload, received: float, deadline: float
) -> Answer:
    """bytes → pixels → row → verdict → answer. The caller holds a slot of the batcher."""
    loaded, decode_s = await _decode(service, current, upload.data, deadline)
    row = await current.batcher.submit(loaded.pixels, deadline)
    queue_s = perf_counter() - received - decode_s - row.inference_s
    best = int(row.probabilities.argmax())
    score = row.scores[current.manifest.deciding_score]
    verdict = decide(current.manifest, best, score, choice.operating_point, choice.scope)
    service.metrics.stage_seconds.labels("decode").observe(decode_s)
    service.metrics.stage_seconds.labels("queue").observe(queue_s)
    service.metrics.decided(current.manifest, best, row.scores, verdict)
    started: float = request.state.started
    times = StageTimes(
        receive_ms=milliseconds(received - started),
        decode_ms=milliseconds(decode_s),
        queue_ms=milliseconds(queue_s),
        inference_ms=milliseconds(row.inference_s),
        total_ms=milliseconds(perf_counter() - started),
    )
    return answer(request.state.request_id, current.manifest, loaded, row, verdict, choice.top_k, times)


async def _decode(service: Service, current: Model, data: bytes, deadline: float) -> tuple[Loaded, float]:
    def work() -> tuple[Loaded, float]:
        begun = perf_counter()
        loaded = images.load(data, current.manifest.input, max_pixels=service.settings.max_pixels)
        return loaded, perf_counter() - begun

    try:
        async with asyncio.timeout_at(deadline):
            return await asyncio.get_running_loop().run_in_executor(service.decode_pool, work)
    except TimeoutError:
        raise DeadlineExceeded("the image was not decoded at its deadline: send a smaller one or try later") from None


def _received(request: Request, service: Service) -> float:
    now = perf_counter()
    service.metrics.stage_seconds.labels("receive").observe(now - request.state.started)
    return now


# ---------------------------------------------------------------------------------------------------------------------
# Health and metrics: none of these touches the inference path


@router.get("/health/live", responses=problems("/health/live", 500))
async def live() -> Health:
    """The process answers."""
    return Health(status="live")


@router.get("/health/ready", responses=problems("/health/ready", 500, 503))
async def ready(request: Request) -> Health:
    """The model is verified and the service is not draining."""
    service = _service(request)
    if service.draining:
        raise NotReady("the service is draining: send requests to another replica")
    service.ready()
    return Health(status="ready")


@router.get("/metrics", response_class=Response, responses={
    200: {"description": "Prometheus text format", "content": {"text/plain": {"schema": {"type": "string"}}}},
    **problems("/metrics", 401, 500),
})  # fmt: skip
async def metrics(request: Request) -> Response:
    """Everything counted since the start, for Prometheus."""
    return Response(_service(request).metrics.render(), headers={"content-type": CONTENT_TYPE_LATEST})
