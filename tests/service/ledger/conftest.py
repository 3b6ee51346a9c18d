"""Places for a ledger: a new file, or a new database on a PostgreSQL server that the tests start."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.contract import bundle
from tests.service import postgres


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
def manifest(tiny_bundle: Path) -> bundle.Manifest:
    return bundle.read(tiny_bundle)
