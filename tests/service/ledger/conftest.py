"""The manifest of what a ledger is written about."""

from pathlib import Path

import pytest

from service.contract import bundle


@pytest.fixture(scope="session")
def manifest(tiny_bundle: Path) -> bundle.Manifest:
    return bundle.read(tiny_bundle)
