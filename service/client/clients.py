"""The two clients: they do what the flows of calls.py ask for, one blocking, one on an event loop."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, cast

import httpx

from service.client.calls import (
    CLASSIFY,
    EMBED,
    Batching,
    Calls,
    Flow,
    Image,
    Load,
    Parts,
    Query,
    Retries,
    Send,
    Wait,
)
from service.web.embed_schemas import EmbeddedImage
from service.web.schemas import Answer, BatchItem, FeedbackAnswer, ModelSummary

T = TypeVar("T")
LOCAL = "http://127.0.0.1:8000"
TIMEOUT_S = 30.0  # longer than the service's own limit of a request, so that its refusal arrives


class Client:
    """Blocking calls to one service. Threads may share it.

    `key`: the API key, where the service wants one. `transport`: another way to the service, for tests and proxies.
    Every call raises ProblemError for what the service refuses and Unreachable where nobody answers; OSError where a
    file cannot be read.
    """

    def __init__(
        self, url: str = LOCAL, *, key: str | None = None, timeout_s: float = TIMEOUT_S, retries: Retries | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:  # fmt: skip
        self._calls = Calls(retries or Retries())
        self._http = httpx.Client(base_url=url, headers=_headers(key), timeout=timeout_s, transport=transport)

    def classify(self, image: Image, **query: Unpack[Query]) -> Answer:
        """The answer for one image: a path, the content of a file, or a file opened for reading bytes.

        What may be asked for beyond it (`top_k`, `neighbours`, `map` …) is that of Query.
        """
        return self._do(self._calls.classify(image, query))

    def classify_batch(
        self, images: Iterable[Image], *, batching: Batching | None = None, **query: Unpack[Query]
    ) -> Iterator[BatchItem]:
        """An answer or a problem for each image, in their order, as the requests are answered.

        Images are read as they are needed, so there may be any number; what the service sheds is sent again.
        """
        parts = Parts(images, batching or Batching())
        while part := self._do(parts.read()):
            yield from self._do(self._calls.part(CLASSIFY, part, query))

    def embed(self, images: Iterable[Image], *, batching: Batching | None = None) -> Iterator[EmbeddedImage]:
        """An embedding or a problem for each image, as classify_batch; nothing is decided of them."""
        parts = Parts(images, batching or Batching())
        while part := self._do(parts.read()):
            yield from self._do(self._calls.part(EMBED, part, {}))

    def feedback(self, request_id: str, label: str, *, index: int | None = None) -> FeedbackAnswer:
        """Tell the true label of an image: a class of the model, or "outlier" for none of them.

        An image of classify_batch is one of its request's: `index` is its item's, since which images went together,
        and which were sent again, only the client knows.
        """
        return self._do(self._calls.feedback(request_id, label, index))

    def model(self) -> ModelSummary:
        """What is in service and what decides."""
        return self._do(self._calls.model())

    def ready(self) -> bool:
        """Whether the service takes requests now. Never raises ClientError."""
        return self._do(self._calls.ready())

    def close(self) -> None:
        """End the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _do(self, flow: Flow[T]) -> T:
        step = _begin(flow)
        while not isinstance(step, _Done):
            try:
                result = self._step(step)
            except (httpx.TransportError, OSError) as error:
                step = _on(flow, error)
            else:
                step = _on(flow, result)
        return cast(T, step.value)

    def _step(self, step: Load | Send | Wait) -> Any:
        if isinstance(step, Send):
            return self._http.request(step.method, step.url, **step.options)
        if isinstance(step, Load):
            return step.path.read_bytes()
        return time.sleep(step.seconds)


class AsyncClient:
    """As Client, to await; tasks of one event loop may share it."""

    def __init__(
        self, url: str = LOCAL, *, key: str | None = None, timeout_s: float = TIMEOUT_S, retries: Retries | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:  # fmt: skip
        self._calls = Calls(retries or Retries())
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(key), timeout=timeout_s, transport=transport)

    async def classify(self, image: Image, **query: Unpack[Query]) -> Answer:
        """As Client.classify."""
        return await self._do(self._calls.classify(image, query))

    async def classify_batch(
        self, images: Iterable[Image], *, batching: Batching | None = None, **query: Unpack[Query]
    ) -> AsyncIterator[BatchItem]:
        """As Client.classify_batch, for `async for`."""
        parts = Parts(images, batching or Batching())
        while part := await self._do(parts.read()):
            for item in await self._do(self._calls.part(CLASSIFY, part, query)):
                yield item

    async def embed(self, images: Iterable[Image], *, batching: Batching | None = None) -> AsyncIterator[EmbeddedImage]:
        """As Client.embed, for `async for`."""
        parts = Parts(images, batching or Batching())
        while part := await self._do(parts.read()):
            for item in await self._do(self._calls.part(EMBED, part, {})):
                yield item

    async def feedback(self, request_id: str, label: str, *, index: int | None = None) -> FeedbackAnswer:
        """As Client.feedback."""
        return await self._do(self._calls.feedback(request_id, label, index))

    async def model(self) -> ModelSummary:
        """As Client.model."""
        return await self._do(self._calls.model())

    async def ready(self) -> bool:
        """As Client.ready."""
        return await self._do(self._calls.ready())

    async def aclose(self) -> None:
        """End the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _do(self, flow: Flow[T]) -> T:
        step = _begin(flow)
        while not isinstance(step, _Done):
            try:
                result = await self._step(step)
            except (httpx.TransportError, OSError) as error:
                step = _on(flow, error)
            else:
                step = _on(flow, result)
        return cast(T, step.value)

    async def _step(self, step: Load | Send | Wait) -> Any:
        if isinstance(step, Send):
            return await self._http.request(step.method, step.url, **step.options)
        if isinstance(step, Load):
            return await asyncio.to_thread(Path.read_bytes, step.path)
        return await asyncio.sleep(step.seconds)


class _Done:
    """The end of a flow and its value."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _begin(flow: Flow[Any]) -> Any:
    return _on(flow, None)


def _on(flow: Flow[Any], result: Any) -> Any:
    """The next step of a flow after what came of the one before, an error among it."""
    try:
        return flow.throw(result) if isinstance(result, Exception) else flow.send(result)
    except StopIteration as end:
        return _Done(end.value)


def _headers(key: str | None) -> dict[str, str]:
    return {} if key is None else {"x-api-key": key.strip()}  # a file that holds one ends in a newline
