"""Fixtures of training's tests: one thread, the golden values, one finished run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training import tiny
from training import trainer


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """A run sets its thread count and flushes denormals: neither may reach the next test."""
    yield
    torch.set_num_threads(1)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def reference() -> dict[str, Any]:
    """The values that the reference implementation gave."""
    if not tiny.GOLDEN.exists():
        pytest.skip(f"{tiny.GOLDEN} is not there: the golden values come with the project's shared folder")
    content: dict[str, Any] = json.loads(tiny.GOLDEN.read_text())
    return content


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of tiny.config(); not to be written to."""
    return trainer.train(tiny.config(), tmp_path_factory.mktemp("runs") / "finished")
