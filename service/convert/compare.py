"""Does a converted graph decide as the bundle's does in ONNX Runtime? Decisions first, then the numbers behind them.

In int8 no two ways of computing agree to the bit: sums are rounded at other places, and through dozens of layers that
reaches the scores. ONNX Runtime itself decides otherwise on a few images when it computes the same graph node by node,
without its optimisations. So that is measured on the same images and is what a converted graph may differ by, and a
little more; for an fp32 graph it is next to nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.bundle import Manifest
from service.contract.decision import Scope, decide_row
from service.contract.embedding import EMBEDDING
from service.contract.reasons import QUALITY
from service.convert.errors import ConvertError
from service.inference.golden import PROBABILITY_TOLERANCE, score_tolerance

MOST_CHANGED = 0.005  # of the images, beyond what ONNX Runtime itself changes
LESS_COSINE = 0.001  # of the embeddings, their mean
QUALITY_TOLERANCE = 1e-3  # measures of pixels, in float32 in every precision
BATCH_IMAGES = 16
SCOPES: tuple[Scope, ...] = ("group", "global")

Answers = dict[str, NDArray[np.float32]]  # by the name of an output, each [N, …]
Run = Callable[[NDArray[np.uint8]], Answers]  # of a batch uint8 [n, H, W, 3], n as it comes
Figures = dict[str, Any]


def answered(run: Run, pixels: NDArray[np.uint8]) -> Answers:
    """The answers for `pixels` [N, H, W, 3], BATCH_IMAGES at a time; the first and last batch may have other sizes."""
    cuts = [0, 1, *range(1 + BATCH_IMAGES, len(pixels), BATCH_IMAGES), len(pixels)]
    parts = [run(pixels[a:b]) for a, b in pairwise(cuts) if b > a]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True)
class Decided:
    """`classes` [N]; `refused` by "point, scope", each bool [N]."""

    classes: NDArray[np.int64]
    refused: dict[str, NDArray[np.bool_]]


def decided(manifest: Manifest, answers: Answers, sides_px: list[int]) -> Decided:
    """What the service would decide at every operating point, with thresholds of either scope."""
    refused: dict[str, NDArray[np.bool_]] = {}
    quality = answers.get(QUALITY)
    for point in manifest.operating_points:
        for scope in SCOPES:
            refused[f"{point}, {scope}"] = np.array([
                decide_row(
                    manifest, probabilities, {name: float(answers[name][k]) for name in manifest.scores}, point, scope,
                    None if quality is None else quality[k], sides_px[k],
                ).decision == "reject"
                for k, probabilities in enumerate(answers["probabilities"])
            ])  # fmt: skip
    return Decided(answers["probabilities"].argmax(axis=1), refused)


def difference(manifest: Manifest, one: Answers, two: Answers, sides_px: list[int]) -> Figures:
    """How far `two` is from `one`: shares of images, and the largest deviation of every output.

    `decisions_changed` is the share of images whose class, or whose accept or reject at any operating point and scope,
    differs; `by_point` the same at each alone, with the shares refused in `one` and `two`.
    """
    a, b = decided(manifest, one, sides_px), decided(manifest, two, sides_px)
    moved = a.classes != b.classes
    differ = {name: a.refused[name] != b.refused[name] for name in a.refused}
    cosine = {} if EMBEDDING not in one else {
        "embedding_cosine": float((one[EMBEDDING].astype(np.float64) * two[EMBEDDING]).sum(axis=1).mean())
    }  # fmt: skip
    return cosine | {
        "decisions_changed": _share(np.logical_or.reduce([moved, *differ.values()])),
        "class_changed": _share(moved),
        "by_point": {
            name: {
                "changed": _share(moved | flags), "refused": _share(a.refused[name]),
                "refused_converted": _share(b.refused[name]),
            }
            for name, flags in differ.items()
        },
        "largest_deviation": {name: _largest(one[name], two[name]) for name in one},
    }  # fmt: skip


def limits(manifest: Manifest, own: Figures) -> Figures:
    """What a converted graph may differ by, where ONNX Runtime itself differs by `own`.

    Of numbers as the service allows at a golden example of this precision: of a score a share of its spread.
    """
    off = own["largest_deviation"]
    scores = {name: off[name] + score_tolerance(manifest, name, 0.0) for name in manifest.scores}
    numbers = {"probabilities": off["probabilities"] + PROBABILITY_TOLERANCE[manifest.precision]} | scores
    if QUALITY in off:
        numbers[QUALITY] = off[QUALITY] + QUALITY_TOLERANCE
    allowed: Figures = {"decisions_changed": own["decisions_changed"] + MOST_CHANGED, "largest_deviation": numbers}
    if "embedding_cosine" in own:
        allowed["embedding_cosine"] = own["embedding_cosine"] - LESS_COSINE
    return allowed


def beyond(found: Figures, allowed: Figures) -> list[str]:
    """What of `found` is not within `allowed`, in words; a deviation that is no number is beyond every limit."""
    said = []
    if not found["decisions_changed"] <= allowed["decisions_changed"]:
        said.append(
            f"{found['decisions_changed']:.2%} of decisions change (at most {allowed['decisions_changed']:.2%} may)"
        )
    for name, most in allowed["largest_deviation"].items():
        off = found["largest_deviation"][name]
        if not off <= most:
            said.append(f"{name} is off by up to {off:.3g} (at most {most:.3g})")
    if "embedding_cosine" in allowed and not found["embedding_cosine"] >= allowed["embedding_cosine"]:
        said.append(
            f"embeddings have cosine {found['embedding_cosine']:.4f} (at least {allowed['embedding_cosine']:.4f})"
        )
    return said


def require_outputs(manifest: Manifest, answers: Mapping[str, NDArray[Any]], like: Answers) -> None:
    """ConvertError unless `answers` has the outputs of `like`, each with its shape."""
    if wrong := [name for name in like if name not in answers or answers[name].shape != like[name].shape]:
        got = {name: list(values.shape) for name, values in answers.items()}
        raise ConvertError(f"the converted graph of {manifest.name} {manifest.version} gives {got}: {wrong} are not as "
                           "in ONNX, so nothing was written")  # fmt: skip


def _largest(one: NDArray[Any], two: NDArray[Any]) -> float:
    """The largest difference; infinite where only one of the two is a number."""
    both = np.isnan(one) & np.isnan(two)
    off = np.abs(np.where(both, 0.0, one.astype(np.float64) - two))
    return float(np.nan_to_num(off, nan=np.inf).max())


def _share(flags: NDArray[np.bool_]) -> float:
    return float(flags.mean())
