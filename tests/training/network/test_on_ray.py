"""`--on ray` on a real local cluster: the very features of one machine, whoever is killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.contract import bundle
from tests.service.score.test_on_ray import LIMIT_S, needs_ray, run, workers
from tests.training.network.test_features import PLAIN, graph
from tests.training.network.test_frozen import write_extractor
from training import trainer
from training.config import Config
from training.data.fitted import Fitted
from training.data.readers import DataError, pixel_keys
from training.finished import Evaluate
from training.fit.command import Fit
from training.network import on_ray
from training.network.features import FeatureCache

IMAGES = 960
SIDE_PX = 640


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of photographs that take a while to decode, and outliers; many links to few files."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for i in range(4):
        pixels = random.integers(0, 256, (SIDE_PX, SIDE_PX, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{i}.jpg", quality=95)
    for folder, first in (("data/train/one", 0), ("data/train/two", 1), ("data/test/one", 0), ("data/test/two", 1)):
        (root / folder).mkdir(parents=True)
        for i in range(IMAGES // 2 if "train" in folder else 4):
            content = (root / f"{first + 2 * (i % 2)}.jpg").read_bytes() + b"%d" % i  # after the end of its picture
            (root / folder / f"{i:05}.jpg").write_bytes(content)
    write_extractor(root / "means.onnx")
    return root


def command(photos: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "training", "train", "--dataset", "folder", "--data", str(photos / "data"),
            "--backbone", f"onnx:{photos / 'means.onnx'}", "--method", "msp", "--group-by", "none", "--device", "cpu",
            "--threads", "2", "--feature-views", "1", "--epochs", "1", "--out", str(out), *more]  # fmt: skip


def marked(folder: Path) -> int:
    """Chunks of training images whose features are on disk."""
    marks = list(folder.glob("train-*.done"))
    return int(np.fromfile(marks[0], np.uint8).sum()) if marks else 0


def wait_for(chunks: int, folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while marked(folder) < chunks:
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(process.communicate()[1])
        time.sleep(0.02)


@needs_ray
@pytest.mark.timeout(600)
def test_the_features_of_one_machine_with_a_worker_and_then_the_driver_stopped(photos: Path, tmp_path: Path) -> None:
    here, out = tmp_path / "here", tmp_path / "ray"
    process = run(command(photos, here))
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors

    process = run(command(photos, out, "--on", "ray"))
    wait_for(4, out / "features", process)
    killed = workers("Looking")
    assert len(killed) == 2
    os.kill(killed[0], signal.SIGKILL)
    wait_for(marked(out / "features") + 1, out / "features", process)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal: all that this command has started gets it
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode != 0
    assert "Traceback" not in errors or "KeyboardInterrupt" in errors
    kept = marked(out / "features")
    assert 5 <= kept < IMAGES // 32
    assert workers("Looking") == []

    process = run(command(photos, out, "--on", "ray"))
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    files = sorted(path.name for path in (here / "features").glob("*.npy"))
    assert len(files) >= 3
    for name in files:
        assert (out / "features" / name).read_bytes() == (here / "features" / name).read_bytes()
    Evaluate(run=out, device="cpu").cli_cmd()  # what is on disk needs no Ray


@needs_ray
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own
def test_arrays_travel_and_other_files_are_refused(tmp_path: Path) -> None:
    """Workers of a cluster that this program has begun: it stays as it is."""
    import ray

    target = bundle.Input(height_px=6, width_px=6, fit="stretch", resampling="bilinear")
    pixels = np.random.default_rng(1).integers(0, 256, (70, 9, 9, 3), np.uint8)
    arrays = Fitted(pixels, pixel_keys(pixels), target)
    files = []
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
        files.append(str(tmp_path / f"{i}.png"))
    others = Fitted(files, np.arange(len(files), dtype=np.uint64), target)  # of no file are these the keys

    def cache(name: str, on: str) -> FeatureCache:
        config = Config(dataset="folder", data=tmp_path, backbone="lite0", threads=2, on=on)  # type: ignore[arg-type]
        return FeatureCache(tmp_path / name, graph(), PLAIN, extra_views=1, threads=2, run=on_ray.runner(config))

    on_ray.cluster.require_ray()
    begun = ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        found = cache("ray", "ray").features("train", arrays)
        np.testing.assert_array_equal(found, cache("here", "here").features("train", arrays))
        with pytest.raises(DataError, match=r"0\.png cannot be read as an image \(it is not the file .* same paths"):
            cache("ray", "ray").features("others", others)
        assert ray.is_initialized()
    finally:
        ray.shutdown()
        shutil.rmtree(begun.address_info["session_dir"], ignore_errors=True)


def test_without_ray_the_package_is_named_before_work_begins(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    config = Config(dataset="folder", data=photos / "nothing", backbone="lite0", on="ray")
    with pytest.raises(DataError, match=r"pip install 'tailguard\[ray\]'"):
        trainer.train(config, tmp_path / "run")
    with pytest.raises(DataError, match=r"pip install 'tailguard\[ray\]'"):
        Fit(data=photos / "nothing", on="ray").cli_cmd()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", [{}, {"backbone": "lite0", "tune": "full"}])
def test_a_backbone_that_learns_is_refused_with_the_reason(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="--on ray is for a frozen backbone, whose features are computed once"):
        Config(on="ray", **given)  # type: ignore[arg-type]
