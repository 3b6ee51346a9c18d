"""The shape of Hugging Face's image-classification pipeline: how its clients ask, and what they read.

    [{"label": "cat", "score": 0.91}, {"label": "dog", "score": 0.05}]

That shape has no place for a refusal, so a refused image names no class in it: it is one entry whose label is `reject`
and whose score is 1, a decision and no probability. A client that reads label and score alone never takes a refused
image for an accepted one. The fields beyond the shape are kept by `huggingface_hub` and passed over by others.
"""

import base64
import binascii
from collections.abc import Container
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.contract.decision import Decision
from service.contract.once import parsed
from service.contract.reasons import Reason, Unfit
from service.errors import InvalidParameter, MalformedRequest
from service.web.admission import Admitted
from service.web.answers import top_classes
from service.web.openapi import BINARY, BODY_HEADERS, EXAMPLE_ID, RAW_TYPES
from service.web.problems import sentences
from service.web.record import Decided
from service.web.schemas import NOT_FINITE, ClassProbability

REJECT = "reject"
JSON_SIGNS, MOST_JSON_SIGNS = (b",", b"[", b"{"), 1000  # base64 has none of them, and an honest request few
DATA_URL, ADDRESSES = "data:", ("http://", "https://")


class PipelineParameters(BaseModel):
    model_config = ConfigDict(extra="forbid")

    top_k: int | None = Field(default=None, ge=1, description="classes to name; more than there are: all")
    function_to_apply: Literal["softmax"] | None = Field(
        default=None, description="the probabilities are calibrated inside the graph: there are no others"
    )


class PipelineRequest(BaseModel):
    """What a client sends that has parameters."""

    model_config = ConfigDict(extra="forbid")

    inputs: str = Field(description="the image file in base64, or as a data: URL; no address: none is fetched")
    parameters: PipelineParameters | None = None
    options: dict[str, Any] | None = Field(default=None, description="passed over")


class PipelineEntry(BaseModel):
    """One class of an accepted image, the most probable first; or the only entry of a refused one."""

    label: str = Field(description=f"a class; {REJECT!r}: the image is refused, and no class is named")
    score: float | None = Field(description=f"the class's probability; of a refusal 1. {NOT_FINITE}")
    decision: Decision
    p_value: float = Field(description="as in POST /classify")
    request_id: str = Field(description="for POST /feedback")
    reason: Reason | None = Field(default=None, description="of a refusal, where the model tells")
    unfit: Unfit | None = Field(default=None, description="what is the matter with an unfit picture")
    top_k: list[ClassProbability] | None = Field(default=None, description="of a refusal: the classes it was taken for")


EXAMPLE_ANSWER = [
    {"label": "cat", "score": 0.91, "decision": "accept", "p_value": 0.63, "request_id": EXAMPLE_ID},
    {"label": "dog", "score": 0.05, "decision": "accept", "p_value": 0.63, "request_id": EXAMPLE_ID},
]
EXAMPLE_REFUSAL = [
    {
        "label": REJECT, "score": 1.0, "decision": "reject", "p_value": 0.004, "request_id": EXAMPLE_ID,
        "reason": "unknown", "top_k": [{"label": "cat", "class_index": 3, "probability": 0.48}],
    }
]  # fmt: skip
ANSWERED: dict[str, Any] = {
    "content": {
        "application/json": {
            "examples": {
                "accepted": {"summary": "An accepted image", "value": EXAMPLE_ANSWER},
                "refused": {"summary": "A refused image", "value": EXAMPLE_REFUSAL},
            }
        }
    }
}
JSON_SCHEMA = PipelineRequest.model_json_schema()
JSON_SCHEMA["properties"]["parameters"]["anyOf"][0] = JSON_SCHEMA.pop("$defs")[
    "PipelineParameters"
]  # no $ref from there
ASKED: dict[str, Any] = {
    "parameters": BODY_HEADERS,
    "requestBody": {
        "required": True,
        "description": "One image as it is, with its content type or none, or JSON with the image in base64.",
        "content": {
            **{media: {"schema": BINARY} for media in (*RAW_TYPES, "application/octet-stream")},
            "application/json": {"schema": JSON_SCHEMA},
        },
    },
}


class Asked(NamedTuple):
    """The image of a request, and how many classes its body asks for."""

    image: bytes
    top_k: int | None = None


def read(body: bytes) -> Asked:
    """A request in JSON. Raises MalformedRequest, InvalidParameter."""
    if sum(body.count(sign) for sign in JSON_SIGNS) > MOST_JSON_SIGNS:
        raise MalformedRequest('the body is no request of this route: send {"inputs": "<the file in base64>"}')
    try:
        given = PipelineRequest.model_validate(parsed(body))
    except ValidationError as error:
        known = {**PipelineRequest.model_fields, **PipelineParameters.model_fields}
        raise InvalidParameter(sentences(error.errors(include_url=False), known)) from None
    except ValueError as error:
        raise MalformedRequest(f"the body is not JSON ({error}): send an object") from None
    return Asked(_decoded(given.inputs), given.parameters.top_k if given.parameters else None)


def _decoded(text: str) -> bytes:
    if text.startswith(ADDRESSES):
        raise InvalidParameter(
            f"inputs is an address ({text[:100]}), and none is fetched here: send the file in base64"
        )
    if text.startswith(DATA_URL):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedRequest(f"inputs is not base64 ({error}): encode the file, or send it as it is") from error


def entries(admitted: Admitted[Asked], decided: Decided) -> list[dict[str, Any]]:
    """The answer for one image, in the shape of PipelineEntry."""
    manifest, row, verdict = admitted.model.manifest, decided.row, decided.verdict
    said = {"decision": verdict.decision, "p_value": verdict.p_value, "request_id": admitted.context.request_id}
    classes = top_classes(manifest, row, admitted.body.top_k or admitted.parameters.top_k)  # at most all there are
    if verdict.decision == "accept":
        return [{"label": one["label"], "score": one["probability"], **said} for one in classes]
    why = {"reason": verdict.reason, "unfit": verdict.unfit} if manifest.reasons is not None else {}
    label = _no_class({info.name for info in manifest.classes})
    return [{"label": label, "score": 1.0, **said, **why, "top_k": classes}]


def _no_class(names: Container[str]) -> str:
    """The label of a refusal: that of no class."""
    label = REJECT
    while label in names:
        label = f"_{label}"
    return label
