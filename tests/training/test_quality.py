"""A small regression of quality: accuracy and AUROC of short runs on digits, against what was measured, with slack."""

import pytest
import torch

from training import trainer
from training.config import Config
from training.data import loading
from training.evaluation import evaluate, predict
from training.runs import checkpoint

CPU = torch.device("cpu")
# (accuracy, AUROC against the digit 9): of oe the lowest of the seeds 0 to 2, of tailguard of the seeds 0 and 1
MEASURED = {"oe": (0.918, 0.795), "tailguard": (0.920, 0.729)}
SLACK = 0.03  # for another version of torch, whose sums differ; a fault in a loss or a sampler costs more


@pytest.mark.parametrize("method", MEASURED)
def test_accuracy_and_auroc_are_not_below_what_was_measured(method, tmp_path):
    config = Config(
        dataset="digits", imbalance=10, width=8, batch_images=32, epochs=10, calibration_fraction=0.2, threads=1,
        device="cpu", precision="fp32", method=method,
    )  # fmt: skip
    run = checkpoint.trained(trainer.train(config, tmp_path / "run"))
    data = loading.load(run.config, run.folder)
    predictor = predict.torch_predict(predict.deployed(run), CPU)
    results, _, _ = evaluate.evaluate(predictor, data.test, data.ood, run.train_counts, run.method.score)
    accuracy, auroc = MEASURED[method]
    assert results["accuracy"] >= accuracy - SLACK
    assert results["mean"]["auroc"] >= auroc - SLACK
