"""POST /feedback: the true label of an image that was classified, told afterwards, into the ledger."""

import asyncio

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from service.errors import DeadlineExceeded, InvalidParameter, NotFound
from service.settings import PREFIX
from service.web.admission import admit
from service.web.body import json_reader
from service.web.context import runtime_of
from service.web.openapi import BODY_ROUTE, SMALL_JSON, json_body, problems
from service.web.schemas import FeedbackAnswer, ModelName

MAX_POSITION = 2**31 - 1
MAX_ID_CHARACTERS = 128

router = APIRouter(tags=["feedback"])


class FeedbackBody(BaseModel):
    """The body of POST /feedback. Whoever sent the image may label it, or a key with the role review."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"request_id": "3f0d9c52b1a64c0e9d5f6a7b8c9d0e1f", "label": "cat"}]},
    )

    request_id: str = Field(
        min_length=1,
        max_length=MAX_ID_CHARACTERS,
        pattern=r"^[^\x00-\x1f\x7f]+$",
        description="of the answer; or the X-Request-Id or the id of the inference protocol that the request was sent "
        "with, of the latest where it was used twice",
    )
    index: int | None = Field(
        default=None,
        strict=True,  # true is no index, and neither is "1": the label would go to another image
        ge=0,
        le=MAX_POSITION,
        description="which image of the request, in the order sent; may be left out where it had one",
    )
    label: str = Field(min_length=1, max_length=1000, description='a class of the model, or "outlier" for none of them')


LATE = "the ledger had not taken the label at the deadline: send it again later"
UNKNOWN_REQUEST = (
    "the ledger holds no image 0 of request 3f0d9c52b1a64c0e9d5f6a7b8c9d0e1f: send the request_id of an answer, and "
    "index for an image of a batch; old rows are deleted"
)
UNKNOWN_LABEL = "index=-1 is not valid: Input should be greater than or equal to 0"


@router.post(
    "/feedback",
    responses=problems(
        "/feedback",
        (*BODY_ROUTE, DeadlineExceeded, NotFound),
        {
            **SMALL_JSON,
            DeadlineExceeded: LATE,
            NotFound: UNKNOWN_REQUEST,
            InvalidParameter: UNKNOWN_LABEL,
        },
    ),
    openapi_extra=json_body(FeedbackBody),
)
async def feedback(request: Request) -> FeedbackAnswer:
    """Tell the true label of a classified image. The answer comes once it is kept.

    Sent again it changes nothing; with another label it corrects the one before, which stays in the ledger.
    """
    ledger = runtime_of(request).ledger
    if ledger is None:
        raise NotFound(f"this service keeps no ledger, so it knows no request: {PREFIX}LEDGER is off")
    async with admit(request, json_reader(FeedbackBody)) as admitted:
        given, key = admitted.body, admitted.context.key
        try:
            async with asyncio.timeout_at(admitted.deadline):
                record = await ledger.record_feedback(
                    given.request_id,
                    given.index,
                    given.label,
                    key=None if key is None else key.name,
                    may_review=key is not None and "review" in key.roles,
                )
        except TimeoutError:
            raise DeadlineExceeded(LATE) from None
    assert record.outcome is not None  # a class or an outlier has one
    return FeedbackAnswer(
        request_id=given.request_id,
        index=given.index or 0,
        model=ModelName(name=record.model.name, version=record.model.version),
        predicted=record.label,
        group=record.group,
        decision=record.decision,
        label=record.truth,
        outcome=record.outcome,
    )
