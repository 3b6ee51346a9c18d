"""What OpenAPI says of the Open Inference Protocol v2 routes, and the protocol's own shape of a refusal.

The bodies of `infer` are read and written by hand (oip_request.py, oip_answer.py): their models only document them.
"""

from typing import Any, Literal

from pydantic import BaseModel, Field

from service.errors import (
    InvalidImage,
    InvalidParameter,
    MalformedRequest,
    NotFound,
    ProblemKind,
)
from service.web.openapi import (
    BODY_HEADERS,
    IMAGE_ROUTE,
    Failure,
    Responses,
    described,
    kind_and_detail,
    path_parameters,
)

ROOT_PATH = "/v2"
JSON_MEDIA_TYPE, BINARY_MEDIA_TYPE = "application/json", "application/octet-stream"
Datatype = Literal["BOOL", "UINT8", "INT64", "FP32", "FP64", "BYTES"]
Parameters = dict[str, bool | int | float | str]


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class ServerLive(BaseModel):
    live: bool


class ServerReady(BaseModel):
    """The protocol's text names the field `live`, its OpenAPI file `ready`: both are sent."""

    live: bool
    ready: bool


class ModelReady(BaseModel):
    name: str
    ready: bool


class TensorMetadata(BaseModel):
    name: str
    datatype: Datatype
    shape: list[int] = Field(description="-1: any size")
    parameters: Parameters = {}


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata] = Field(description="exactly one of them is to be sent")
    outputs: list[TensorMetadata]
    parameters: Parameters


class InferInput(BaseModel):
    """Either `images`, pixels as the model takes them, or `image`, the content of image files of any size."""

    name: Literal["images", "image"]
    datatype: Literal["UINT8", "BYTES"]
    shape: list[int] = Field(description="images: [N, height, width, 3]; image: [N] or [N, 1]")
    parameters: dict[str, Any] = Field(
        default={},
        description="binary_data_size: bytes of this tensor after the JSON, in place of `data`; BYTES elements are "
        "there a little-endian uint32 length and the content. content_type: base64, the only one, may be said of BYTES",
    )
    data: list[Any] | None = Field(
        default=None, description="flat or nested, row-major: integers from 0 to 255, or image files in base64"
    )


class InferRequestedOutput(BaseModel):
    name: str
    parameters: dict[str, Any] = Field(default={}, description="binary_data: this tensor after the JSON or in it")


class InferRequest(BaseModel):
    id: str | None = Field(default=None, description="comes back in the answer")
    parameters: dict[str, Any] = Field(
        default={},
        description="operating_point, thresholds and set as in the query of POST /classify; binary_data_output: all "
        "tensors after the JSON",
    )
    inputs: list[InferInput] = Field(min_length=1, max_length=1)
    outputs: list[InferRequestedOutput] = Field(
        default=[], description="those wanted, in this order; none: all but those with `only_by_name`"
    )


class InferOutput(BaseModel):
    name: str
    datatype: Datatype
    shape: list[int]
    parameters: Parameters | None = Field(default=None, description="binary_data_size in place of `data`")
    data: list[Any] | None = Field(default=None, description="flat, row-major; null: the graph gave no finite number")


class InferResponse(BaseModel):
    model_name: str
    model_version: str
    id: str | None = None
    parameters: Parameters = Field(description="operating_point, thresholds and deciding_score behind the decisions")
    outputs: list[InferOutput]


class InferError(BaseModel):
    error: str


def is_protocol_path(path: str) -> bool:
    """Whether a request to `path` expects the protocol's errors."""
    return path == ROOT_PATH or path.startswith(f"{ROOT_PATH}/")


def protocol_problem(kind: ProblemKind, detail: str) -> tuple[int, dict[str, str]]:
    """Status and body of a refusal: the protocol knows 400 where RFC 9110 has 422."""
    return 400 if kind.status == 422 else kind.status, {"error": detail}


def protocol_problems(failures: tuple[Failure, ...], said: dict[Failure, str] | None = None) -> Responses:
    """The `responses` of a route: the protocol's error with an example for each failure, by status.

    `said`: details of this route in place of those in openapi.DETAILS.
    """
    found: Responses = {}
    for failure in failures:
        kind, detail = kind_and_detail(failure, said or {})
        status, example = protocol_problem(kind, detail)
        described(found, status, kind, JSON_MEDIA_TYPE, example)
        found[status]["model"] = InferError
    return found


OTHER_MODEL: dict[Failure, str] = {NotFound: "model 'other' is not served here: this server has tiny version 1"}
OTHER_VERSION: dict[Failure, str] = {
    NotFound: "model 'other version 1' is not served here: this server has tiny version 1"
}
BAD_INPUT: dict[Failure, str] = {
    MalformedRequest: "input images has shape [1,8,8,4], the model takes [N, 8, 8, 3] with N from 1 to 64",
    InvalidParameter: "operating_point=id99 is none of this model's: id95, ood95",
    InvalidImage: "image[0]: the image is empty (0 bytes): send the content of an image file",
}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """A JSON schema with each reference replaced by what it refers to."""
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(part, definitions) for key, part in schema.items() if key != "$defs"}


_INFER_SCHEMA = InferRequest.model_json_schema()
NAMED: dict[str, Any] = {"parameters": path_parameters("name")}
VERSIONED: dict[str, Any] = {"parameters": path_parameters("name", "version")}


def infer_extra(named: dict[str, Any]) -> dict[str, Any]:
    """What OpenAPI says of an infer route with the path parameters `named`."""
    json_length = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "required": False,
        "description": "bytes of the JSON when binary tensors follow it, before any content encoding",
        "schema": {"type": "integer", "minimum": 0},
    }
    return {
        "parameters": [*named["parameters"], json_length, *BODY_HEADERS],
        "requestBody": {
            "required": True,
            "description": "JSON alone, or JSON and then the tensor that has a binary_data_size.",
            "content": {
                JSON_MEDIA_TYPE: {"schema": _inlined(_INFER_SCHEMA, _INFER_SCHEMA["$defs"])},
                BINARY_MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}},
            },
        },
    }


ROWS: Responses = {
    200: {
        "description": "One row for each image, in the order sent",
        "headers": {
            "Inference-Header-Content-Length": {
                "description": "bytes of the JSON, when binary tensors follow it",
                "schema": {"type": "integer", "minimum": 0},
            }
        },
        "content": {BINARY_MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    },
}


def inferred(other: dict[Failure, str]) -> Responses:
    """The `responses` of an infer route, where `other` is what a wrong name in its path is told."""
    return {**ROWS, **protocol_problems((*IMAGE_ROUTE, NotFound), BAD_INPUT | other)}
