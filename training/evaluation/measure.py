"""Operating points, calibration record and evaluation of a manifest, measured on a torch module or an ONNX graph."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from service.contract.calibration import calibrate, distributions
from service.contract.calibration.calibrate import Scored, Weighted
from service.contract.calibration.groups import Groups, group_classes
from service.contract.calibration.mix import TRAIN, ClassMix, class_mix
from service.contract.calibration.prior import presumed_shares
from service.contract.calibration.taxonomy import ERROR
from service.contract.calibration.unfit import counted, refused
from service.contract.decision import Scope
from service.contract.outcomes import Outcomes
from training.data.loading import Data
from training.data.readers import DataError, Pixels
from training.evaluation import cross_fit
from training.evaluation.answers import sets_of, taxonomy_of
from training.evaluation.cross_costs import costs
from training.evaluation.evaluate import evaluate
from training.evaluation.fitness import Fitness, unfit_of
from training.evaluation.metrics import class_accuracy, ood_metrics
from training.evaluation.pairs import fold_pairs, pair
from training.evaluation.predict import Outputs, Predict
from training.evaluation.reasons import OUTLIERS, Found, Teller
from training.runs.files import Json, jsonable
from training.scores.either import Either

SPLIT = "the calibration images"


def measure(
    predict: Predict, data: Data, ood: Mapping[str, Pixels], *, score: str, temperature: float, scope: Scope,
    levels: Sequence[float] = (calibrate.LEVEL,), mix: ClassMix | None = None, taxonomy_error: float = ERROR,
    either: Either | None = None,
) -> Json:  # fmt: skip
    """The fields of a Manifest that `measured` finds."""
    return measured(
        predict, data, ood, score=score, temperature=temperature, scope=scope, levels=levels, mix=mix,
        taxonomy_error=taxonomy_error, either=either,
    )[0]  # fmt: skip


def measured(
    predict: Predict, data: Data, ood: Mapping[str, Pixels], *, score: str, temperature: float, scope: Scope,
    levels: Sequence[float] = (calibrate.LEVEL,), mix: ClassMix | None = None, taxonomy_error: float = ERROR,
    either: Either | None = None, fitness: Fitness | None = None,
) -> tuple[Json, Outcomes]:  # fmt: skip
    """`groups`, `classes`, `operating_points` and their default, `calibration`, `evaluation`, `sets` and `taxonomy` of
    a Manifest; and how each calibration image turned out.

    `levels` are the shares of in-distribution images that operating points keep, the default first. `mix`: the classes
    expected in service, by default those of the training images. Thresholds come from the calibration split and the
    held-back outliers, test images only tell what they cost, but for `data.folds` (folding.py). DataError without
    calibration images, ValueError for levels that are none, for scores that are not finite, and for scores of `predict`
    that are not those of the folds' run. `either` is what stands behind a score like "energy|msp"; with `fitness` unfit
    images count as refused, and `reasons` are found.
    """
    require_calibration_images(data)
    groups = data_groups(data)
    mix = mix or class_mix(TRAIN, data.train.classes, groups.counts)
    split = predict(data.calibration.images)
    held = predict(data.calibration_outliers) if len(data.calibration_outliers) else None
    predicted, labels, judged = split, data.calibration.labels, None
    unfit = unfit_of(fitness, split, data.calibration.images)
    if data.folds:
        data.folds.require_same_scores(score, split.scores[score], either)
        judged = data.folds.judge(score, temperature, either, fitness.judged if fitness else None)
        predicted, labels, unfit = judged.outputs, judged.labels, judged.unfit
    inside = Weighted.by_mix(counted(scored := _scored(predicted, score, labels), unfit), mix, groups)
    unfit_outliers = unfit_of(fitness, held, data.calibration_outliers)
    outliers = counted(_scored(held, score), unfit_outliers)
    kept_levels = calibrate.supported_levels(levels, inside)
    references = calibrate.references(inside, groups, kept_levels)
    keep = calibrate.keep_points(references, inside, groups, kept_levels, mix)
    points = keep | calibrate.catch_point(outliers, groups)
    default = next(iter(points))

    def refuses(out: Outputs) -> NDArray[np.bool_]:
        scores = out.scores[score].astype(np.float64)
        return calibrate.rejected(scores, groups.of_class[out.predictions], points[default], scope)

    told = Found(Teller(either, fitness, groups, scope) if either and fitness else None, default)
    if judged and not len(data.test.labels):
        results, flags = _cross_fitted(judged, score, points, groups, mix, scope, told)
        tested = judged.labels
        pairs = list(fold_pairs(judged, score, groups, mix, flags[default], refuses))
    else:
        results, flags, test, outside = _tested(predict, data, ood, score, points, groups, scope, fitness, told)
        tested = data.test.labels
        pairs = [pair(inside, predicted, tested, test, outside, flags[default], refuses)]
    for point in points.values():
        for kind in ("global", "group"):
            point[f"{kind}_cost"]["calibration"] = calibrate.cost(
                point, kind, groups, refused(scored, unfit), [refused(outliers, unfit_outliers)], inside.weights
            )  # fmt: skip
    if data.folds and data.folds.parted:
        results["calibrated"] = cross_fit.NAMED
    results["data"] = {
        "train_images": len(data.train.labels),
        "calibration_images": len(data.calibration.labels),
        "test_images": len(data.test.labels),
        **({"cross_fitted_images": len(judged.labels)} if judged else {}),
        "outlier_images": len(data.outliers),
        "calibration_outlier_images": len(data.calibration_outliers),
    }
    results["calibration_split"] = split_results(split, held, data, score)
    told.see(OUTLIERS, held, unfit_outliers, points)
    fields = {
        "groups": [group.model_dump() for group in groups.groups],
        "classes": _classes(data, groups, results["class_accuracy"], flags[default], tested),
        "operating_points": points,
        "default_operating_point": default,
        "calibration": _calibration(data, groups, inside, scored, predicted, held, labels)
        | {
            "temperature": temperature,
            "class_mix": mix.name,
            "class_shares": mix.shares.tolist(),
            "references": {name: reference.model_dump() for name, reference in references.items()},
        },
        "evaluation": jsonable(results),
        "sets": sets_of(inside, predicted.probabilities, pairs, groups),
        "taxonomy": data.taxonomy
        and taxonomy_of(
            data.taxonomy, data.train.classes, taxonomy_error, inside, predicted.probabilities, pairs, groups
        ),
        "reasons": told.record(predicted, unfit, labels, points, data.folds.calibrated_on if data.folds else SPLIT),
    }
    return fields, Outcomes.of(inside, Weighted.alike(outliers, len(groups.of_class)), np.append(unfit, unfit_outliers))


Flags = dict[str, NDArray[np.bool_]]  # by operating point


def _tested(
    predict: Predict, data: Data, ood: Mapping[str, Pixels], score: str, points: dict[str, Json], groups: Groups,
    scope: Scope, fitness: Fitness | None, told: Found,
) -> tuple[Json, Flags, Outputs, dict[str, Outputs]]:  # fmt: skip
    """What `evaluate` finds on the test images, the costs put into `points`, which test images are refused, and the
    outputs on test images and OOD sets."""
    counts = [int(n) for n in data.train.counts]
    results, test_outputs, ood_outputs = evaluate(predict, data.test, ood, counts, score)
    unfit = unfit_of(fitness, test_outputs, data.test.images)
    unfit_ood = {name: unfit_of(fitness, outputs, ood[name]) for name, outputs in ood_outputs.items()}
    test = refused(_scored(test_outputs, score, data.test.labels), unfit)
    sets = {name: refused(_scored(outputs, score), unfit_ood[name]) for name, outputs in ood_outputs.items()}
    flags = {}
    for name, point in points.items():
        for kind in ("global", "group"):
            point[f"{kind}_cost"] = {"test": calibrate.cost(point, kind, groups, test, list(sets.values()))}
        for where, outside in sets.items():
            caught = calibrate.rejected(outside.scores, groups.of_class[outside.predicted], point, scope)
            results["ood"][where].setdefault("rejected", {})[name] = float(caught.mean())
        flags[name] = calibrate.rejected(test.scores, groups.of_class[test.predicted], point, scope)
    told.see_test(test_outputs, unfit, data.test.labels, points)
    for name, outputs in ood_outputs.items():
        told.see(name, outputs, unfit_ood[name], points)
    return results, flags, test_outputs, ood_outputs


def _cross_fitted(
    judged: cross_fit.Judged, score: str, points: dict[str, Json], groups: Groups, mix: ClassMix, scope: Scope,
    told: Found,
) -> tuple[Json, Flags]:  # fmt: skip
    """The same where each image was judged by a head that had not seen it."""
    costed, flags, caught = costs(judged, score, points, groups, mix, scope, told)
    results = judged.results(score)
    for name, point in points.items():
        point |= {f"{kind}_cost": {"test": costed[name][kind]} for kind in ("global", "group")}
        for where, shares in caught[name].items():
            results["ood"][where].setdefault("rejected", {})[name] = shares
    return results, flags


def data_groups(data: Data) -> Groups:
    """Made from the images before calibration images were set aside, as the audit sees them."""
    return group_classes(data.train.counts + data.calibration.counts)


def _classes(
    data: Data, groups: Groups, accuracy: list[float | None], flags: NDArray[np.bool_], labels: NDArray[np.int64]
) -> list[Json]:
    return [
        {
            "name": name,
            "train_count": int(data.train.counts[c]),
            "group": str(groups.of_class[c]),
            "accuracy": accuracy[c],
            "rejected": float(flags[own].mean()) if (own := labels == c).any() else None,
        }
        for c, name in enumerate(data.train.classes)
    ]


def _calibration(
    data: Data, groups: Groups, inside: Weighted, scored: Scored, predicted: Outputs, held: Outputs | None,
    labels: NDArray[np.int64],
) -> Json:  # fmt: skip
    """What the calibration images and outliers look like, apart from references and the expected mix."""
    true_groups = groups.of_class[labels]
    return {
        "in_distribution_images": len(labels),
        "outlier_images": len(data.calibration_outliers),
        "images_by_group": {g: int((true_groups == g).sum()) for g in groups.names},
        "presumed_shares": presumed_shares(
            predicted.probabilities.astype(np.float64), labels, data.train.counts
        ).tolist(),
        "id_scores": distributions.distribution(scored.scores, inside.weights),
        "quantile_levels": distributions.QUANTILE_LEVELS,
        "quantiles": {
            name: distributions.quantiles(
                values.astype(np.float64), true_groups, groups.names,
                held.scores[name].astype(np.float64) if held else np.empty(0),
            )
            for name, values in predicted.scores.items()
        },
    }  # fmt: skip


def weights(data: Data, labels: NDArray[np.int64], mix: ClassMix) -> NDArray[np.float64]:
    """How much each image with these labels [N] counts, by the expected mix of classes."""
    return Weighted.by_mix(Scored(np.zeros(len(labels)), labels, labels), mix, data_groups(data)).weights


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
        ood = ood_metrics(inside.scores[score], held.scores[score])
        out |= {"auroc": ood.auroc, "fpr95": ood.fpr95}
    return out


def _scored(outputs: Outputs | None, score: str, labels: NDArray[np.int64] | None = None) -> Scored:
    if outputs is None:
        return Scored(np.empty(0), np.empty(0, np.int64))
    return Scored(outputs.scores[score].astype(np.float64), outputs.predictions, labels)
