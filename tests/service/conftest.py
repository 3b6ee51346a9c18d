"""Fixtures of the service's tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.settings import Settings
from service.web.app import create_app


@pytest.fixture
def settings(tiny_bundle: Path) -> Settings:
    return Settings(bundle=tiny_bundle, decode_threads=1, inference_threads=1, max_body_bytes=100_000)


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    """The whole application on the tiny bundle, started and stopped."""
    with TestClient(create_app(settings)) as started:
        yield started


@pytest.fixture
def document(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found
