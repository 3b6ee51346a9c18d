"""Fixtures that several packages of tests share."""

import gc
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from tests.service import tiny

# A shell starts what runs in the background with Ctrl-C ignored, and so would every process that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# No test fails because the machine is busy.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


ROOT = Path(__file__).parent
LONGEST = ("loop", "test_end_to_end.py", "training")  # below tests/


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that the processes that share the tests end together."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.relative_to(ROOT).parts[0], len(LONGEST)))


def pytest_collection_finish() -> None:
    """A service collects garbage as it ends: it need not walk through all that the tests have imported, torch too."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid bundle; not to be changed, tests that damage one write their own."""
    return tiny.write(tmp_path_factory.mktemp("models") / "tiny" / "1")
