"""One tree of errors, one table of their HTTP statuses, one shape for the answer: RFC 9457 problem details.

No HTTP framework in here: contract and inference raise these too.
"""

import math
from typing import Any, NamedTuple

PROBLEM_MEDIA_TYPE = "application/problem+json"
PIPELINE_PATHS = "/v1/"  # whose clients, Hugging Face's, look for words in the field `error`


class TailGuardError(Exception):
    """What the service refuses or fails at. The message says what is wrong, with the value, and what to do."""


class MalformedRequest(TailGuardError):
    """The body is not the form it claims to be."""


class Unauthorized(TailGuardError):
    """The API key is missing or not the right one."""


class Forbidden(TailGuardError):
    """Whoever asks is known and may not do this: another role, another's request, a page of another site."""


class RateLimited(TailGuardError):
    """The API key is over its rate. `retry_after_s`: seconds until it may send its next request."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotFound(TailGuardError):
    """There is no such path, model, example or request."""


class MethodNotAllowed(TailGuardError):
    """The path exists and does not take this method."""


class SlowRequest(TailGuardError):
    """The body did not arrive within the request timeout."""


class BodyTooLarge(TailGuardError):
    """More bytes than the limit were announced or received."""


class UnsupportedMedia(TailGuardError):
    """The content type, or the format of the image, is none that the service reads."""


class InvalidImage(TailGuardError):
    """The bytes claim a known format and are empty, damaged, cut short or over the pixel limit."""


class InvalidParameter(TailGuardError):
    """A query parameter or a field name is none of the valid ones."""


class Overloaded(TailGuardError):
    """The queue is full. `retry_after_s`: seconds until it will have emptied at the measured rate."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReady(TailGuardError):
    """The service is starting or draining."""

    retry_after_s = 1.0


class DeadlineExceeded(TailGuardError):
    """No answer within the request timeout; the work was dropped."""


class ClientGone(TailGuardError):
    """The client closed the connection; its work was dropped and nobody reads the answer."""


class EngineError(TailGuardError):
    """The graph cannot be loaded or run, or does not do what its manifest says."""


class Refused(TailGuardError):
    """What an admin asked for cannot be put in force; what was in force before still is."""


class SettingsError(TailGuardError):
    """A setting, or a file that one names, is unknown or not valid: at start, or when keys are read again."""


class ProblemKind(NamedTuple):
    """What a client may rely on: the HTTP status, the last part of the problem's type, and its title."""

    status: int
    slug: str
    title: str


PROBLEMS: dict[type[TailGuardError], ProblemKind] = {
    MalformedRequest: ProblemKind(400, "malformed-request", "The request body is malformed"),
    Unauthorized: ProblemKind(401, "unauthorized", "An API key is required"),
    Forbidden: ProblemKind(403, "forbidden", "This is not allowed"),
    NotFound: ProblemKind(404, "not-found", "Not found"),
    MethodNotAllowed: ProblemKind(405, "method-not-allowed", "The method is not allowed"),
    SlowRequest: ProblemKind(408, "slow-request", "The body arrived too slowly"),
    Refused: ProblemKind(409, "refused", "The change was refused"),
    BodyTooLarge: ProblemKind(413, "body-too-large", "The body is too large"),
    UnsupportedMedia: ProblemKind(415, "unsupported-media", "The content is not of a supported type"),
    InvalidImage: ProblemKind(422, "invalid-image", "The image cannot be read"),
    InvalidParameter: ProblemKind(422, "invalid-parameter", "A parameter is not valid"),
    Overloaded: ProblemKind(429, "overloaded", "The queue is full"),
    RateLimited: ProblemKind(429, "rate-limited", "The API key is over its rate"),
    ClientGone: ProblemKind(499, "client-gone", "The client left"),
    EngineError: ProblemKind(500, "engine-error", "The model failed"),
    SettingsError: ProblemKind(500, "settings-error", "A setting is not valid"),
    NotReady: ProblemKind(503, "not-ready", "The service is not ready"),
    DeadlineExceeded: ProblemKind(504, "deadline-exceeded", "The answer took too long"),
}
INTERNAL = ProblemKind(500, "internal-error", "Internal error")


def kind_of(error: TailGuardError) -> ProblemKind:
    """Status, slug and title of an error: those of its class, or of the nearest parent that has them."""
    return next((PROBLEMS[c] for c in type(error).__mro__ if c in PROBLEMS), INTERNAL)


def problem(kind: ProblemKind, detail: str, *, instance: str, request_id: str) -> dict[str, Any]:
    """The body of an RFC 9457 answer. `instance` is the path of the request."""
    found = {
        "type": f"urn:tailguard:problem:{kind.slug}",
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "instance": instance,
        "request_id": request_id,
    }
    return found | {"error": detail} if instance.startswith(PIPELINE_PATHS) else found


def headers_of(error: TailGuardError) -> dict[str, str]:
    """Headers that go with an error: when to come back, how to authenticate, whether the connection ends."""
    if isinstance(error, Overloaded | RateLimited | NotReady):
        return {"retry-after": str(max(1, math.ceil(error.retry_after_s)))}
    if isinstance(error, Unauthorized):
        return {"www-authenticate": "Bearer"}
    if isinstance(error, BodyTooLarge | SlowRequest):
        return {"connection": "close"}  # the rest of the body is not read, so the connection cannot be used again
    return {}
