"""Unattended: a class that the model never saw is refused, labelled, learned, promoted, and accepted under its name."""

import importlib.util
from pathlib import Path

import pytest

from tests.loop import shop
from tests.training.fit import test_fit as fruit
from tests.training.network.test_frozen import write_extractor

LIME = (60, 205, 190)  # of the sea
IMAGES = 36  # of the new class that the stream holds


def test_what_was_refused_is_accepted_under_its_name(tmp_path: Path) -> None:
    if importlib.util.find_spec("sklearn") is None:
        pytest.skip("scikit-learn is not installed: the review groups nothing without it")
    fruit.COLOURS["lime"] = LIME
    data, models = tmp_path / "shop", tmp_path / "models"
    for i, (name, count) in enumerate(fruit.COUNTS.items()):
        fruit.save(data / "train" / name, name, count, 1000 * i)
        fruit.save(data / "test" / name, name, 6, 1000 * i + 500)
    fruit.save(data / "outliers", "sky", 20, 8000)
    fruit.save(tmp_path / "stream", "lime", IMAGES, 20_000)
    fruit.save(tmp_path / "fresh", "lime", 6, 30_000)
    write_extractor(tmp_path / "means.onnx")
    shop.run("fit", data, "--outliers", data / "outliers", "--name", "shop", "--out", models, "--work",
             tmp_path / "fit", "--heads", "oe", "--epochs", 15, "--batch-images", 16, "--calibration-fraction", 0.3,
             "--backbone", f"onnx:{tmp_path / 'means.onnx'}", "--device", "cpu", "--threads", 1)  # fmt: skip
    settings = {
        "BUNDLE": models / "shop" / "1", "LEDGER": tmp_path / "ledger.sqlite3", "KEEP": "rejected",
        "INFERENCE_THREADS": 1,
    }  # fmt: skip
    stream = sorted((tmp_path / "stream").iterdir())
    with shop.serving(settings, {}) as service:
        refused = [answer for answer in service.send(stream, "lime") if answer["decision"] == "reject"]
        assert len(refused) >= IMAGES // 3
        service.send(sorted((data / "test" / "apple").iterdir()), "apple")
        service.wait_for(len(refused) // 2)
        said = service.label_groups(list(fruit.COUNTS), most=100)
        assert said["lime"] >= len(refused) // 2
        export = service.export(tmp_path / "export")
        printed = shop.run("learn", tmp_path / "fit" / "oe", "--from", export, "--out", models, "--work",
                           tmp_path / "learn", "--allow-worse", "--threads", 1)  # fmt: skip
        assert "new lime" in printed
        new = models / "shop" / "2"
        service.promote(new, "--shadow", "--share", 1)
        service.send(stream, "lime")
        known = service.promote(new, "--least-compared", 5, "--least-reviewed", 0, "--most-disagreement", 1)
        assert "in force: shop version 2" in known
        answers = service.send(sorted((tmp_path / "fresh").iterdir()), "lime")
        assert [answer["label"] for answer in answers] == ["lime"] * 6
        assert sum(answer["decision"] == "accept" for answer in answers) >= 4
    with shop.serving(settings, {}) as service:  # and it stays in force
        assert service.get("/model")["version"] == "2"
