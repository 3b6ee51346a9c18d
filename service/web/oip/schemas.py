"""What OpenAPI says of the Open Inference Protocol v2 routes, and the protocol's own shape of a refusal.

The bodies of `infer` are read and written by hand (oip_request.py, oip_answer.py): their models only document them.
"""

from typing import Any, Literal

from pydantic import BaseModel, Field

from service.errors import Kind
from service.web.openapi import DEADLINE, DETAILS, KINDS, MEANINGS, RETRY_AFTER

PREFIX = "/v2"
JSON_MEDIA_TYPE, BINARY_MEDIA_TYPE = "application/json", "application/octet-stream"
Datatype = Literal["UINT8", "INT64", "FP32", "FP64", "BYTES"]
Parameters = dict[str, bool | int | float | str]


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
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
        description="operating_point and thresholds as in the query of POST /classify; binary_data_output: all tensors "
        "after the JSON",
    )
    inputs: list[InferInput] = Field(min_length=1, max_length=1)
    outputs: list[InferRequestedOutput] = Field(default=[], description="those wanted, in this order; none: all")


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


def speaks(path: str) -> bool:
    """Whether a request to `path` expects the protocol's errors."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def refusal(kind: Kind, detail: str) -> tuple[int, dict[str, str]]:
    """Status and body of a refusal: the protocol knows 400 where RFC 9110 has 422."""
    return 400 if kind.status == 422 else kind.status, {"error": detail}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route for the statuses that an error can have."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        detail = EXAMPLES.get(status, DETAILS[status])
        documented = {"model": InferError, "content": {JSON_MEDIA_TYPE: {"example": {"error": detail}}}}
        documented["description"] = MEANINGS_HERE.get(status, MEANINGS.get(status, KINDS[status].title))
        if status in (429, 503):
            documented["headers"] = RETRY_AFTER
        found[status] = documented
    return found


EXAMPLES = {
    400: "input images has shape [1, 8, 8, 4], the model takes [N, 32, 32, 3] with N from 1 to 64",
    404: "model 'other' is not served here: this server has cifar10-lt version 1",
    415: "content encoding br is not supported: send gzip, deflate or none",
}
MEANINGS_HERE = {
    400: "The body is malformed, a tensor has another name, type or shape, an image or a parameter is not valid",
    404: "No such model or version",
    415: "The content encoding is not supported",
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


_SCHEMA = InferRequest.model_json_schema()
_PATH = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in ("name", "version")]
NAMED: dict[str, Any] = {"parameters": _PATH[:1]}  # by hand: FastAPI would document a 422 that a string cannot cause
VERSIONED: dict[str, Any] = {"parameters": _PATH}


def infer_extra(named: dict[str, Any]) -> dict[str, Any]:
    """What OpenAPI says of an infer route with the path parameters `named`."""
    headers = [
        {
            "name": "Inference-Header-Content-Length",
            "in": "header",
            "required": False,
            "description": "bytes of the JSON when binary tensors follow it, before any content encoding",
            "schema": {"type": "integer", "minimum": 0},
        },
        {
            "name": "Content-Encoding",
            "in": "header",
            "required": False,
            "description": "of the request; the limit of a body counts after it is undone",
            "schema": {"type": "string", "enum": ["identity", "gzip", "deflate"]},
        },
    ]
    return {
        "parameters": [*named["parameters"], *headers, *DEADLINE["parameters"]],
        "requestBody": {
            "required": True,
            "description": "JSON alone, or JSON and then the tensor that has a binary_data_size.",
            "content": {
                JSON_MEDIA_TYPE: {"schema": _inlined(_SCHEMA, _SCHEMA["$defs"])},
                BINARY_MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}},
            },
        },
    }


INFERRED: dict[int | str, dict[str, Any]] = {
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
    **refusals(400, 401, 404, 408, 413, 415, 429, 500, 503, 504),
}
