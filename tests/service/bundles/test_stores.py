"""Bundles pushed to and fetched from real places: an S3 server (moto's), a registry of MLflow, a Hugging Face Hub."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import fsspec
import httpx
import pytest

from service.bundles.addresses import fetched
from service.bundles.push import push
from service.contract import bundle
from service.contract.bundle import BundleError
from tests import live, warm
from tests.service import hub, tiny

ROOT = Path(__file__).resolve().parents[3]


def test_s3(s3_address: str, tiny_bundle: Path, tmp_path: Path) -> None:
    """Pushed by the command, served from there by a process that knows only the address."""
    command = [sys.executable, "-m", "service", "push", str(tiny_bundle), f"{s3_address}/tiny/1"]
    done = warm.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    address = done.stdout.strip().removeprefix("TAILGUARD_BUNDLE='").removesuffix("'")
    with live.serving(address, bundle_cache=tmp_path / "cache") as url:  # type: ignore[arg-type]
        assert httpx.get(f"{url}/model").json()["sha256"] == bundle.read(tiny_bundle).sha256
    shown = warm.run([sys.executable, "-m", "service", "inspect", address], cwd=ROOT, capture_output=True,
                     text=True, timeout=60, env={**os.environ, "HOME": str(tmp_path)})  # fmt: skip
    assert '"name": "tiny"' in shown.stdout, shown.stderr
    missing = warm.run([sys.executable, "-m", "service", "inspect", f"{s3_address}/none"],
                       cwd=ROOT, capture_output=True, text=True, timeout=60)  # fmt: skip
    assert missing.returncode == 1
    assert len(missing.stderr.splitlines()) == 1
    assert f"tailguard: {s3_address}/none cannot be fetched" in missing.stderr


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed (mlflow-skinny does)")
@pytest.mark.filterwarnings("ignore")  # of mlflow and what it imports
def test_mlflow(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    try:
        first = push(tiny_bundle, "models:/tiny")
        assert first.startswith("models:/tiny/1#sha256=")
        found = fetched(first, tmp_path / "cache")
        assert bundle.read(found) == bundle.read(tiny_bundle)
        assert fetched("models:/tiny/1", tmp_path / "cache") == found
        assert push(tiny_bundle, "models:/tiny").startswith("models:/tiny/2#")
        with pytest.raises(BundleError, match="models:/tiny/9 cannot be fetched"):
            fetched("models:/tiny/9", tmp_path / "cache")
        with pytest.raises(BundleError, match="MLflow counts versions itself"):
            push(tiny_bundle, "models:/tiny/3")
    finally:
        mlflow.set_tracking_uri(None)


def test_hugging_face_hub(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `main` is changes while a service runs: its manifest was read at the size that it had before, cut."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    folder, address = tmp_path / "repo" / "shop" / "3", "hf://owner/repo@main/shop/3"
    shutil.copytree(tiny_bundle, folder)
    with hub.serving(tmp_path / "repo") as url:
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": url})
        assert bundle.read(fetched(address, tmp_path / "cache")) == bundle.read(tiny_bundle)
        shutil.rmtree(folder)
        tiny.write(folder, version="2" + "-and-longer" * 20)
        assert bundle.read(fetched(address, tmp_path / "cache")) == bundle.read(folder)
        with pytest.raises(BundleError, match=r"^hf://owner/repo@main/shop/4 cannot be fetched"):
            fetched(address.replace("/3", "/4"), tmp_path / "cache")
