"""What the OpenAPI document says beyond what FastAPI sees: the bodies read by hand, and every error with an example."""

from typing import Any

from service.errors import (
    HTTP_KINDS,
    INTERNAL,
    PROBLEM_MEDIA_TYPE,
    STATUS,
    BodyTooLarge,
    DeadlineExceeded,
    Forbidden,
    InvalidImage,
    InvalidParameter,
    Kind,
    MalformedRequest,
    NotReady,
    Overloaded,
    Refused,
    SlowRequest,
    Unauthorized,
    UnsupportedMedia,
    problem,
)

BINARY = {"type": "string", "format": "binary"}
RAW_TYPES = (
    "image/jpeg",
    "image/png",
    "image/webp",
    "image/bmp",
    "image/gif",
    "image/tiff",
    "image/avif",
    "image/heic",
)
RETRY_AFTER = {"Retry-After": {"description": "seconds to wait", "schema": {"type": "integer", "minimum": 1}}}

DETAILS = {
    400: "the multipart body ends before its closing boundary: send it whole",
    401: "the API key is missing or wrong: send it as X-API-Key or Authorization: Bearer",
    403: "the key ci is not an admin key: send one that is",
    404: "'examples/lion.png' is none of the examples: cat.png, dog.png",
    408: "the body had not arrived after 10 s: send it faster or make it smaller",
    409: "the bundle in service stays: models/cifar10-lt/2 is not a bundle: manifest.json cannot be read",
    413: "the body has 20971520 bytes, the limit is 10485760: send a smaller image",
    415: "content type text/plain is not supported: send multipart/form-data with the field 'file', "
    "or the image itself with a content type such as image/jpeg",
    422: "operating_point 'id99' is none of this model's: id95, ood95",
    429: "64 images are queued and 1 more would pass the limit of 64: come back after the seconds in Retry-After",
    500: "the service failed at this request; its log says why under 3f0d9c52b1a64c0e9d5f6a7b8c9d0e1f",
    503: "the service is shutting down: send the request to another replica",
    504: "the image was still waiting at its deadline: try again when there is less load",
}
MEANINGS = {
    422: "A parameter, a field name or the image is not valid: empty, damaged, cut short, or over the pixel limit",
}
KINDS: dict[int, Kind] = {
    **{404: HTTP_KINDS[404], 500: INTERNAL},
    **{
        STATUS[error].status: STATUS[error]
        for error in (
            MalformedRequest, Unauthorized, Forbidden, Refused, SlowRequest, BodyTooLarge, UnsupportedMedia,
            InvalidImage, InvalidParameter, Overloaded, NotReady, DeadlineExceeded,
        )
    },
}  # fmt: skip


def problems(path: str, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: a problem document with an example for each status."""
    return {status: _documented(path, status) for status in statuses}


def _documented(path: str, status: int) -> dict[str, Any]:
    kind = KINDS[status]
    example = problem(kind, DETAILS[status], instance=path, request_id="3f0d9c52b1a64c0e9d5f6a7b8c9d0e1f")
    content = {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example}}
    documented: dict[str, Any] = {"description": MEANINGS.get(status, kind.title), "content": content}
    if status in (429, 503):
        documented["headers"] = RETRY_AFTER
    return documented


DEADLINE = {
    "parameters": [
        {
            "name": "X-Request-Timeout-Ms",
            "in": "header",
            "required": False,
            "description": "milliseconds after which the answer is of no use; at most the service's own limit",
            "schema": {"type": "integer", "minimum": 1},
        }
    ]
}
ONE_FILE: dict[str, Any] = {
    **DEADLINE,
    "requestBody": {
        "required": True,
        "description": "One image: JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF or HEIC, as a form field or as it is.",
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["file"], "properties": {"file": BINARY}},
                "encoding": {"file": {"contentType": ", ".join(RAW_TYPES)}},
            },
            **{media: {"schema": BINARY} for media in RAW_TYPES},
        },
    },
}
MANY_FILES: dict[str, Any] = {
    **DEADLINE,
    "requestBody": {
        "required": True,
        "description": "Images in fields named `files` (`file` is taken too), all within the limit of one body.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {"files": {"type": "array", "minItems": 1, "items": BINARY}},
                }
            }
        },
    },
}
UPLOAD_ERRORS = (400, 401, 408, 413, 415, 422, 429, 500, 503, 504)
