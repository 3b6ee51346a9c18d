"""Fixtures that several packages of tests share."""

from pathlib import Path

import pytest

from tests.service import tiny


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid bundle; not to be changed, tests that damage one write their own."""
    return tiny.write(tmp_path_factory.mktemp("models") / "tiny" / "1")
