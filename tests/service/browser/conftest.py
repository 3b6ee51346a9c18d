"""What tests of the page need: ONNX Runtime Web from the cache, where `.ci/run` has brought it, or small stand-ins."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.browser import folder, runtime
from tests.service.browser.site import served


@pytest.fixture(scope="session")
def ort_web() -> dict[str, bytes]:
    """The real files; skips where they are not in the cache: tests use no network."""
    kept = runtime.cache_folder()
    if not kept.is_dir():
        pytest.skip(f"{runtime.PACKAGE} {runtime.VERSION} is not in {kept}: tailguard web brings it there")
    return runtime.found(None)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with three small files that are taken for the real ones, and an empty cache."""
    place = tmp_path / "dist"
    place.mkdir()
    for name in runtime.DIGESTS:
        (place / name).write_bytes(f"// {name}".encode())
    digests = {name: hashlib.sha256((place / name).read_bytes()).hexdigest() for name in runtime.DIGESTS}
    monkeypatch.setattr(runtime, "DIGESTS", digests)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return place


@pytest.fixture(scope="module")
def scripts(browser: Any) -> Iterator[Any]:
    """A bare page that may import pixels.js and decide.js."""
    with served(folder.SCRIPTS) as url:
        page = browser.new_page()
        page.goto(f"{url}/LICENSE.txt")
        yield page
        page.close()
