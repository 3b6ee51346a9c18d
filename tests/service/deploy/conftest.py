"""Three versions of a bundle."""

from pathlib import Path

import pytest

from tests.service import tiny


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """models/tiny/1, 2 and 3: the same graph; 3 has its classes the other way round."""
    models = tmp_path_factory.mktemp("models") / "tiny"
    turned = tiny.manifest()["classes"]
    for info, name in zip(turned, ("cyan", "magenta", "yellow"), strict=True):
        info["name"] = name
    return [
        tiny.write(models / "1", version="1"),
        tiny.write(models / "2", version="2"),
        tiny.write(models / "3", version="3", classes=turned, golden=[]),
    ]
