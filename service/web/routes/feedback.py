"""POST /feedback: the true label of an image that was classified, told afterwards, into the ledger."""

import asyncio

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from service.contract.decision import Decision
from service.errors import MalformedRequest, NotFound
from service.ledger.rows import Outcome
from service.runtime import of
from service.settings import PREFIX
from service.web import body as uploads
from service.web.deadline import deadline_of
from service.web.openapi import DEADLINE, problems
from service.web.schemas import ModelName

MAX_POSITION = 2**31 - 1
MAX_BODY_BYTES = 2**14

router = APIRouter()


class FeedbackWish(BaseModel):
    """The body of POST /feedback. Where a request id was used twice, the latest answer is meant."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"request_id": "3f0d9c52b1a64c0e9d5f6a7b8c9d0e1f", "label": "cat"}]},
    )

    request_id: str = Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._:-]+$", description="of the answer")
    index: int = Field(default=0, ge=0, le=MAX_POSITION, description="which image of the request, in the order sent")
    label: str = Field(min_length=1, max_length=1000, description='a class of the model, or "outlier" for none of them')


class FeedbackAnswer(BaseModel):
    """What was decided about the image, and how it turned out."""

    request_id: str
    index: int
    model: ModelName = Field(description="that decided; perhaps not the one in service now")
    predicted: str
    group: str = Field(description="of the predicted class")
    decision: Decision
    label: str = Field(description="the true one, as told")
    outcome: Outcome = Field(description="predicted against true, whether the image was accepted or not")


BODY = {"required": True, "content": {"application/json": {"schema": FeedbackWish.model_json_schema()}}}
ERRORS = (400, 401, 404, 408, 413, 422, 429, 500, 503)


@router.post("/feedback", responses=problems("/feedback", *ERRORS), openapi_extra={**DEADLINE, "requestBody": BODY})
async def feedback(request: Request) -> FeedbackAnswer:
    """Tell the true label of a classified image. The answer comes once it is kept.

    Sent again it changes nothing; with another label it corrects the one before, which stays in the ledger.
    """
    ledger = of(request).ledger
    if ledger is None:
        raise NotFound(f"this service keeps no ledger, so it knows no request: {PREFIX}LEDGER is off")
    wish = await _receive(request)
    key: str | None = getattr(request.state, "key", None)
    record = await ledger.record_feedback(wish.request_id, wish.index, wish.label, key=key)
    return FeedbackAnswer(
        request_id=wish.request_id,
        index=wish.index,
        model=ModelName(name=record.model.name, version=record.model.version),
        predicted=record.label,
        group=record.group,
        decision=record.decision,
        label=record.truth,
        outcome=record.outcome,
    )


async def _receive(request: Request) -> FeedbackWish:
    """The body, read here because FastAPI would take one of any size.

    Raises BodyTooLarge, SlowRequest, ClientGone, MalformedRequest, and RequestValidationError naming the field.
    """
    service = of(request)
    deadline, timeout_s = deadline_of(request, service.settings.request_timeout_s)
    with service.memory.share() as share, uploads.slow_body_as_problem(timeout_s):
        async with asyncio.timeout_at(deadline):
            body = await uploads.receive_body(request, MAX_BODY_BYTES, share)
    try:
        given = from_json(body)
    except ValueError as error:
        raise MalformedRequest(f"the body is not JSON ({error}): send {{request_id, index, label}}") from error
    if not isinstance(given, dict):
        raise MalformedRequest("the body is not a JSON object: send {request_id, index, label}")
    try:
        return FeedbackWish.model_validate(given)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from error
