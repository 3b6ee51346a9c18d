"""Data and settings small enough that a run takes a second: what several test files train on."""

import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from training.config import Config
from training.export import bundle as export
from training.methods.step import Step
from training.network.network import Network
from training.runs import checkpoint

SHARED = Path(__file__).resolve().parents[3] / "shared"
GOLDEN = SHARED / "golden" / "pascl.json"
NAMES_10 = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@contextmanager
def quick_export(parity_images: int) -> Iterator[pytest.MonkeyPatch]:
    """Exports with fewer images compared, and no plots on the card."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "PARITY_IMAGES", parity_images)
        patch.setattr(export.card, "plots", lambda draft: {})
        yield patch


def config(**changes: Any) -> Config:
    """Digits at imbalance 10, 55% of them for calibration: 181 training images, 5 steps of 32; the least width."""
    settings: dict[str, Any] = {
        "dataset": "digits", "imbalance": 10, "width": 8, "epochs": 2, "batch_images": 32, "stage2_epochs": 1,
        "stage2_batch_images": 64, "device": "cpu", "precision": "fp32", "threads": 1, "method": "pascl-abf",
        "calibration_fraction": 0.55,
    }  # fmt: skip
    return Config(**settings | changes)


def ended() -> int:
    """The number of a process that there is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def step(**given: Any) -> Step:
    """A Step of the tensors given: logits [n, C] or [V, n, C], outlier_logits [m, C], and so on.

    What is not given is empty, has the sizes of what is, or is what a run would put there: classes of equal counts,
    the rarest 40% the tail, a generator of seed 0.
    """
    inside = given.pop("logits", torch.zeros(1, 0, given.get("outlier_logits", torch.zeros(0, 8)).shape[-1]))
    logits = inside if inside.dim() == 3 else inside[None]
    views, n, num_classes = logits.shape
    outlier_logits = given.pop("outlier_logits", logits.new_zeros(0, num_classes))
    m = len(outlier_logits)

    def per_view(name: str) -> Tensor:
        found: Tensor = given.pop(name, logits.new_zeros(views, n, 0))
        return found if found.dim() == 3 else found[None]

    labels = given.pop("labels", torch.zeros(n, dtype=torch.int64))
    fields = {
        "network": given.pop("network", None) or Network(num_classes, width=1),
        "logits": logits, "reject": per_view("reject"), "features": per_view("features"), "labels": labels,
        "outlier_logits": outlier_logits,
        "outlier_reject": given.pop("outlier_reject", logits.new_zeros(m, 0)),
        "outlier_features": given.pop("outlier_features", logits.new_zeros(m, 0)),
        "projected": per_view("projected"),
        "outlier_projected": given.pop("outlier_projected", logits.new_zeros(m, 0)),
        "batch_labels": given.pop("batch_labels", labels),
        "counts": given.pop("counts", torch.full((num_classes,), 10)),
        "tail": given.pop("tail", torch.arange(num_classes) >= round(0.6 * num_classes)),
        "generator": given.pop("generator", torch.Generator().manual_seed(0)),
    }  # fmt: skip
    assert not given, f"a Step has no {', '.join(given)}"
    return Step(**fields)


def options(settings: Config) -> list[str]:
    """The same settings on the command line."""
    given = settings.model_dump(mode="json", exclude_unset=True)
    return [part for k, v in given.items() for part in (f"--{k.replace('_', '-')}", str(v))]


def assert_same_run(one: Path, two: Path) -> None:
    """History and every weight of two finished runs are bit-identical."""
    a, b = checkpoint.load(one), checkpoint.load(two)
    assert a["stage"] == b["stage"] == "done"
    assert a["history"] == b["history"]
    for key in ("network", "branch"):
        assert (a.get(key) is None) == (b.get(key) is None)
        if a.get(key) is not None:
            assert_same_weights(a[key], b[key])


def assert_same_weights(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    differ = [name for name in one if not torch.equal(one[name], two[name])]
    assert not differ


def cifar_rows(images: np.ndarray) -> np.ndarray:
    """uint8 [N, 32, 32, 3] → CIFAR's [N, 3072]: all red, then all green, then all blue."""
    return np.concatenate([images[..., channel].reshape(len(images), -1) for channel in range(3)], axis=1)


def dump(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def write_cifar10(folder: Path, *, per_batch: int = 10, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10's files with random pixels; labels run 0, 1, … 9, 0, … Returns (images, labels) of train + test."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (6 * per_batch, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(6 * per_batch) % 10
    files = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for i, name in enumerate(files):
        part = slice(i * per_batch, (i + 1) * per_batch)
        dump(folder / name, {"data": cifar_rows(images[part]), "labels": labels[part].tolist(), "batch_label": name})
    dump(folder / "batches.meta", {"label_names": NAMES_10})
    return images, labels
