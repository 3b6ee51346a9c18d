"""What a bundle does on images that nobody chose it by: AUROC of OOD folders, refusals of fresh images by group.

    python -m tests.models.fresh models/cifar10-lt/2 --known NPZ_OR_FOLDER --ood DIR --ood DIR

`--known` holds images uint8 [N, H, W, 3] and labels int [N] under those names, or is a folder of class folders.
Decoding, graph and decision are those of the service, without HTTP.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from pydantic_settings import CliApp, CliPositionalArg

from service.contract import bundle
from service.contract.bundle import Manifest
from service.contract.calibration.calibrate import rejected, shares
from training.data.fitted import Fitted
from training.data.folders import image_files, unlabelled_files
from training.data.processes import usable_cpus
from training.evaluation.metrics import ood_metrics
from training.evaluation.predict import Outputs
from training.export.graph import onnx_predict


def known(path: Path, classes: list[str]) -> tuple[Any, NDArray[np.int64]]:
    """(files or images, labels [N])."""
    if path.is_dir():
        files = image_files(path)
        return [str(f) for f in files], np.array([classes.index(f.parent.name) for f in files])
    with np.load(path) as kept:
        return kept["images"], kept["labels"]


def refused(manifest: Manifest, outputs: Outputs) -> NDArray[np.bool_]:
    """bool [N] at the default operating point."""
    point = manifest.operating_points[manifest.default_operating_point].model_dump()
    groups = np.array([c.group for c in manifest.classes])[outputs.predictions]
    return rejected(outputs.scores[manifest.deciding_score], groups, point, manifest.threshold_scope)


def measure(folder: Path, inside: Path, ood: list[Path]) -> dict[str, Any]:
    """Accuracy, refusals by true and by predicted group, and AUROC, FPR95 and share caught of each OOD set."""
    manifest = bundle.read(folder)
    predict = onnx_predict((folder / bundle.GRAPH_FILE).read_bytes(), workers=usable_cpus())

    def seen(source: Any) -> Outputs:
        return predict(Fitted(source, np.arange(len(source), dtype=np.uint64), manifest.input))

    images, labels = known(inside, [c.name for c in manifest.classes])
    outputs = seen(images)
    flags, groups = refused(manifest, outputs), np.array([c.group for c in manifest.classes])
    names = [group.name for group in manifest.groups]
    found: dict[str, Any] = {
        "images": len(labels), "accuracy": float((outputs.predictions == labels).mean()),
        "refused of the group": shares(flags, groups[labels], names),
        "refused of those predicted in it": shares(flags, groups[outputs.predictions], names),
    }  # fmt: skip
    scores = outputs.scores[manifest.deciding_score]
    for path in ood:
        outside = seen(np.load(path) if path.suffix == ".npy" else unlabelled_files(path))
        metrics = ood_metrics(scores, outside.scores[manifest.deciding_score])
        found[path.name] = {
            "images": len(outside.predictions), "auroc": metrics.auroc, "fpr95": metrics.fpr95,
            "caught": float(refused(manifest, outside).mean()),
        }  # fmt: skip
    if ood:
        found["mean auroc"] = float(np.mean([found[p.name]["auroc"] for p in ood]))
    return found


class Fresh(BaseModel):
    bundle: CliPositionalArg[Path]
    known: Path
    ood: list[Path] = []

    def cli_cmd(self) -> None:
        print(json.dumps(measure(self.bundle, self.known, self.ood), indent=1))


if __name__ == "__main__":
    CliApp.run(Fresh)
