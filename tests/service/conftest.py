"""Fixtures of the service's tests."""

import copy
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.settings import Settings
from service.web.app import create_app
from tests.service import postgres, s3


@pytest.fixture(autouse=True, scope="session")
def _one_document() -> Iterator[None]:
    """FastAPI needs half a second for the document of the routes, which are the same in every application."""
    made: dict[tuple[str, int], dict[str, Any]] = {}
    make = FastAPI.openapi

    def openapi(app: FastAPI) -> dict[str, Any]:
        key = app.title, len(app.routes)
        if key not in made:
            made[key] = copy.deepcopy(make(app))
        return copy.deepcopy(made[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FastAPI, "openapi", openapi)
        yield


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright; skips without either."""
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("chromium is not installed")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


@pytest.fixture(scope="session")
def server() -> Iterator[Path]:
    if reason := postgres.missing():
        pytest.skip(reason)
    with postgres.server() as folder:
        yield folder


@pytest.fixture(params=["sqlite", "postgres"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty ledger's place, of either kind."""
    if request.param == "sqlite":
        return str(tmp_path / "ledger.sqlite3")
    return postgres.new_database(request.getfixturevalue("server"), f"t{uuid.uuid4().hex[:12]}")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[dict[str, str]]:
    """The environment of an S3-compatible server."""
    if reason := s3.missing():
        pytest.skip(reason)
    with s3.server() as environment:
        yield environment


@pytest.fixture
def s3_address(s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A place there that is empty."""
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    s3.new_connections()
    return f"s3://{s3.BUCKET}/{uuid.uuid4().hex}"
