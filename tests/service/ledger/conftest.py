"""Places for a ledger: a new file, or a new database on a PostgreSQL server that the tests start."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.contract import bundle
from tests.service import postgres, s3


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


@pytest.fixture(scope="session")
def manifest(tiny_bundle: Path) -> bundle.Manifest:
    return bundle.read(tiny_bundle)
