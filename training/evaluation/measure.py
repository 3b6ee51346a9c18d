"""Everything a manifest says about how a model decides, measured on that very model: torch module or ONNX graph."""

from collections.abc import Mapping

import numpy as np

from training.data.loading import Data
from training.data.readers import DataError, Pixels
from training.evaluation import calibrate
from training.evaluation.evaluate import evaluate
from training.evaluation.metrics import class_accuracy, class_groups, ood_metrics
from training.evaluation.predict import Outputs, Predict
from training.runs.files import Json, jsonable


def measure(
    predict: Predict, data: Data, ood: Mapping[str, Pixels], *, score: str, temperature: float, scope: str
) -> Json:
    """`classes`, `operating_points`, `calibration` and `evaluation` of service.contract.bundle.Manifest.

    Thresholds come from the calibration split and the held-back outliers; test images only tell what they cost.
    Raises DataError when there are no calibration images.
    """
    require_calibration_images(data)
    counts = [int(n) for n in data.train.counts]
    groups = np.array(class_groups(counts))
    inside = predict(data.calibration.images)
    held = predict(data.calibration_outliers) if len(data.calibration_outliers) else None
    ins = inside.scores[score].astype(np.float64)
    ins_true, ins_predicted = groups[data.calibration.labels], groups[inside.predictions]
    outs, outs_predicted = _scores_and_groups(held, score, groups)
    points = calibrate.operating_points(ins, ins_predicted, outs, outs_predicted)

    results, test, outside = evaluate(predict, data.test, ood, counts, score)
    test_scores = test.scores[score].astype(np.float64)
    test_true, test_predicted = groups[data.test.labels], groups[test.predictions]
    test_sets = [_scores_and_groups(o, score, groups) for o in outside.values()]
    for name, point in points.items():
        for kind in ("global", "group"):
            point[f"{kind}_cost"] = {
                "calibration": calibrate.cost(point, kind, ins, ins_predicted, ins_true, [(outs, outs_predicted)]),
                "test": calibrate.cost(point, kind, test_scores, test_predicted, test_true, test_sets),
            }
        for where, (s, g) in zip(outside, test_sets, strict=True):
            caught = calibrate.rejected(s, g, point, scope).mean()
            results["ood"][where].setdefault("rejected", {})[name] = float(caught)
    flags = calibrate.rejected(test_scores, test_predicted, points["id95"], scope)
    accuracy = results["class_accuracy"]
    results["data"] = {
        "train_images": len(data.train.labels),
        "calibration_images": len(data.calibration.labels),
        "test_images": len(data.test.labels),
        "outlier_images": len(data.outliers),
        "calibration_outlier_images": len(data.calibration_outliers),
    }
    results["calibration_split"] = split_results(inside, held, data, score)
    return {
        "classes": [
            {
                "name": name,
                "train_count": counts[c],
                "group": str(groups[c]),
                "accuracy": accuracy[c],
                "rejected": float(flags[data.test.labels == c].mean()),
            }
            for c, name in enumerate(data.train.classes)
        ],
        "operating_points": points,
        "calibration": {
            "temperature": temperature,
            "in_distribution_images": len(ins),
            "outlier_images": len(outs),
            "images_by_group": {str(g): int((ins_true == g).sum()) for g in ("many", "medium", "few")},
            "id_scores": calibrate.reference_scores(ins),
            "quantile_levels": calibrate.QUANTILE_LEVELS,
            "quantiles": {
                name: calibrate.quantiles(
                    values.astype(np.float64), ins_true, held.scores[name].astype(np.float64) if held else np.empty(0)
                )
                for name, values in inside.scores.items()
            },
        },
        "evaluation": jsonable(results),
    }


def require_calibration_images(data: Data) -> None:
    """DataError when there are none."""
    if len(data.calibration.labels) == 0:
        raise DataError("there are no calibration images: train with --calibration-fraction above 0")


def split_results(inside: Outputs, held: Outputs | None, data: Data, score: str) -> Json:
    """What a choice between models may look at: the calibration split against the held-back outliers."""
    labels, predictions = data.calibration.labels, inside.predictions
    by_class = class_accuracy(labels, predictions, len(data.calibration.classes))
    out: Json = {
        "accuracy": float((predictions == labels).mean()),
        "mean_class_accuracy": float(np.nanmean(by_class)),
    }
    if held is not None:
        found = ood_metrics(inside.scores[score], held.scores[score])
        out |= {"auroc": found.auroc, "fpr95": found.fpr95}
    return out


def _scores_and_groups(
    outputs: Outputs | None, score: str, groups: np.ndarray[tuple[int], np.dtype[np.str_]]
) -> tuple[calibrate.Floats, np.ndarray[tuple[int], np.dtype[np.str_]]]:
    if outputs is None:
        return np.empty(0), np.empty(0, dtype=groups.dtype)
    return outputs.scores[score].astype(np.float64), groups[outputs.predictions]
