"""A checkpoint, or an exported graph, on the test images and OOD sets → one dictionary of results."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.loading import Data
from training.data.readers import ImageSet, Pixels
from training.data.whole import clear_killed, replacing
from training.evaluation import metrics, predict
from training.evaluation.predict import Outputs, Predict
from training.runs import checkpoint
from training.runs.checkpoint import Run
from training.runs.files import OUTPUTS_FILE, Json, jsonable, with_suffix
from training.scores.either import Either

CONVENTIONS = (
    "OOD is the positive class and scores are larger = more outlying (PASCL, EAT, ImOOD). fpr95: share of "
    "in-distribution images flagged when 95% of the OOD set is caught; fpr95_id_positive: share of OOD accepted when "
    "95% of in-distribution images are kept (ODIN, COCL). aupr is average precision with OOD positive and moves with "
    "the sizes of the sets. Means over OOD sets are unweighted."
)
RELIABILITY_BINS = 15
MAP_IMAGES = 1000


def evaluate(
    model: Predict, test: ImageSet, ood: Mapping[str, Pixels], train_counts: list[int], score: str
) -> tuple[Json, Outputs, dict[str, Outputs]]:
    """(results, outputs on the test images, outputs on each OOD set); `score` is the one that decides."""
    inside = model(test.images)
    outside = {name: model(images) for name, images in ood.items()}
    found = {
        name: ood_results(test.labels, inside.predictions, inside.scores[score], out.scores[score], train_counts)
        for name, out in outside.items()
    }
    return results_of(test.labels, inside, found, train_counts, score), inside, outside


def results_of(
    labels: NDArray[np.int64], inside: Outputs, ood: dict[str, Json], train_counts: list[int], score: str
) -> Json:
    """The results of in-distribution images with these labels [N], and what was found of each OOD set."""
    predictions = inside.predictions
    groups = metrics.group_accuracy(labels, predictions, train_counts)
    results: Json = {
        "conventions": CONVENTIONS,
        "score": score,
        "images": len(labels),
        "train_counts": [int(n) for n in train_counts],
        "groups": metrics.class_groups(train_counts),
        "accuracy": metrics.accuracy(labels, predictions),
        "class_accuracy": metrics.class_accuracy(labels, predictions, len(train_counts)),
        "group_accuracy": groups._asdict(),
        "reliability": reliability(labels, inside.probabilities),
    }
    results["ood"] = ood
    if ood:
        results["mean"] = unweighted_mean(list(ood.values()))
        results["acc_at_fpr"] = results["mean"]["acc_at_fpr"]
    found: Json = jsonable(results)
    return found


def evaluate_run(
    run: Run, data: Data, ood: Mapping[str, Pixels], score: str, device: torch.device, suffix: str = "",
    either: Either | None = None,
) -> Json:  # fmt: skip
    """The results of a finished run, with their provenance; the pictures of a table are drawn from its outputs.npz.

    `suffix` goes into the name of that file; `either` is what stands behind a score like "energy|msp".
    outputs.npz: labels, predictions and deciding scores [N] of the test images, the scores `ood/<name>` of each OOD
    set, and features [K, F] with labels [K] (−1 = OOD) of up to MAP_IMAGES images of either kind.
    """
    module = predict.deployed(run, scores=[score], train=data.train, device=device, either=either)
    model, shown = predict.torch_predict(module, device), data.test
    if data.folds:
        judged = data.folds.judge(score, either=either)
        results, inside, shown = judged.results(score), judged.outputs, data.folds.judged_images
        outside = {name: model(images) for name, images in ood.items()}
    else:
        results, inside, outside = evaluate(model, shown, ood, run.train_counts, score)
    kept = np.concatenate([np.flatnonzero(shown.labels == c)[: MAP_IMAGES // len(run.classes)]
                           for c in range(len(run.classes))])  # fmt: skip
    images = [shown.images[kept]] + [pixels[: MAP_IMAGES // len(ood)] for pixels in ood.values()]
    labels = np.full(sum(map(len, images)), -1)
    labels[: len(kept)] = shown.labels[kept]
    features = [predict.embed(run.scoring, part, device) for part in images]
    arrays = dict(
        labels=shown.labels.astype(np.int16), predictions=inside.predictions.astype(np.int16),
        scores=inside.scores[score], map_labels=labels.astype(np.int16),
        map_features=np.concatenate(features).astype(np.float32),
        **{f"ood/{name}": out.scores[score] for name, out in outside.items()},
    )  # fmt: skip
    path = with_suffix(run.folder / OUTPUTS_FILE, suffix)
    clear_killed(path)
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **arrays)
    return {
        "method": run.config.method,
        "seed": run.config.seed,
        "config": run.config.model_dump(mode="json"),
        "passes": run.method.passes,
        **results,
        "provenance": checkpoint.provenance() | {"training": run.provenance},
    }


def ood_results(
    labels: NDArray[np.int64], predictions: NDArray[np.int64], id_scores: NDArray[np.float32],
    ood_scores: NDArray[np.float32], train_counts: list[int],
) -> Json:  # fmt: skip
    """Every metric of REFERENCE A7 of one OOD set."""
    m = metrics.ood_metrics(id_scores, ood_scores)
    flagged = metrics.fpr_at_tpr_by_group(labels, id_scores, ood_scores, train_counts)
    arguments = (labels, predictions, id_scores, ood_scores)
    return {
        "images": len(ood_scores),
        **vars(m),
        "acc_at_tpr": {str(n): metrics.accuracy_at_tpr(*arguments, n) for n in metrics.TPR_LEVELS},
        "acc_at_fpr": {f"{n:g}": metrics.accuracy_at_fpr(*arguments, n) for n in metrics.FPR_LEVELS},
        "fpr_at_tpr": {str(n): g._asdict() for n, g in flagged.items()},
    }


def unweighted_mean(sets: list[Json]) -> Json:
    """The mean of each number over the OOD sets, each set counting once; `images` is the sum."""
    out: Json = {}
    for key, value in sets[0].items():
        if isinstance(value, dict):
            out[key] = unweighted_mean([s[key] for s in sets])
        else:
            out[key] = sum(s[key] for s in sets) if key == "images" else float(np.mean([s[key] for s in sets]))
    return out


def reliability(labels: NDArray[np.int64], probabilities: NDArray[np.float32]) -> Json:
    """Confidence against accuracy in equal bins, and the expected calibration error (Guo et al. 2017)."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    index = np.minimum((confidence * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    bins = [(confidence[index == b], correct[index == b]) for b in range(RELIABILITY_BINS)]
    return {
        "confidence": [float(c.mean()) if len(c) else None for c, _ in bins],
        "accuracy": [float(a.mean()) if len(a) else None for _, a in bins],
        "images": [len(c) for c, _ in bins],
        "ece": float(sum(abs(c.mean() - a.mean()) * len(c) for c, a in bins if len(c)) / len(labels)),
    }
