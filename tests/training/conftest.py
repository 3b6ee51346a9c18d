"""Fixtures of training's tests: one thread, the golden values, one finished run."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry

from tests.training import tiny
from training import trainer


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _one_table_of_operators() -> Iterator[None]:
    """torch's exporter makes the table of its operators anew for each graph: a third of the time of a small one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


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


@pytest.fixture(scope="module")
def quick_export() -> Iterator[None]:
    """Exports compare 100 images, and draw no plots."""
    with tiny.quick_export(100):
        yield
