"""AUROC of a run's score per OOD set, as the images are and with both sides resized alike.

    python -m tests.resizing.measure runs/RUN --ood ood/ [--out results.json]

Images that were brought to 32 px from larger ones carry the traces of that; CIFAR's own do not carry the same. Where
both sides go through the same resampling the traces become alike: what is left of the AUROC is not owed to them.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import BaseModel
from pydantic_settings import CliApp, CliPositionalArg

from training.data.loading import load, ood_sets
from training.data.readers import Pixels
from training.evaluation.metrics import ood_metrics
from training.evaluation.predict import Predict, deployed, torch_predict
from training.network.device import find_device
from training.runs import checkpoint
from training.runs.files import write_json

BILINEAR, LANCZOS, BOX = Image.Resampling.BILINEAR, Image.Resampling.LANCZOS, Image.Resampling.BOX
WAYS = {  # side in between, filters there and back
    "as they are": None,
    "48 px and back, bilinear": (48, BILINEAR, BILINEAR),
    "128 px Lanczos, back bilinear": (128, LANCZOS, BILINEAR),
    "128 px Lanczos, back box": (128, LANCZOS, BOX),
    "24 px and back, bilinear": (24, BILINEAR, BILINEAR),
}


def resized(pixels: Pixels, way: str) -> Pixels:
    """uint8 [N, H, W, 3] through another size and back."""
    if (steps := WAYS[way]) is None:
        return pixels
    side, there, back = steps
    own = pixels.shape[2], pixels.shape[1]
    return np.stack([np.asarray(Image.fromarray(i).resize((side, side), there).resize(own, back)) for i in pixels])


def aurocs(predict: Predict, score: str, inside: Pixels, ood: dict[str, Pixels]) -> dict[str, dict[str, float]]:
    """way → OOD set → AUROC, OOD positive."""
    found: dict[str, dict[str, float]] = {}
    for way in WAYS:
        own = predict(resized(inside, way)).scores[score]
        found[way] = {
            name: round(ood_metrics(own, predict(resized(images, way)).scores[score]).auroc, 4)
            for name, images in ood.items()
        }
        found[way]["mean"] = float(np.mean(list(found[way].values())))
    return found


class Measure(BaseModel):
    run: CliPositionalArg[Path]
    ood: list[Path]
    images: int = 2000
    """Of each set, at most."""
    out: Path | None = None

    def cli_cmd(self) -> None:
        run = checkpoint.trained(self.run)
        data = load(run.config, self.run)
        score = run.method.score
        predict = torch_predict(deployed(run, train=data.train), find_device("cpu"))
        draw = np.random.default_rng(0)
        sets = {**data.ood, **ood_sets(self.ood, data.size_px)}
        few = {name: images[draw.permutation(len(images))[: self.images]] for name, images in sets.items()}
        inside = data.test.images[draw.permutation(len(data.test.images))[: self.images]]
        found = aurocs(predict, score, inside, few)
        names = list(next(iter(found.values())))
        print(f"{'AUROC, ' + run.config.method:32}" + "".join(f"{n:>18}" for n in names))
        for way, values in found.items():
            print(f"{way:32}" + "".join(f"{100 * values[n]:18.1f}" for n in names))
        if self.out:
            write_json(self.out, {"method": run.config.method, "score": score, "auroc": found})


if __name__ == "__main__":
    CliApp.run(Measure)
