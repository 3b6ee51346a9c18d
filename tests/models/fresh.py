"""What a bundle does on images that nobody chose it by: AUROC of OOD folders, refusals of fresh images by group.

    python -m tests.models.fresh models/cifar10-lt/2 --known NPZ_OR_FOLDER --ood DIR --ood DIR

`--known` holds images uint8 [N, H, W, 3] and labels int [N] under those names, or is a folder of class folders.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel
from pydantic_settings import CliApp, CliPositionalArg

from service.contract import bundle, decision
from service.contract.images import fit, load
from training.data import folders
from training.data.processes import usable_cpus
from training.evaluation.metrics import ood_metrics

MAX_PIXELS = 50_000_000
BATCH_IMAGES = 32


class Served:
    """A bundle as the service runs it: the same decoding, graph and decision, without HTTP."""

    def __init__(self, folder: Path) -> None:
        self.manifest = bundle.read(folder)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession((folder / bundle.GRAPH_FILE).read_bytes(), options)
        self.names = [output.name for output in self.session.get_outputs()]

    def pixels(self, image: Any) -> NDArray[np.uint8]:
        """A path or an array uint8 [H, W, 3] at the size of the model."""
        if isinstance(image, Path):
            return load(image.read_bytes(), self.manifest.input, max_pixels=MAX_PIXELS).pixels
        return fit(Image.fromarray(image), self.manifest.input)

    def run(self, images: Any) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Predicted classes [N] and deciding scores [N]."""

        def one(start: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
            batch = np.stack([self.pixels(image) for image in images[start : start + BATCH_IMAGES]])
            found = dict(zip(self.names, self.session.run(None, {"images": batch}), strict=True))
            return found["probabilities"].argmax(axis=1), found[self.manifest.deciding_score].astype(np.float64)

        with ThreadPoolExecutor(usable_cpus()) as pool:
            parts = list(pool.map(one, range(0, len(images), BATCH_IMAGES)))
        return np.concatenate([p for p, _ in parts]), np.concatenate([s for _, s in parts])

    def rejected(self, predicted: NDArray[np.int64], scores: NDArray[np.float64]) -> NDArray[np.bool_]:
        """bool [N] at the default operating point."""
        point = self.manifest.operating_points[self.manifest.default_operating_point]
        scope = self.manifest.threshold_scope
        limits = [decision.threshold(point, scope, c.group) for c in self.manifest.classes]
        return ~(scores <= np.array(limits)[predicted])


def known(path: Path, classes: list[str]) -> tuple[Any, NDArray[np.int64]]:
    if path.is_dir():
        files = folders.image_files(path)
        return files, np.array([classes.index(f.parent.name) for f in files])
    with np.load(path) as kept:
        return kept["images"], kept["labels"]


class Fresh(BaseModel):
    bundle: CliPositionalArg[Path]
    known: Path
    ood: list[Path] = []

    def cli_cmd(self) -> None:
        print(json.dumps(measure(self.bundle, self.known, self.ood), indent=1))


def measure(folder: Path, inside: Path, ood: list[Path]) -> dict[str, Any]:
    """Accuracy, refusals by true group, and AUROC, FPR95 and share caught of each OOD folder or array."""
    served = Served(folder)
    info = served.manifest.classes
    images, labels = known(inside, [c.name for c in info])
    predicted, scores = served.run(images)
    refused, groups = served.rejected(predicted, scores), np.array([c.group for c in info])
    found: dict[str, Any] = {"images": len(labels), "accuracy": float((predicted == labels).mean()), "refused": {}}
    for group in sorted(set(groups)):
        true, own = groups[labels] == group, groups[predicted] == group
        found["refused"][group] = {
            "of the group": float(refused[true].mean()), "predicted in it": float(refused[own].mean()),
        }  # fmt: skip
    for path in ood:
        outside = np.load(path) if path.suffix == ".npy" else folders.image_files(path)
        classes, values = served.run(outside)
        metrics = ood_metrics(scores, values)
        found[path.name] = {
            "images": len(values), "auroc": metrics.auroc, "fpr95": metrics.fpr95,
            "caught": float(served.rejected(classes, values).mean()),
        }  # fmt: skip
    if ood:
        found["mean auroc"] = float(np.mean([found[p.name]["auroc"] for p in ood]))
    return found


if __name__ == "__main__":
    CliApp.run(Fresh)
