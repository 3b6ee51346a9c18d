"""Open Inference Protocol v2 over HTTP, as KServe and Triton's clients speak it: GET /v2…, POST /v2/models/…/infer.

    client = tritonclient.http.InferenceServerClient("127.0.0.1:8000")
    files = tritonclient.http.InferInput("image", [1], "BYTES")
    files.set_data_from_numpy(numpy.array([open("cat.jpg", "rb").read()], dtype=object))
    client.infer("cifar10-lt", [files]).as_numpy("decision")

Beside JSON the binary tensor data extension is spoken. All images of a request are classified, or none.
"""

import asyncio
from time import perf_counter, time

from fastapi import APIRouter, Request, Response

from service.contract.decision import decide_row
from service.errors import InvalidImage, NotFound, NotReady, UnsupportedMedia
from service.inference.model import DecisionParameters, Model
from service.inference.pipeline import Image, Pipeline, Row
from service.ledger.rows import Entry
from service.runtime import Service, of
from service.web import body as uploads
from service.web.deadline import deadline_of
from service.web.oip import answer as oip_answer
from service.web.oip import request as oip_request
from service.web.oip.request import FILES, PIXELS, Asked, Images
from service.web.oip.schemas import (
    BINARY_MEDIA_TYPE,
    INFERRED,
    JSON_MEDIA_TYPE,
    NAMED,
    PREFIX,
    VERSIONED,
    InferResponse,
    Live,
    ModelMetadata,
    ModelReady,
    Ready,
    ServerMetadata,
    TensorMetadata,
    infer_extra,
    refusals,
)

HEADER_LENGTH = "inference-header-content-length"
THREADED_BYTES = 2**17  # a larger body is read in a thread: its JSON and base64 would hold up the event loop

router = APIRouter(prefix=PREFIX)


# ---------------------------------------------------------------------------------------------------------------------
# Health and metadata


@router.get("", responses=refusals(401, 429, 500))
async def server_metadata(request: Request) -> ServerMetadata:
    """The server's name and the extensions of the protocol that it speaks."""
    return ServerMetadata(name="tailguard", version=request.app.version, extensions=["binary_tensor_data"])


@router.get("/health/live", responses=refusals(500))
async def server_live() -> Live:
    """The process answers."""
    return Live(live=True)


@router.get("/health/ready", responses=refusals(500, 503))
async def server_ready(request: Request) -> Ready:
    """The model is verified and the service is not draining."""
    _ready(of(request))
    return Ready(live=True, ready=True)


@router.get("/models/{name}", responses=refusals(401, 404, 429, 500, 503), openapi_extra=NAMED)
@router.get("/models/{name}/versions/{version}", responses=refusals(401, 404, 429, 500, 503), openapi_extra=VERSIONED)
async def model_metadata(request: Request) -> ModelMetadata:
    """The tensors that the model takes, one of them at a time, and those it gives."""
    current = _asked_for(request)
    manifest = current.manifest
    one_of = {"exactly_one_of": f"{PIXELS},{FILES}"}
    size = [-1, manifest.input.height_px, manifest.input.width_px, 3]
    return ModelMetadata(
        name=manifest.name,
        versions=[manifest.version],
        platform="onnxruntime_onnx",
        inputs=[
            TensorMetadata(name=PIXELS, datatype="UINT8", shape=size, parameters={**one_of}),
            TensorMetadata(name=FILES, datatype="BYTES", shape=[-1], parameters={**one_of, "content_type": "base64"}),
        ],
        outputs=[
            TensorMetadata.model_validate({"name": name, "datatype": datatype, "shape": shape})
            for name, (datatype, shape) in oip_answer.output_types(manifest).items()
        ],
        parameters={
            "operating_point": current.operating_point,
            "thresholds": current.scope,
            "deciding_score": manifest.deciding_score,
            "operating_points": ",".join(manifest.operating_points),
        },
    )


@router.get("/models/{name}/ready", responses=refusals(401, 404, 429, 500, 503), openapi_extra=NAMED)
@router.get(
    "/models/{name}/versions/{version}/ready",
    responses=refusals(401, 404, 429, 500, 503),
    openapi_extra=VERSIONED,
)
async def model_ready(request: Request) -> ModelReady:
    """The model is verified and the service is not draining."""
    current = _asked_for(request)
    _ready(of(request))
    return ModelReady(name=current.manifest.name, ready=True)


# ---------------------------------------------------------------------------------------------------------------------
# Inference


@router.post(
    "/models/{name}/infer",
    response_model=InferResponse,
    responses=INFERRED,
    openapi_extra=infer_extra(NAMED),
)
@router.post(
    "/models/{name}/versions/{version}/infer",
    response_model=InferResponse,
    responses=INFERRED,
    openapi_extra=infer_extra(VERSIONED),
)
async def infer(request: Request) -> Response:
    """Classify images, given as pixels or as files, and decide on each whether the model knows what it sees."""
    service = of(request)
    current = _asked_for(request)
    current.pipeline.check_room()  # a full queue is told before the body is read
    deadline, timeout_s = deadline_of(request, service.settings.request_timeout_s)
    with current.pipeline.visit(), service.memory.share() as share:
        with uploads.slow_body_as_problem(timeout_s):
            async with asyncio.timeout_at(deadline):
                asked = await _receive(request, service, current, share)
        parameters = current.decision_parameters(**asked.wishes.model_dump())
        received = perf_counter()
        service.metrics.receive_seconds.observe(received - request.state.started)
        async with uploads.dropped_when_client_leaves(request):
            with current.pipeline.reserve(len(asked.images)):
                rows = await _rows(current.pipeline, asked.images, deadline)
    done = perf_counter()
    body = _decided(request, current, parameters, asked, rows, done - received)
    if service.tracer is not None:
        request.state.stages = {
            "receive": (request.state.started, received),
            "classify": (received, done),
            "respond": (done, perf_counter()),
        }
        request.state.attributes = {"tailguard.images": len(rows)}
    return body


async def _receive(request: Request, service: Service, current: Model, share: uploads.Share) -> Asked:
    max_bytes = service.settings.max_body_bytes
    encoding = request.headers.get("content-encoding", "").strip().lower()
    oip_request.check_encoding(encoding)
    body = await uploads.receive_body(request, max_bytes, share)
    request.state.body_ended = True  # a refusal from here on has nothing left to read
    if encoding in oip_request.WINDOW_BITS:
        body = await asyncio.to_thread(oip_request.unpacked, body, encoding, max_bytes)  # zlib lets the loop go on
        share.take(len(body))
    described = (body, request.headers.get(HEADER_LENGTH), current.manifest, current.pipeline.queue_images)
    if len(body) > THREADED_BYTES:
        return await asyncio.to_thread(oip_request.read, *described)
    return oip_request.read(*described)


async def _rows(pipeline: Pipeline, images: Images, deadline: float) -> list[Row]:
    """A row for each image. The first that fails ends the others; an image that cannot be read is named by its index.

    The caller holds the slots. Raises as Pipeline.submit.
    """

    async def one(position: int, image: Image) -> Row:
        try:
            return await pipeline.submit(image, deadline)
        except (InvalidImage, UnsupportedMedia) as error:
            raise InvalidImage(f"{FILES}[{position}]: {error}") from error

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(i, image)) for i, image in enumerate(images)]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _decided(
    request: Request, current: Model, parameters: DecisionParameters, asked: Asked, rows: list[Row], seconds: float
) -> Response:
    """rows → verdicts → answer, counted. `seconds`: from the received body to the last row."""
    service, manifest = of(request), current.manifest
    request_id: str = request.state.request_id
    key: str | None = getattr(request.state, "key", None)
    verdicts = []
    for position, (image, row) in enumerate(zip(asked.images, rows, strict=True)):
        verdict = decide_row(manifest, row.probabilities, row.scores, parameters.operating_point, parameters.scope)
        verdicts.append(verdict)
        service.metrics.decode_seconds.observe(row.decode_s)
        service.metrics.queue_seconds.observe(max(0.0, seconds - row.decode_s - row.inference_s))
        current.metrics.count_decision(row.scores, verdict)
        if service.shadow is not None and parameters.is_default and isinstance(image, bytes):
            service.shadow.offer(image, manifest.classes[verdict.class_index].name, verdict.decision)
        if service.ledger is not None:
            file = image if isinstance(image, bytes) else None
            service.ledger.record(Entry(time(), request_id, position, manifest, row.scores, verdict, key, file))
    return _answer(current, parameters, asked, oip_answer.columns(manifest, rows, verdicts))


def _answer(
    current: Model, parameters: DecisionParameters, asked: Asked, found: dict[str, oip_answer.Column]
) -> Response:
    manifest = current.manifest
    head = {
        "model_name": manifest.name,
        "model_version": manifest.version,
        **({} if asked.id is None else {"id": asked.id}),
        "parameters": {
            "operating_point": parameters.operating_point,
            "thresholds": parameters.scope,
            "deciding_score": manifest.deciding_score,
        },
    }
    body, json_bytes = oip_answer.write(head, manifest, found, asked.outputs)
    if json_bytes is None:
        return Response(body, media_type=JSON_MEDIA_TYPE)
    return Response(body, media_type=BINARY_MEDIA_TYPE, headers={HEADER_LENGTH: str(json_bytes)})


def _ready(service: Service) -> None:
    """Raises NotReady while the service starts or drains."""
    if service.draining:
        raise NotReady("the service is draining: send requests to another replica")
    service.ready()


def _asked_for(request: Request) -> Model:
    """The model that the path names. Raises NotFound, NotReady."""
    current = of(request).ready()
    manifest = current.manifest
    name, version = request.path_params["name"], request.path_params.get("version")
    if name != manifest.name or version not in (None, manifest.version):
        asked = name if version is None else f"{name} version {version}"
        raise NotFound(
            f"model {asked[:100]!r} is not served here: this server has {manifest.name} version {manifest.version}"
        )
    return current
