"""The calls, written once for both clients: generators that yield what is to be done and get what came of it.

    Load(path)       → bytes                        the content of a file
    Send(request)    → httpx.Response               raises httpx.TransportError where there is none
    Wait(seconds)    → None

`clients.py` does these things, blocking or on an event loop. What the service sheds (429, 503) is sent again after the
seconds in Retry-After. A connection that breaks is tried again as well, here or between a proxy and a replica that was
lost (502, 504): to classify an image once more harms nobody, and feedback given twice counts once.
"""

import os
import random
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, NamedTuple, TypedDict, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from service.client.errors import ProblemError, Unreachable, seconds_of
from service.contract.decision import Scope
from service.errors import INTERNAL
from service.web.embed_schemas import EmbedAnswer, EmbeddedImage
from service.web.schemas import Answer, BatchAnswer, BatchItem, FeedbackAnswer, ModelSummary, Problem

Image = str | Path | bytes | BinaryIO  # the path of a file, its content, or the file opened for reading bytes
M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")
Item = TypeVar("Item", BatchItem, EmbeddedImage)

SHED = (429, 503)
LOST = (502, 504)  # a proxy's
TOO_LARGE = 413
TOO_MANY = 422  # for the queue of the service, among other reasons


class Load(NamedTuple):
    path: Path


class Send(NamedTuple):
    method: str
    url: str
    options: dict[str, Any]


class Wait(NamedTuple):
    seconds: float


Flow = Generator[Load | Send | Wait, Any, T]


@dataclass(frozen=True)
class Retries:
    """How often and how long a call is tried again."""

    attempts: int = 5  # after the first
    longest_wait_s: float = 30.0  # a longer Retry-After is not waited for: the refusal is raised
    first_wait_s: float = 0.25  # after a broken connection; doubled each time, less a random half

    def pause(self, attempt: int) -> float:
        """Seconds before attempt 1, 2, … where the service has named none."""
        return min(self.longest_wait_s, self.first_wait_s * 2.0 ** (attempt - 1)) * (1 - random.random() / 2)


@dataclass(frozen=True)
class Batching:
    """How many images go into one request."""

    images: int = 16
    bytes: int = 8 * 2**20  # the service takes 10 MiB unless told otherwise


class Named(NamedTuple):
    """An image with the name under which the service answers for it."""

    name: str
    content: bytes


class Query(TypedDict, total=False):
    """What may be asked beyond the deployment's defaults: the query of POST /classify. None: not asked."""

    top_k: int | None
    operating_point: str | None
    thresholds: Scope | None
    set: float | None  # level of a set of classes
    neighbours: int | None  # training examples to name
    embedding: bool
    map: bool  # the heat map


@dataclass(frozen=True)
class Many(Generic[Item]):
    """A route for several images: how its answer is read, and what stands for an image that it never took."""

    path: str
    items: Callable[[httpx.Response], list[Item]]
    item: Callable[..., Item]

    def named(self, response: httpx.Response, images: Sequence[Named]) -> list[Item]:
        """The items of an answer under the names of their images: a form says %22 for a quote in one."""
        items = self.items(response)
        for item, image in zip(items, images, strict=True):
            item.file = image.name
        return items


class Parts:
    """Images read from the disk as few at a time as fit into one request."""

    def __init__(self, images: Iterable[Image], batching: Batching) -> None:
        self._left = enumerate(images)
        self._next: list[Named] = []
        self._batching = batching

    def read(self) -> Flow[list[Named]]:
        """Those of the next request; empty at the end."""
        part, self._next = self._next, []
        size = sum(len(image.content) for image in part)
        for place, image in self._left:
            found = yield from _read(image, place)
            size += len(found.content)
            if part and (len(part) == self._batching.images or size > self._batching.bytes):
                self._next = [found]
                break
            part.append(found)
        return part


@dataclass(frozen=True)
class Calls:
    """The flows. Of a query nothing is sent that is None or False."""

    retries: Retries

    def classify(self, image: Image, query: Query) -> Flow[Answer]:
        found = yield from _read(image, 0)
        response = yield from self._sent("POST", "/classify", params=_params(query), files={"file": found})
        return _parsed(Answer, response)

    def part(self, route: Many[Item], images: Sequence[Named], query: Query) -> Flow[list[Item]]:
        """One request for several images. What is too much together is halved, what was shed alone is sent again."""
        files = [("files", image) for image in images]
        sent = {"params": _params(query)}
        try:
            response = yield from self._sent("POST", route.path, files=files, **sent)
        except ProblemError as error:
            if error.problem.status == TOO_LARGE and len(images) == 1:
                return [route.item(file=images[0].name, problem=error.problem)]
            if error.problem.status not in (TOO_LARGE, TOO_MANY) or len(images) == 1:
                raise
            half = len(images) // 2
            first = yield from self.part(route, images[:half], query)
            return first + (yield from self.part(route, images[half:], query))
        items = route.named(response, images)
        for attempt in range(1, self.retries.attempts + 1):
            shed = [i for i, item in enumerate(items) if item.problem and item.problem.status in SHED]
            if not shed:
                break
            yield Wait(self.retries.pause(attempt))
            again = [images[i] for i in shed]
            response = yield from self._sent("POST", route.path, files=[("files", image) for image in again], **sent)
            for i, item in zip(shed, route.named(response, again), strict=True):
                items[i] = item
        return items

    def feedback(self, request_id: str, label: str, index: int | None) -> Flow[FeedbackAnswer]:
        body = {"request_id": request_id, "label": label} | ({} if index is None else {"index": index})
        response = yield from self._sent("POST", "/feedback", json=body)
        return _parsed(FeedbackAnswer, response)

    def model(self) -> Flow[ModelSummary]:
        return _parsed(ModelSummary, (yield from self._sent("GET", "/model")))

    def ready(self) -> Flow[bool]:
        """One request, which is not tried again."""
        try:
            response = yield Send("GET", "/health/ready", {})
        except httpx.TransportError:
            return False
        return bool(response.is_success)

    def _sent(self, method: str, url: str, **options: Any) -> Flow[httpx.Response]:
        """The response of a request that succeeded. Raises ProblemError or Unreachable."""
        for attempt in range(self.retries.attempts + 1):
            last = attempt == self.retries.attempts
            try:
                response: httpx.Response = yield Send(method, url, options)
            except httpx.TransportError as error:
                if last or isinstance(error, httpx.UnsupportedProtocol):
                    raise Unreachable(f"{method} {url}: {str(error) or type(error).__name__}") from error
                yield Wait(self.retries.pause(attempt + 1))
                continue
            if response.is_success:
                return response
            refusal = _refusal(response)
            wait_s = self.retries.pause(attempt + 1) if refusal.retry_after_s is None else refusal.retry_after_s
            if last or response.status_code not in SHED + LOST or wait_s > self.retries.longest_wait_s:
                raise refusal
            yield Wait(wait_s)
        raise AssertionError("the last attempt returns or raises")


def _read(image: Image, place: int) -> Flow[Named]:
    if isinstance(image, bytes):
        return Named(str(place), image)
    path = Path(image if isinstance(image, str | Path) else str(getattr(image, "name", place)))
    name = os.fsencode(path.name).decode("utf-8", "backslashreplace")  # other bytes are \xff, as in tables of `score`
    return Named(name, (yield Load(path)) if isinstance(image, str | Path) else image.read())


def _parsed(model: type[M], response: httpx.Response) -> M:
    try:
        return model.model_validate_json(response.content)
    except ValidationError as error:
        said = Problem(
            type="about:blank", title="Not an answer of TailGuard", status=response.status_code, instance="",
            detail=f"{response.url} answered something else ({error.errors()[0]['msg']}): is the address right?",
            request_id=response.headers.get("x-request-id", ""),
        )  # fmt: skip
        raise ProblemError(said) from error


CLASSIFY = Many("/classify/batch", lambda response: _parsed(BatchAnswer, response).results, BatchItem)
EMBED = Many("/embed", lambda response: _parsed(EmbedAnswer, response).results, EmbeddedImage)


def _params(query: Query) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None and value is not False}


def _refusal(response: httpx.Response) -> ProblemError:
    """What the service said; whatever a proxy between says, in the same shape."""
    try:
        said = Problem.model_validate_json(response.content)
    except ValidationError:
        said = Problem(
            type="about:blank", title=response.reason_phrase or INTERNAL.title, status=response.status_code,
            detail=response.text[:200], instance=response.url.path,
            request_id=response.headers.get("x-request-id", ""),
        )  # fmt: skip
    return ProblemError(said, seconds_of(response.headers.get("retry-after", "")))
