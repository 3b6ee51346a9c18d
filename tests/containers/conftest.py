"""A small real bundle for the containers."""

from pathlib import Path

import pytest

from tests.service import tiny


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("models") / "tiny" / "1")
