"""`tailguard export RUN --web DIR`: the bundle, and the page that classifies with it in a browser alone."""

import json
from pathlib import Path

import pytest

from service.browser import runtime
from service.contract import bundle
from tests.training import tiny
from training import finished, trainer

pytestmark = pytest.mark.usefixtures("quick_export")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated run."""
    made = trainer.train(tiny.config(), tmp_path_factory.mktemp("web") / "run")
    finished.Calibrate(run=made).cli_cmd()
    return made


def test_the_page_of_a_run(run: Path, tmp_path: Path) -> None:
    if not runtime.cache_folder().is_dir():
        pytest.skip(f"{runtime.PACKAGE} is not in {runtime.cache_folder()}: tailguard web brings it there")
    out = tmp_path / "site"
    finished.Export(run=run, out=tmp_path / "models", name="d", precision="fp32", web=out).cli_cmd()
    manifest = bundle.read(tmp_path / "models" / "d" / "1")
    described = json.loads((out / "model" / "model.json").read_text())
    assert described["files"]["model/model.onnx"]["sha256"] == manifest.sha256
    assert "scripts/backend.js" in (out / "index.html").read_text()


def test_a_folder_that_exists_is_refused_before_anything_is_done(run: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    with pytest.raises(ValueError, match="exists already: name another folder"):
        finished.Export(run=run, out=tmp_path / "models", name="d", web=tmp_path / "site").cli_cmd()
    assert not (tmp_path / "models").exists()


def test_the_bundle_stays_where_the_page_cannot_be_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no cache"))
    monkeypatch.setenv("PATH", "")
    models, out = tmp_path / "models", tmp_path / "site"
    with pytest.raises(ValueError, match=r"is written, but not its web pages: see above, then tailguard web .* --out"):
        finished.Export(run=run, out=models, name="d", precision="fp32", web=out).cli_cmd()
    assert "npm is not installed" in capfd.readouterr().err
    assert bundle.read(models / "d" / "1").name == "d"
    assert not out.exists()
