"""Does the graph do what the network does? Decisions, embeddings, finite values, on images that are not for tests."""

import numpy as np
import torch
from numpy.typing import NDArray

from service.contract.calibration import calibrate
from training.data.loading import Data
from training.data.readers import Images
from training.evaluation.predict import Deployed, Outputs
from training.export.graph import onnx_embed
from training.network.network import to_input
from training.runs.files import Json


class ExportError(ValueError):
    """The graph does not decide as the network does; nothing was written."""


def decisions(outputs: Outputs, points: Json, score: str, groups: NDArray[np.str_]) -> NDArray[np.int64]:
    """[N, 1 + points]: the class, then accept or reject at each operating point with the thresholds by group."""
    columns = [outputs.predictions]
    for point in points.values():
        columns.append(
            calibrate.rejected(outputs.scores[score], groups[outputs.predictions], point, "group").astype(np.int64)
        )
    return np.stack(columns, axis=1)


def changed(one: Outputs, two: Outputs, points: Json, score: str, groups: NDArray[np.str_]) -> float:
    """Share of images whose class or any accept/reject differs."""
    both = (decisions(o, points, score, groups) for o in (one, two))
    return float((next(both) != next(both)).any(axis=1).mean())


def real_images(data: Data, count: int) -> Images:
    """`count` images that are neither test nor OOD test, half of them outliers where there are any.

    A small data set is gone through again, each time shifted by another pixel.
    """
    n = min(len(data.calibration_outliers) + len(data.outliers), count // 2)
    sets = ((count - n, data.calibration.images, data.train.images), (n, data.calibration_outliers, data.outliers))
    parts = [part for wanted, first, then in sets for part in (first[:wanted], then[: max(0, wanted - len(first))])]
    if any(part.ndim == 3 for part in parts):  # features cannot be shifted; the image's own view is the first
        return np.concatenate([part[:, :1] for part in parts])
    images = np.concatenate(parts)
    rounds = [np.roll(images, shift, axis=2) for shift in range(-(-count // len(images)))]
    return np.concatenate(rounds)[:count]


@torch.no_grad()
def cosine(module: Deployed, seen: Images, graph: bytes, images: Images) -> float:
    """Mean cosine of the embeddings that torch makes of `seen` and the graph of `images`, which are the same images."""
    assert module.embedding is not None
    features = module.scoring.trunk(to_input(torch.from_numpy(np.ascontiguousarray(seen))))
    return float((module.embedding(features).numpy() * onnx_embed(graph)(images)).sum(axis=1).mean())


def require_finite(outputs: Outputs, precision: str) -> None:
    """ExportError where a probability or a score is no number: a value of the trunk beyond the range of fp16."""
    if not all(np.isfinite(values).all() for values in (outputs.probabilities, *outputs.scores.values())):
        raise ExportError(f"in {precision} the graph gives values that are not finite: use --precision fp32")
