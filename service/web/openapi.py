"""What the OpenAPI document says beyond what FastAPI sees: the bodies read by hand, and every error with an example.

A route names the errors that it can answer; statuses and titles come from the one table, service.errors.PROBLEMS. The
examples are what the service answers, to the letter: tests/service/web/test_openapi.py provokes each.
"""

from typing import Any

from service.errors import (
    INTERNAL,
    PROBLEM_MEDIA_TYPE,
    PROBLEMS,
    BodyTooLarge,
    DeadlineExceeded,
    Forbidden,
    InvalidImage,
    InvalidParameter,
    MalformedRequest,
    NotReady,
    Overloaded,
    ProblemKind,
    RateLimited,
    SlowRequest,
    TailGuardError,
    Unauthorized,
    UnsupportedMedia,
    problem,
)

EXAMPLE_ID = "3f0d9c52b1a64c0e9d5f6a7b8c9d0e1f"
Failure = type[TailGuardError] | ProblemKind  # an error, or INTERNAL for what none describes
Responses = dict[int | str, dict[str, Any]]

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

# What a route may be refused for before it is reached, and what may go wrong in any.
ANY_ROUTE: tuple[Failure, ...] = (INTERNAL,)
KEYED_ROUTE: tuple[Failure, ...] = (Unauthorized, Forbidden, RateLimited, InvalidParameter, INTERNAL)
MODEL_ROUTE: tuple[Failure, ...] = (*KEYED_ROUTE, NotReady)
BODY_ROUTE: tuple[Failure, ...] = (*MODEL_ROUTE, MalformedRequest, SlowRequest, BodyTooLarge, UnsupportedMedia)
BATCH_ROUTE: tuple[Failure, ...] = (*BODY_ROUTE, Overloaded, DeadlineExceeded)
IMAGE_ROUTE: tuple[Failure, ...] = (*BATCH_ROUTE, InvalidImage)
NOT_JSON = "the body is not JSON (EOF while parsing an object at line 1 column 1): send an object"
SMALL_BODY = "the body has 20971520 bytes, the limit is 16384: send a smaller one"
SMALL_JSON: dict[Failure, str] = {BodyTooLarge: SMALL_BODY, MalformedRequest: NOT_JSON}  # of routes with json_body

DETAILS: dict[Failure, str] = {
    MalformedRequest: "the multipart body ends before its closing boundary: send it whole",
    Unauthorized: "the API key is missing or wrong: send it as X-API-Key or Authorization: Bearer",
    Forbidden: "the host example.org is not served here: ask for localhost, or name it in TAILGUARD_ALLOWED_HOSTS",
    SlowRequest: "the body had not arrived after 0.05 s: send it faster, make it smaller, or allow more time",
    BodyTooLarge: "the body has 20971520 bytes, the limit is 10485760: send a smaller one",
    UnsupportedMedia: "content encoding br is not supported: send gzip, deflate or none",
    InvalidImage: "the image is empty (0 bytes): send the content of an image file",
    InvalidParameter: "verbose is not known here: this route takes no query",
    Overloaded: "64 images are queued and 1 more would pass the limit of 64: come back after the seconds in "
    "Retry-After",
    RateLimited: "the key ci is over its 0.01 images per second: come back after the seconds in Retry-After",
    INTERNAL: f"the service failed at this request; its log says why under {EXAMPLE_ID}",
    NotReady: "the service is starting: ask again in a second",
    DeadlineExceeded: "no answer at the deadline: try again when there is less load",
}


def kind_and_detail(failure: Failure, said: dict[Failure, str]) -> tuple[ProblemKind, str]:
    """What the table says of a failure, and the detail of its example: that of the route, or the usual one."""
    kind = failure if isinstance(failure, ProblemKind) else PROBLEMS[failure]
    return kind, said.get(failure) or DETAILS[failure]


def problems(path: str, failures: tuple[Failure, ...], said: dict[Failure, str] | None = None) -> Responses:
    """The `responses` of a route: a problem document with an example for each failure, by status.

    `said`: details of this route in place of those in DETAILS.
    """
    found: Responses = {}
    for failure in failures:
        kind, detail = kind_and_detail(failure, said or {})
        example = problem(kind, detail, instance=path, request_id=EXAMPLE_ID)
        described(found, kind.status, kind, PROBLEM_MEDIA_TYPE, example)
        found[kind.status]["content"][PROBLEM_MEDIA_TYPE]["schema"] = {"$ref": "#/components/schemas/Problem"}
    return found


def described(found: Responses, status: int, kind: ProblemKind, media_type: str, example: object) -> None:
    """Add an example to the response of a status."""
    response = found.setdefault(status, {"description": kind.title, "content": {media_type: {"examples": {}}}})
    if kind.title not in response["description"]:
        response["description"] += f", or: {kind.title[0].lower()}{kind.title[1:]}"
    response["content"][media_type]["examples"][kind.slug] = {"summary": kind.title, "value": example}
    if status in (429, 503):
        response["headers"] = RETRY_AFTER


def path_parameters(*names: str) -> list[dict[str, Any]]:
    """Path parameters, by hand: FastAPI would document a 422 that a string cannot cause."""
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


# What every route with a body takes.
BODY_HEADERS: list[dict[str, Any]] = [
    {
        "name": "X-Request-Timeout-Ms",
        "in": "header",
        "required": False,
        "description": "milliseconds after which the answer is of no use; at most the service's own limit",
        "schema": {"type": "integer", "minimum": 1},
    },
    {
        "name": "Content-Encoding",
        "in": "header",
        "required": False,
        "description": "of the request; the limit of a body counts before and after it is undone",
        "schema": {"type": "string", "enum": ["identity", "gzip", "deflate"]},
    },
]
ONE_FILE: dict[str, Any] = {
    "parameters": BODY_HEADERS,
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
    "parameters": BODY_HEADERS,
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


def json_body(model: type[Any]) -> dict[str, Any]:
    """What OpenAPI says of a route that reads a small JSON body by hand."""
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"parameters": BODY_HEADERS, "requestBody": {"required": True, "content": content}}
