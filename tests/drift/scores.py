"""Deciding scores of real images by the embedded bundle, kept beside this file: `python -m tests.drift.scores DIR`.

DIR as /work/shared/data/unpack.py or the data sets' own pages leave it: cifar-10-batches-py, cifar-100-python and
ood/<set>.npy. The simulation needs only what is kept, neither the images nor onnxruntime.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.contract.bundle import Manifest, read
from tests.live import ROOT

BUNDLE = ROOT / "models" / "cifar10-lt" / "1"
GROUPS = read(BUNDLE).group_names  # the last is the tail
KEPT = Path(__file__).parent / "scores.npz"
IMAGES_PER_OOD_SET = 2000
BATCH_IMAGES = 100
NO_LABEL = 255
IN_DISTRIBUTION = ("calibration", "test")


@dataclass(frozen=True)
class Scored:
    """`score` float32 [N], larger = more outlying; `predicted` and `label` uint8 [N], 255: outside all classes."""

    score: NDArray[np.float32]
    predicted: NDArray[np.uint8]
    label: NDArray[np.uint8]


def load(path: Path = KEPT) -> dict[str, Scored]:
    """The kept scores by set: calibration (the very split behind the manifest), test (CIFAR-10), then the OOD sets."""
    with np.load(path) as kept:
        names = list(dict.fromkeys(key.rsplit(".", 1)[0] for key in kept.files))
        return {n: Scored(kept[f"{n}.score"], kept[f"{n}.predicted"], kept[f"{n}.label"]) for n in names}


def images(folder: Path, manifest: Manifest) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.int64] | None]]:
    """uint8 [N, 32, 32, 3] and labels by set; the calibration split is cut again as training cut it."""
    from training.data import loading, readers, splits

    recipe = manifest.evaluation["recipe"]
    train, test = readers.cifar(folder, hundred=False)
    tailed = splits.long_tail_cut(train, recipe["imbalance"])
    calibration = tailed.take(calibration_by_position(tailed.labels, recipe["calibration_fraction"]))
    found: dict[str, tuple[NDArray[np.uint8], NDArray[np.int64] | None]] = {
        "calibration": (calibration.images, calibration.labels),
        "test": (test.images, test.labels),
    }
    ood = loading.ood_sets([folder / "ood"], 32) | {"cifar100": readers.cifar(folder, hundred=True)[1].images}
    random = np.random.default_rng(0)
    for name in manifest.evaluation["ood"]:
        count = min(IMAGES_PER_OOD_SET, len(ood[name]))
        found[name] = (ood[name][np.sort(random.permutation(len(ood[name]))[:count])], None)
    return found


def calibration_by_position(labels: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    """Which images of models/cifar10-lt/1 were held back: training chose by position before it chose by content."""
    random = np.random.default_rng(0)
    chosen = []
    for label in range(labels.max() + 1):
        members = random.permutation(np.flatnonzero(labels == label))
        n = round(fraction * len(members))
        chosen.append(members[: max(n, 1) if len(members) >= 5 else min(n, len(members) - 1)])
    return np.sort(np.concatenate(chosen))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DIR")
    given = parser.parse_args()
    from service.inference.engine import Engine

    manifest = read(BUNDLE)
    engine = Engine(BUNDLE, manifest)
    columns: dict[str, NDArray[np.generic]] = {}
    for name, (pixels, labels) in images(given.data, manifest).items():
        answers = [engine.run(pixels[i : i + BATCH_IMAGES]) for i in range(0, len(pixels), BATCH_IMAGES)]
        score = np.concatenate([a.scores[manifest.deciding_score] for a in answers])
        columns[f"{name}.score"] = score
        columns[f"{name}.predicted"] = np.concatenate([a.probabilities.argmax(1) for a in answers]).astype(np.uint8)
        columns[f"{name}.label"] = (np.full(len(score), NO_LABEL) if labels is None else labels).astype(np.uint8)
        print(f"{name}: {len(score)} images, mean score {score.mean():.3f}")
    np.savez_compressed(KEPT, **columns)


if __name__ == "__main__":
    main()
