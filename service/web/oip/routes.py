"""Open Inference Protocol v2 over HTTP, as KServe and Triton's clients speak it: GET /v2…, POST /v2/models/…/infer.

    client = tritonclient.http.InferenceServerClient("127.0.0.1:8000")
    files = tritonclient.http.InferInput("image", [1], "BYTES")
    files.set_data_from_numpy(numpy.array([open("cat.jpg", "rb").read()], dtype=object))
    client.infer("cifar10-lt", [files]).as_numpy("decision")

Beside JSON the binary tensor data extension is spoken. All images of a request are classified, or none.
"""

import asyncio
from dataclasses import replace
from time import perf_counter

from fastapi import APIRouter, Request, Response

from service.errors import InvalidImage, NotFound, NotReady, UnsupportedMedia
from service.inference.model import Model
from service.inference.rows import Image, Row
from service.web.admission import Admitted, admit
from service.web.body import receive_body
from service.web.context import runtime_of
from service.web.limits import BudgetShare
from service.web.oip import answer as oip_answer
from service.web.oip import request as oip_request
from service.web.oip.request import InferBody, is_client_id
from service.web.oip.schemas import (
    BINARY_MEDIA_TYPE,
    JSON_MEDIA_TYPE,
    NAMED,
    OTHER_MODEL,
    OTHER_VERSION,
    ROOT_PATH,
    VERSIONED,
    InferResponse,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
    TensorMetadata,
    infer_extra,
    inferred,
    protocol_problems,
)
from service.web.oip.tensors import FILES, PIXELS
from service.web.openapi import ANY_ROUTE, KEYED_ROUTE, MODEL_ROUTE
from service.web.record import Decided, decide_image

HEADER_LENGTH = "inference-header-content-length"
THREADED_BYTES = 2**17  # a larger body is read in a thread: its JSON and base64 would hold up the event loop
NAMED_MODEL = protocol_problems((*MODEL_ROUTE, NotFound), OTHER_MODEL)
NAMED_VERSION = protocol_problems((*MODEL_ROUTE, NotFound), OTHER_VERSION)

router = APIRouter(prefix=ROOT_PATH, tags=["inference protocol"])


# ---------------------------------------------------------------------------------------------------------------------
# Health and metadata


@router.get("", responses=protocol_problems(KEYED_ROUTE))
async def server_metadata(request: Request) -> ServerMetadata:
    """The server's name and the extensions of the protocol that it speaks."""
    return ServerMetadata(name="tailguard", version=request.app.version, extensions=["binary_tensor_data"])


@router.get("/health/live", responses=protocol_problems(ANY_ROUTE))
async def server_live() -> ServerLive:
    """The process answers."""
    return ServerLive(live=True)


@router.get("/health/ready", responses=protocol_problems((*ANY_ROUTE, NotReady)))
async def server_ready(request: Request) -> ServerReady:
    """The model is verified and the service is not draining."""
    runtime_of(request).check_ready()
    return ServerReady(live=True, ready=True)


@router.get("/models/{name}", responses=NAMED_MODEL, openapi_extra=NAMED)
@router.get("/models/{name}/versions/{version}", responses=NAMED_VERSION, openapi_extra=VERSIONED)
async def model_metadata(request: Request) -> ModelMetadata:
    """The tensors that the model takes, one of them at a time, and those it gives."""
    model = _named_model(request)
    manifest = model.manifest
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
            for name, (datatype, shape) in oip_answer.output_types(manifest, sets=manifest.sets is not None).items()
        ]
        + [
            TensorMetadata.model_validate(
                {"name": name, "datatype": datatype, "shape": shape, "parameters": {"only_by_name": True}}
            )
            for name, (datatype, shape) in oip_answer.further_types(manifest).items()
        ],
        parameters={
            "operating_point": model.operating_point,
            "thresholds": model.scope,
            "deciding_score": manifest.deciding_score,
            "operating_points": ",".join(manifest.operating_points),
        },
    )


@router.get("/models/{name}/ready", responses=NAMED_MODEL, openapi_extra=NAMED)
@router.get(
    "/models/{name}/versions/{version}/ready",
    responses=NAMED_VERSION,
    openapi_extra=VERSIONED,
)
async def model_ready(request: Request) -> ModelReady:
    """The model is verified and the service is not draining."""
    model = _named_model(request)
    runtime_of(request).check_ready()
    return ModelReady(name=model.manifest.name, ready=True)


# ---------------------------------------------------------------------------------------------------------------------
# Inference


@router.post(
    "/models/{name}/infer",
    response_model=InferResponse,
    responses=inferred(OTHER_MODEL),
    openapi_extra=infer_extra(NAMED),
)
@router.post(
    "/models/{name}/versions/{version}/infer",
    response_model=InferResponse,
    responses=inferred(OTHER_VERSION),
    openapi_extra=infer_extra(VERSIONED),
)
async def infer(request: Request) -> Response:
    """Classify images, given as pixels or as files, and decide on each whether the model knows what it sees."""
    _named_model(request)
    async with admit(request, _read, images=lambda body: len(body.images)) as admitted:
        admitted = replace(admitted, parameters=admitted.body.parameters)  # here they stand in the body
        if is_client_id(admitted.body.id):
            admitted.context.client_id = admitted.body.id
        rows = await _rows(admitted)
        decided = [decide_image(admitted, i, admitted.body.images[i], *row) for i, row in enumerate(rows)]
        return _answer(admitted, decided)


async def _read(request: Request, share: BudgetShare, model: Model) -> InferBody:
    body = await receive_body(request, share)
    given = (body, request.headers.get(HEADER_LENGTH), model)
    if len(body) > THREADED_BYTES:  # its JSON and base64 would hold up the event loop
        return await asyncio.to_thread(oip_request.read, *given)
    return oip_request.read(*given)


async def _rows(admitted: Admitted[InferBody]) -> list[tuple[Row, float]]:
    """The row of each image and when it was there. The first image that fails ends the others.

    Raises as Pipeline.submit; an image that cannot be read is named by its index.
    """

    async def one(position: int, image: Image) -> tuple[Row, float]:
        try:
            return await admitted.submit(image), perf_counter()
        except (InvalidImage, UnsupportedMedia) as error:
            raise InvalidImage(f"{FILES}[{position}]: {error}") from error

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(i, image)) for i, image in enumerate(admitted.body.images)]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _answer(admitted: Admitted[InferBody], decided: list[Decided]) -> Response:
    manifest, asked = admitted.model.manifest, admitted.body
    head = {
        "model_name": manifest.name,
        "model_version": manifest.version,
        **({} if asked.id is None else {"id": asked.id}),
        "parameters": {
            "operating_point": asked.parameters.operating_point,
            "thresholds": asked.parameters.scope,
            "deciding_score": manifest.deciding_score,
        },
    }
    columns = oip_answer.columns(manifest, decided, admitted.model.sets, asked.parameters.set)
    body, json_bytes = oip_answer.write(head, manifest, columns, asked.outputs)
    if json_bytes is None:
        return Response(body, media_type=JSON_MEDIA_TYPE)
    return Response(body, media_type=BINARY_MEDIA_TYPE, headers={HEADER_LENGTH: str(json_bytes)})


def _named_model(request: Request) -> Model:
    """The model that the path names. Raises NotFound, NotReady."""
    model = runtime_of(request).in_force()
    manifest = model.manifest
    name, version = request.path_params["name"], request.path_params.get("version")
    if name != manifest.name or version not in (None, manifest.version):
        asked = name if version is None else f"{name} version {version}"
        raise NotFound(
            f"model {asked[:100]!r} is not served here: this server has {manifest.name} version {manifest.version}"
        )
    return model
