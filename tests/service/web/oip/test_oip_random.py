"""Random bodies to infer: never a 5xx, always the protocol's shape."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.settings import Settings
from service.web.app import create_app
from service.web.oip.schemas import InferError
from tests.service.web.oip.test_oip import (
    BLUE,
    BYTES,
    INFER,
    PIXELS,
    RED,
    TEXTS,
    UINT8,
    binary,
    elements,
    tensor,
)


@pytest.fixture(scope="module")
def oip(tiny_bundle: Path) -> Iterator[TestClient]:
    chosen = Settings(bundle=tiny_bundle, inference_threads=1, max_body_bytes=4_000_000, queue_images=5)
    with TestClient(create_app(chosen)) as started:
        yield started


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
    | st.sampled_from([*TEXTS, "images", "UINT8", "base64", "label", "id95", 2, [2], [2, 1], [1]]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
WHOLE = {
    "id": "7",
    "parameters": {"operating_point": "id95", "thresholds": "group", "binary_data_output": False},
    "outputs": [{"name": "label", "parameters": {"binary_data": True}}, {"name": "energy"}],
}
FILES_IN_JSON = BYTES | {"parameters": {"content_type": "base64"}}
FILES_BEHIND = tensor(BYTES, len(elements(RED, BLUE)))
PIXELS_BEHIND = tensor(UINT8, PIXELS.size)


def places(document: Any) -> list[list[Any]]:
    """The paths of keys and indices to everything inside."""
    if isinstance(document, dict | list):
        keys = document if isinstance(document, dict) else range(min(3, len(document)))
        return [[key, *rest] for key in keys for rest in [[], *places(document[key])]]
    return []


@st.composite
def mutated(draw: st.DrawFn, *tensors: dict[str, Any]) -> Any:
    """A good request in which up to two things are replaced or left out."""
    document = json.loads(json.dumps(WHOLE | {"inputs": [draw(st.sampled_from(tensors))]}))
    for _ in range(draw(st.integers(0, 2))):
        *parents, last = draw(st.sampled_from(places(document) or [[]])) or [None]
        inside = document
        for key in parents:
            inside = inside[key]
        if last is None:
            continue
        if draw(st.booleans()):
            inside[last] = json.loads(json.dumps(draw(ANYTHING)))  # a copy: what is drawn may be drawn again
        else:
            del inside[last]
    return document


FUZZ = settings(
    max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)  # fmt: skip


def assert_polite(response: httpx.Response) -> None:
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        InferError.model_validate(response.json(), extra="forbid")


@FUZZ
@given(mutated(FILES_IN_JSON, UINT8) | ANYTHING)
def test_random_json(oip: TestClient, document: Any) -> None:
    assert_polite(oip.post(INFER, content=json.dumps(document).encode()))


@FUZZ
@given(
    mutated(FILES_BEHIND, PIXELS_BEHIND), st.none() | st.integers(-1, 900) | st.text("0123456789x", max_size=5),
    st.integers(0, 400), st.binary(max_size=3),
)  # fmt: skip
def test_random_binary(oip: TestClient, document: Any, length: Any, at: int, change: bytes) -> None:
    tail = elements(RED, BLUE) if '"BYTES"' in json.dumps(document) else PIXELS.tobytes()
    assert_polite(oip.post(INFER, **binary(document, tail[:at] + change + tail[at + len(change) :], length)))


@FUZZ
@given(
    st.binary(max_size=200), st.sampled_from(["", "gzip", "deflate"]), st.booleans(), st.integers(0, 400),
    st.binary(max_size=3),
)  # fmt: skip
def test_random_bytes(oip: TestClient, noise: bytes, encoding: str, packed: bool, at: int, change: bytes) -> None:
    content = noise
    if packed:  # a good request with a few bytes changed
        good = json.dumps({"inputs": [BYTES]}).encode()
        content = {"": bytes, "gzip": gzip.compress, "deflate": zlib.compress}[encoding](good)
        content = content[:at] + change + content[at + len(change) :]
    assert_polite(oip.post(INFER, content=content, headers={"content-encoding": encoding} if encoding else {}))
