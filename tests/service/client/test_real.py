"""Our client, and one generated from /openapi.json, against a real service: with a key, a full queue, a slow body."""

import asyncio
import contextlib
import importlib
import io
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from service.client import AsyncClient, Batching, Client, ProblemError, Retries, Unreachable
from tests.live import serving
from tests.service import tiny

KEY = "k3y"
RED, BLUE = tiny.photo((220, 30, 30)), tiny.photo((10, 20, 200))
LARGE = tiny.photo((220, 30, 30), size=(4000, 4000))  # takes the one thread of the service a while


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with a key and room for two images, of a bundle with all that one may have."""
    whole = tiny.write_whole(tmp_path_factory.mktemp("whole") / "tiny" / "1")
    with serving(whole, api_key=KEY, queue_images=2, inference_threads=1) as found:
        yield found


def test_one_image_many_and_feedback(url: str) -> None:
    with Client(url, key=KEY) as client:
        assert client.ready()
        assert client.model().classes == ["red", "green", "blue"]
        answer = client.classify(RED, top_k=1)
        assert (answer.label, len(answer.top_k)) == ("red", 1)
        told = client.feedback(answer.request_id, "blue")
        assert (told.predicted, told.label, told.outcome) == ("red", "blue", "wrong")
        items = list(client.classify_batch([RED, BLUE, b"no image", RED], batching=Batching(images=4)))
        assert [item.answer and item.answer.label for item in items] == ["red", "blue", None, "red"]
        assert items[2].problem
        assert items[2].problem.status == 415
        for item in items:  # sent in halves, as the queue has room for two, and each label goes to its own image
            if item.answer:
                told = client.feedback(item.answer.request_id, "green", index=item.index)
                assert (told.index, told.predicted) == (item.index, item.answer.label)
        with pytest.raises(ProblemError, match="had several images: send index too"):
            client.feedback(items[1].answer.request_id, "green")  # type: ignore[union-attr]


def test_a_batch_of_one_more_than_the_key_may_send_at_once(tmp_path: Path) -> None:
    """It was told to come back later, for ever: what had been counted of it already was not thought of."""
    bundle = tiny.write(tmp_path / "tiny" / "1")
    with serving(bundle, api_key=KEY, requests_per_s=100, burst_requests=3) as url, Client(url, key=KEY) as client:
        items = list(client.classify_batch([RED, BLUE] * 4, batching=Batching(images=4)))
    assert [item.answer and item.answer.label for item in items] == ["red", "blue"] * 4


def test_what_an_image_is_like_and_where(url: str) -> None:
    with Client(url, key=KEY) as client:
        answer = client.classify(RED, neighbours=2, embedding=True, map=True)
        assert answer.neighbours
        assert answer.map
        assert answer.embedding
        assert [one.label for one in answer.neighbours] == ["red", "red"]
        assert (answer.map.width, len(answer.map.values), len(answer.embedding)) == (8, 64, 3)
        (item,) = client.classify_batch([BLUE], neighbours=1)
        assert item.answer
        assert item.answer.neighbours
        assert (item.answer.neighbours[0].label, item.answer.map) == ("blue", None)
        rows = list(client.embed([RED, b"none", BLUE], batching=Batching(images=2)))
        assert [row.embedding and len(row.embedding) for row in rows] == [3, None, 3]
        assert rows[0].embedding == answer.embedding
        assert rows[1].problem
        with pytest.raises(ProblemError, match="examples 1 to 4"):
            client.classify(RED, neighbours=5)

    async def together() -> list[Any]:
        async with AsyncClient(url, key=KEY) as client:
            return [row.embedding async for row in client.embed([RED, BLUE])]

    assert asyncio.run(together())[0] == rows[0].embedding


def test_a_wrong_key_is_refused_in_words(url: str) -> None:
    with Client(url, key="wrong") as client, pytest.raises(ProblemError, match="401 An API key is required"):
        client.classify(RED)


def test_a_full_queue_loses_nothing(url: str) -> None:
    with Client(url, key=KEY, retries=Retries(attempts=60)) as client, ThreadPoolExecutor(12) as pool:
        assert {answer.label for answer in pool.map(client.classify, [RED] * 60)} == {"red"}

    async def together() -> set[str]:
        async with AsyncClient(url, key=KEY, retries=Retries(attempts=60)) as client:
            return {answer.label for answer in await asyncio.gather(*(client.classify(BLUE) for _ in range(40)))}

    assert asyncio.run(together()) == {"blue"}


@contextmanager
def full(url: str) -> Iterator[None]:
    """The queue of two is filled as long as this lasts."""
    ended = threading.Event()

    def fill() -> None:
        with Client(url, key=KEY, retries=Retries(attempts=0)) as client:
            while not ended.is_set():
                with contextlib.suppress(ProblemError):
                    client.classify(LARGE)

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(fill)
        try:
            yield
        finally:
            ended.set()


@contextmanager
def slow(url: str, bytes_a_step: int, pause_s: float) -> Iterator[str]:
    """The address of a proxy for one connection that hands a request on a few bytes at a time."""
    target = urlsplit(url)
    ended = threading.Event()

    def back(onward: socket.socket, taken: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := onward.recv(65536):
                taken.sendall(data)
        ended.set()

    def relay() -> None:
        taken, _ = listening.accept()
        with taken, socket.create_connection((target.hostname, target.port)) as onward:
            answering = threading.Thread(target=back, args=(onward, taken))
            answering.start()
            with contextlib.suppress(OSError):
                while not ended.wait(pause_s) and (data := taken.recv(bytes_a_step)):
                    onward.sendall(data)
                onward.shutdown(socket.SHUT_RDWR)
            answering.join()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=relay)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


def test_a_slow_body_is_refused_in_words(tiny_bundle: Path) -> None:
    with (
        serving(tiny_bundle, request_timeout_s=0.5) as url,
        slow(url, 200, 0.1) as proxied,
        Client(proxied, retries=Retries(attempts=0)) as client,
    ):
        with pytest.raises((ProblemError, Unreachable)) as raised:
            client.classify(RED + bytes(20_000))
        if isinstance(raised.value, ProblemError):  # and not the reset that may overtake it
            assert raised.value.problem.status == 408


# ------------------------------------------------------------------------------------------------------- generated


@pytest.fixture(scope="module")
def generated(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The package that openapi-python-client makes of the document."""
    pytest.importorskip("openapi_python_client", reason="openapi-python-client is not installed")
    folder = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_bytes(httpx.get(f"{url}/openapi.json").content)
    (folder / "config.yaml").write_text("package_name_override: generated_client\npost_hooks: []\n")
    made = subprocess.run(
        [sys.executable, "-m", "openapi_python_client", "generate", "--path", "openapi.json", "--meta", "none",
         "--config", "config.yaml", "--output-path", "generated_client"],
        cwd=folder, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.startswith("generated_client")]:
            del sys.modules[name]


def test_a_generated_client_works_at_first_try(url: str, generated: Any) -> None:
    package = "generated_client"
    models, types = generated(f"{package}.models"), generated(f"{package}.types")
    endpoints = {
        name: generated(f"{package}.api.{tag}.{name}")
        for tag, name in (
            ("classify", "classify"), ("classify", "classify_batch"), ("classify", "embed"), ("feedback", "feedback"),
            ("model", "model_summary"), ("model", "model_exemplar"),
        )
    }  # fmt: skip
    client = generated(package).AuthenticatedClient(base_url=url, token=KEY)

    def file(content: bytes) -> Any:
        return types.File(payload=io.BytesIO(content), file_name="a.png", mime_type="image/png")

    with client:
        answer = endpoints["classify"].sync(client=client, body=models.ClassifyFilesBody(file=file(RED)), top_k=2)
        assert (answer.label, answer.decision.value, len(answer.top_k)) == ("red", "accept", 2)
        several = endpoints["classify_batch"].sync(
            client=client, body=models.ClassifyBatchBody(files=[file(RED), file(BLUE)])
        )
        assert [item.answer.label for item in several.results] == ["red", "blue"]
        body = models.FeedbackFeedbackBody(request_id=answer.request_id, label="red")
        assert endpoints["feedback"].sync(client=client, body=body).outcome.value == "correct"
        assert endpoints["model_summary"].sync(client=client).name == "tiny"
        refused = endpoints["classify"].sync(client=client, body=models.ClassifyFilesBody(file=file(b"")))
        assert (refused.status, refused.type_) == (422, "urn:tailguard:problem:invalid-image")
        more = endpoints["classify"].sync(
            client=client, body=models.ClassifyFilesBody(file=file(RED)), neighbours=1, embedding=True, map_=True
        )
        assert (more.neighbours[0].label, len(more.embedding), more.map_.width) == ("red", 3, 8)
        name = more.neighbours[0].thumbnail.rpartition("/")[2]
        assert endpoints["model_exemplar"].sync_detailed(name, client=client).content.startswith(b"\xff\xd8")
        rows = endpoints["embed"].sync(client=client, body=models.EmbedBody(files=[file(RED)]))
        assert rows.results[0].embedding == more.embedding


def test_a_generated_client_reads_a_full_queue_and_a_slow_body(url: str, tiny_bundle: Path, generated: Any) -> None:
    """As typed answers: the problem, and the seconds to wait."""
    package = "generated_client"
    models, types = generated(f"{package}.models"), generated(f"{package}.types")
    endpoint = generated(f"{package}.api.classify.classify")

    def asked(address: str, content: bytes) -> Any:
        file = types.File(payload=io.BytesIO(content), file_name="a.png", mime_type="image/png")
        with generated(package).AuthenticatedClient(base_url=address, token=KEY) as client:
            return endpoint.sync_detailed(client=client, body=models.ClassifyFilesBody(file=file))

    with full(url):
        for _ in range(2000):
            if (shed := asked(url, RED)).status_code == 429:
                break
    assert (shed.status_code, shed.parsed.status, shed.parsed.type_) == (429, 429, "urn:tailguard:problem:overloaded")
    assert int(shed.headers["retry-after"]) >= 1
    with serving(tiny_bundle, api_key=KEY, request_timeout_s=0.5) as waiting, slow(waiting, 200, 0.1) as proxied:
        try:
            late = asked(proxied, RED + bytes(20_000))
        except httpx.TransportError:  # the reset that may overtake the answer
            return
        assert (late.status_code, late.parsed.type_) == (408, "urn:tailguard:problem:slow-request")


def test_the_document_names_keys_tags_and_headers(url: str) -> None:
    document = json.loads(httpx.get(f"{url}/openapi.json").content)
    operations = [(path, operation) for path, by in document["paths"].items() for operation in by.values()]
    ids = [operation["operationId"] for _, operation in operations]
    assert len(ids) == len(set(ids))
    assert {"classify", "classify_batch", "feedback", "put_bundle"} <= set(ids)
    known = {tag["name"] for tag in document["tags"]}
    for path, operation in operations:
        assert set(operation["tags"]) <= known, path
        assert ("security" in operation) == ("health" not in path), path
        for response in operation["responses"].values():
            assert "X-Request-Id" in response["headers"], path
    classify = document["paths"]["/classify"]["post"]
    assert classify["security"] == [{"ApiKey": []}, {"Bearer": []}]  # and not nothing: this service needs a key
    assert "role classify" in classify["description"]
    assert "Retry-After" in classify["responses"]["429"]["headers"]
