"""Every row of METHODS from images to an answer of the service: it trains, is evaluated, calibrated, exported, served.

What the service says of a picture is what torch says of it: class, probabilities, every score, accept or reject. On
digits, of the rows whose networks have the same parts the first alone is exported and served: the graphs of the others
differ from it by their weights.
"""

import functools
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from service.contract.calibration.calibrate import rejected
from service.settings import Settings
from service.web.app import create_app
from tests.training import tiny
from training import finished, trainer
from training.config import Config
from training.data import folders, loading, readers
from training.data.readers import Pixels
from training.evaluation import predict
from training.evaluation.measure import data_groups
from training.methods.methods import METHODS
from training.runs import checkpoint

ASKED = 6  # images that the service is asked about: half of the test, half OOD
SERVED: set[str] = set()  # the parts of what has been exported here


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Any:
    """The same with fewer images compared at export, and no plots on the card."""
    with tiny.quick_export(300) as patch:
        patch.setattr(readers, "digits", functools.cache(readers.digits))
        yield


def png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def from_images_to_answers(config: Config, folder: Path, ood: list[Path]) -> None:
    out = trainer.train(config, folder / "run")
    finished.Evaluate(run=out, ood=ood).cli_cmd()
    finished.Calibrate(run=out).cli_cmd()  # on the OOD sets of evaluate
    run, loaded = checkpoint.trained(out), loading.load(config)
    record = finished.calibrated(out)
    assert record["score"] == run.method.score
    module = predict.deployed(run, record["temperature"], scores=[record["score"]], train=loaded.train)
    if not ood:
        if (parts := f"{run.method.score} {run.method.score_tau} {module}") in SERVED:
            return
        SERVED.add(parts)
    examples = folder / "examples"
    examples.mkdir()
    (examples / "one.png").write_bytes(png(loaded.test.images[0]))
    finished.Export(run=out, out=folder / "models", name="made", precision="fp32", examples=examples).cli_cmd()
    outside = next(iter(loaded.ood.values())) if loaded.ood else folders.unlabelled_pixels(ood[0], loaded.size_px)
    images = np.concatenate([loaded.test.images[: ASKED // 2], outside[: ASKED // 2]])
    expected = predict.torch_predict(module, torch.device("cpu"))(images)
    compare(expected, record, data_groups(loaded).of_class, folder / "models" / "made" / "1", images)


def compare(
    expected: predict.Outputs, record: dict[str, Any], groups: Any, bundle: Path, images: Pixels
) -> None:  # fmt: skip
    """The service's answers about `images` against torch's outputs and the calibrated thresholds."""
    settings = Settings(bundle=bundle, decode_threads=1, inference_threads=1)
    with TestClient(create_app(settings)) as client:
        for i, pixels in enumerate(images):
            headers, query = {"content-type": "image/png"}, {"top_k": len(groups)}
            response = client.post("/classify", content=png(pixels), headers=headers, params=query)
            assert response.status_code == 200, response.text
            answer = response.json()
            found = {c["class_index"]: c["probability"] for c in answer["top_k"]}
            expected_here = expected.probabilities[i]
            np.testing.assert_allclose([found[c] for c in range(len(groups))], expected_here, atol=1e-4)
            assert answer["scores"].keys() == expected.scores.keys()
            for name, value in answer["scores"].items():
                assert value == pytest.approx(float(expected.scores[name][i]), rel=1e-4, abs=1e-4), name
            second, first = np.sort(expected_here)[-2:]
            if first - second > 1e-4:  # no tie
                assert answer["class_index"] == expected.predictions[i]
            decides, value = answer["deciding_score"], float(expected.scores[record["score"]][i])
            assert decides["name"] == record["score"]
            point = finished_point(bundle, decides["operating_point"])
            group = groups[[answer["class_index"]]]
            assert decides["threshold"] == point["group_thresholds"][str(group[0])]
            if abs(value - decides["threshold"]) > 1e-4 * max(1, abs(value)):
                flagged = bool(rejected(np.array([value]), group, point, "group")[0])
                assert answer["decision"] == ("reject" if flagged else "accept")


def finished_point(bundle: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())["operating_points"][name]
    return found


@pytest.mark.parametrize("method", METHODS)
def test_from_images_to_answers_on_digits(method: str, tmp_path: Path) -> None:
    from_images_to_answers(tiny.config(method=method, calibration_fraction=0.2), tmp_path, [])


# ---- On photographs ----

CUT = 2000


def first_photographs(archive: Path, count: int) -> tuple[Pixels, Any]:
    """(images, labels): the archive keeps them as WebP mosaics of grid × grid tiles (shared/data/unpack.py)."""
    tiles: list[Pixels] = []
    with np.load(archive) as file:
        _, height, width, _ = map(int, file["shape"])
        grid = int(file["grid"])
        while len(tiles) * grid * grid < count:
            content = file[f"webp_{len(tiles):04d}"].tobytes()
            mosaic = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
            apart = mosaic.reshape(-1, height, grid, width, 3).transpose(0, 2, 1, 3, 4)
            tiles.append(apart.reshape(-1, height, width, 3))
        return np.concatenate(tiles)[:count], file["labels"][:count].astype(int)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10's files with the first 2,000 training images, the next 500 as its test, and outliers from the rest."""
    source = tiny.SHARED / "data" / "cifar10_train_full.npz"
    if not source.exists():
        pytest.skip(f"{source} is not there: CIFAR-10 comes with the project's shared folder")
    folder = tmp_path_factory.mktemp("cifar")
    images, labels = first_photographs(source, CUT + 1800)
    for i in range(5):
        part = slice(i * CUT // 5, (i + 1) * CUT // 5)
        rows = {"data": tiny.cifar_rows(images[part]), "labels": labels[part].tolist()}
        tiny.dump(folder / "data" / f"data_batch_{i + 1}", rows)
    test = slice(CUT, CUT + 500)
    tiny.dump(
        folder / "data" / "test_batch", {"data": tiny.cifar_rows(images[test]), "labels": labels[test].tolist()}
    )  # fmt: skip
    tiny.dump(folder / "data" / "batches.meta", {"label_names": tiny.NAMES_10})
    # what stands for outliers: the same photographs with their colours turned round, or upside down
    np.save(folder / "outliers.npy", 255 - images[CUT + 500 : CUT + 1500])
    np.save(folder / "upside_down.npy", images[CUT + 1500 : CUT + 1800, ::-1])
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("method", METHODS)
def test_from_images_to_answers_on_cifar(method: str, tmp_path: Path, cifar: Path) -> None:
    config = tiny.config(
        method=method, dataset="cifar10", data=cifar / "data", outliers=cifar / "outliers.npy", imbalance=None,
        calibration_fraction=0.2, batch_images=64,
    )  # fmt: skip
    from_images_to_answers(config, tmp_path, [cifar / "upside_down.npy"])
