"""A bundle that gives embeddings."""

from pathlib import Path

import pytest

from service.contract import bundle
from tests.service import tiny


@pytest.fixture(scope="session")
def embedding_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_embedding(tmp_path_factory.mktemp("models") / "tiny" / "1")


@pytest.fixture(scope="session")
def manifest(embedding_bundle: Path) -> bundle.Manifest:
    return bundle.read(embedding_bundle)
