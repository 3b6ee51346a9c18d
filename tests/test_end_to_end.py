"""Digits: train → evaluate → calibrate → export → serve over a real socket → different decisions in and out."""

import json
import subprocess
import sys
from pathlib import Path

from service.contract import bundle
from tests import live
from training.data import readers


def run(*arguments: object) -> str:
    command = [sys.executable, "-m", "training", *map(str, arguments)]
    done = subprocess.run(command, cwd=live.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_from_images_to_decisions_over_http(tmp_path: Path) -> None:
    out = tmp_path / "run"
    sizes = ["--batch-images", 32, "--stage2-batch-images", 32, "--epochs", 12, "--stage2-epochs", 3]
    run("train", "--dataset", "digits", "--imbalance", 4, "--width", 8, *sizes, "--calibration-fraction", 0.2,
        "--threads", 1, "--out", out)  # fmt: skip
    assert "AUROC" in run("evaluate", out)
    assert "id95" in run("calibrate", out)
    run("export", out, "--out", tmp_path / "models")

    folder = tmp_path / "models" / "digits" / "1"
    manifest = bundle.read(folder)
    results = json.loads((out / "results.json").read_text())
    assert manifest.precision == "int8"
    assert abs(manifest.evaluation["accuracy"] - results["accuracy"]) < 0.05
    assert (folder / "CARD.md").read_text().count("plots/") >= 1

    _, test, _, nines = readers.digits()
    found = live.report(folder, test.images, test.labels, {"nines": nines})
    cost = manifest.operating_points["id95"].group_cost.test
    assert cost is not None
    assert cost.outliers_caught is not None
    # a served decision is the measured one: the same graph, the same decoding, the same thresholds
    assert abs(found["accuracy"] - manifest.evaluation["accuracy"]) < 0.01
    assert abs(found["id_rejected"] - cost.id_rejected) < 0.01
    assert abs(found["nines"] - cost.outliers_caught) < 0.01
    assert found["accuracy"] > 0.8
    assert found["nines"] > 2 * found["id_rejected"]
