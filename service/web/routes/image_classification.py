"""POST /v1/image-classification: what `huggingface_hub.InferenceClient` asks of an endpoint of its own.

    client = huggingface_hub.InferenceClient("http://127.0.0.1:8000/v1/image-classification", token=KEY)
    client.image_classification("cat.jpg", top_k=3)

The way of an image is that of POST /classify; what is said of it, and of a refused one, web/hugging_face.py settles.
"""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic_core import to_json

from service.errors import MalformedRequest, UnsupportedMedia
from service.inference.model import Model
from service.web import hugging_face
from service.web.admission import admit
from service.web.body import media_type, receive_body
from service.web.hugging_face import ANSWERED, ASKED, Asked, PipelineEntry
from service.web.limits import BudgetShare
from service.web.openapi import IMAGE_ROUTE, NOT_JSON, Failure, problems
from service.web.record import decide_image
from service.web.routes.classify import JSON
from service.web.routes.classify import SAID as CLASSIFY_SAID
from service.web.schemas import ClassifyQuery, PipelineQuery

PATH = "/v1/image-classification"
BYTES = ("", "application/octet-stream", "binary/octet-stream")  # what the client sends of bytes, or passes on of a URL
THREADED_BYTES = 2**17  # a larger body is read in a thread: its JSON and base64 would hold up the event loop
SAID: dict[Failure, str] = {**CLASSIFY_SAID, MalformedRequest: NOT_JSON}

router = APIRouter(tags=["classify"])


@router.post(
    PATH,
    response_model=list[PipelineEntry],
    response_model_exclude_unset=True,
    responses={200: ANSWERED, **problems(PATH, IMAGE_ROUTE, SAID)},
    openapi_extra=ASKED,
)
async def image_classification(request: Request, query: Annotated[PipelineQuery, Query()]) -> Response:
    """Classify one image, in the shape of Hugging Face's pipeline.

    A refused image names no class: it is one entry with the label `reject`. Problems have their detail as `error` too.
    """
    asked = ClassifyQuery(operating_point=query.operating_point, thresholds=query.thresholds)
    async with admit(request, _read, asked, images=lambda body: 1) as admitted:
        row = await admitted.submit(admitted.body.image)
        decided = decide_image(admitted, 0, admitted.body.image, row)
        found = hugging_face.entries(admitted, decided)
    return Response(to_json(found), media_type=JSON)


async def _read(request: Request, share: BudgetShare, model: Model) -> Asked:
    """The image: the body as it is, or that of a JSON body. Raises as receive_body, and as hugging_face.read."""
    media = media_type(request.headers.get("content-type", ""))
    if media.startswith("image/") or media in BYTES:
        return Asked(await receive_body(request, share))
    if media != JSON:
        raise UnsupportedMedia(
            f"content type {media[:100]} is not supported: send the image itself with a content type such as "
            f"image/jpeg, or {JSON}"
        )
    body = await receive_body(request, share)
    asked = await asyncio.to_thread(hugging_face.read, body) if len(body) > THREADED_BYTES else hugging_face.read(body)
    share.take(len(asked.image))
    return asked
