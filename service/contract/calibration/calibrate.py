"""Operating points and reference distributions, from calibration images and held-back outliers only."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.calibration import conformal
from service.contract.calibration.groups import Groups
from service.contract.calibration.mix import TRAIN, ClassMix
from service.contract.reference import ALL, Reference, false_alarms

LEVEL = 0.95
SPARE_SEED = 0
Json = dict[str, Any]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Names = NDArray[np.str_]


@dataclass(frozen=True)
class Scored:
    """Deciding scores [N], predicted and true classes [N] of images; `labels` None: outliers."""

    scores: Floats
    predicted: Ints
    labels: Ints | None = None


@dataclass(frozen=True)
class Weighted:
    """Calibration images, their weights [N] by the expected mix of classes, and the weight of each class [C]."""

    images: Scored
    weights: Floats
    class_weights: Floats

    @classmethod
    def by_mix(cls, images: Scored, mix: ClassMix, groups: Groups) -> "Weighted":
        assert images.labels is not None
        counts = np.bincount(images.labels, minlength=len(groups.of_class))
        of_class = mix.class_weights(counts, groups.of_class)
        return cls(images, of_class[images.labels], of_class)

    @classmethod
    def alike(cls, images: Scored, classes: int) -> "Weighted":
        return cls(images, np.ones(len(images.scores)), np.ones(classes))


def supported_levels(levels: Sequence[float], calibration: Weighted) -> list[float]:
    """`levels` in their order, those that all calibration images together cannot hold replaced by the highest they can.

    n images hold 1 - 1/(n + 1), rounded down to whole percents: 8 of them 88%. Raises ValueError for levels that are
    none, and where there are no images.
    """
    for level in levels:
        if not 0 < level < 1:
            raise ValueError(f"level {level:g} is no share of images to keep: give one between 0 and 1, 0.95 say")
    if not len(calibration.weights):
        raise ValueError("there are no calibration images: train with --calibration-fraction above 0")
    smallest = conformal.own_bound(calibration.weights, float(calibration.class_weights.max()))
    highest = math.floor(100 * (1 - smallest + conformal.ROUNDING)) / 100
    held = [conformal.holds(smallest, false_alarms(level)) for level in levels]
    return list(dict.fromkeys(level if h else max(highest, 0.01) for level, h in zip(levels, held, strict=True)))


def references(calibration: Weighted, groups: Groups, levels: Sequence[float]) -> dict[str, Reference]:
    """By ALL and the name of each group of the predicted class: what p-values and thresholds are read from."""
    images, weights = calibration.images, calibration.weights
    new_weight = float(calibration.class_weights.max())
    found = {ALL: conformal.reference(conformal.raised(images.scores, images.scores), weights, new_weight, levels)}
    predicted_groups = groups.of_class[images.predicted]
    scores = images.scores.copy()
    for group in groups.names:
        own = predicted_groups == group
        scores[own] = conformal.raised(images.scores[own], images.scores)
    for group in groups.names:
        own = predicted_groups == group
        own_weights, new_weight = _group_weights(calibration, groups, group)
        spare = _nearest_first(scores, weights, images.predicted, groups, group)
        found[group] = conformal.reference(scores[own], own_weights, new_weight, levels, spare)
    return found


def _group_weights(calibration: Weighted, groups: Groups, group: str) -> tuple[Floats, float]:
    """The weights of the images predicted in a group, and that of a new one.

    The new one has the largest weight of the group's classes, or that of its calibration images on average over the
    expected mix, if more: images of rarer classes are among them. Where the mix leaves a group out, all count alike.
    """
    own = groups.of_class[calibration.images.predicted] == group
    new_weight = float(calibration.class_weights[groups.of_class == group].max())
    if not new_weight > 0:
        return np.ones(int(own.sum())), 1.0
    weights = calibration.weights[own]
    average = float((weights**2).sum() / weights.sum()) if weights.sum() > 0 else 0.0
    return weights, max(new_weight, average)


def _nearest_first(
    scores: Floats, weights: Floats, predicted: Ints, groups: Groups, group: str
) -> Iterator[tuple[float, float]]:
    """Scores and weights of images predicted in other groups, those first whose class has nearly as many images.

    The order within a class is drawn. Images that the expected mix leaves out are passed over.
    """
    others = np.flatnonzero((groups.of_class[predicted] != group) & (weights > 0))
    bounds = next(g for g in groups.groups if g.name == group)
    logs = np.log(np.maximum(groups.counts[predicted[others]], 1))
    low, high = math.log(max(bounds.least_images, 1)), math.log(max(bounds.most_images, 1))
    away = np.maximum(np.maximum(low - logs, logs - high), 0)
    draw = np.random.default_rng(SPARE_SEED).random(len(others))
    for i in others[np.lexsort((draw, away))]:
        yield float(scores[i]), float(weights[i])


# ---- Operating points -----------------------------------------------------------------------------------------------


def keep_points(
    found: Mapping[str, Reference], calibration: Weighted, groups: Groups, levels: Sequence[float], mix: ClassMix
) -> dict[str, Json]:
    """`id95` for a level of .95, and so on: thresholds, and what they promise, from the references."""
    points: dict[str, Json] = {}
    like = "like those of the calibration split" if mix.name == TRAIN else f"in the class mix {mix.name}"
    for level in levels:
        points[f"id{100 * level:.10g}"] = {
            "description": f"keeps {100 * level:.10g}% of in-distribution images {like}; needs no outliers",
            "level": level,
            "threshold": found[ALL].threshold(level),
            "group_thresholds": {group: found[group].threshold(level) for group in groups.names},
            "group_promises": {
                group: max(false_alarms(level), conformal.own_bound(*_group_weights(calibration, groups, group)))
                for group in groups.names
            },
        }
    return points


def catch_point(outliers: Scored, groups: Groups, weighted: Weighted | None = None) -> dict[str, Json]:
    """`ood95`: the thresholds that keep 95% of the outliers out, by the same rule with all scores turned round.

    Fewer than 19 outliers hold a lower level, which then names the point; without outliers there is none. They count
    alike unless they are `weighted`.
    """
    if not len(outliers.scores):
        return {}
    turned = Weighted.alike(Scored(-outliers.scores, outliers.predicted), len(groups.of_class))
    if weighted is not None:
        turned = Weighted(turned.images, weighted.weights, weighted.class_weights)
    [level] = supported_levels([LEVEL], turned)
    found = references(turned, groups, [level])
    percent = f"{100 * level:.10g}"
    return {
        f"ood{percent}": {
            "description": f"catches {percent}% of the calibration outliers: the threshold behind PASCL's FPR95",
            "level": None,
            "threshold": -found[ALL].threshold(level),
            "group_thresholds": {group: -found[group].threshold(level) for group in groups.names},
            "group_promises": {},
        }
    }


def rejected(scores: NDArray[np.floating[Any]], predicted_groups: Names, point: Json, scope: str) -> NDArray[np.bool_]:
    """bool [N]: what service.contract.decision says of each image."""
    return np.asarray(~(scores.astype(np.float64) <= limits(predicted_groups, point, scope)), dtype=bool)


def refused(
    scores: NDArray[np.floating[Any]], predicted: NDArray[np.int64], classes: Mapping[str, str], point: Json, scope: str
) -> NDArray[np.bool_]:
    """`rejected`, of a point in which a class may have a threshold of its own. `classes`: name to group, in order."""
    own, by_group = point.get("class_thresholds") or {}, point["group_thresholds"]
    by_class = [point["threshold"] if scope == "global" else own.get(c, by_group[g]) for c, g in classes.items()]
    return np.asarray(~(scores.astype(np.float64) <= np.array(by_class, np.float64)[predicted]), dtype=bool)


def limits(predicted_groups: Names, point: Json, scope: str) -> Floats:
    """[N] the threshold of each image."""
    by_group, one = point["group_thresholds"], point["threshold"]
    return np.array([one if scope == "global" else by_group[g] for g in predicted_groups.tolist()], np.float64)


def shares(
    flags: NDArray[np.bool_], groups: Names, names: Sequence[str], weights: Floats | None = None
) -> dict[str, float | None]:
    """The share of True flags in each group, each flag counting by its weight; None for a group without images."""
    weights = np.ones(len(flags)) if weights is None else weights
    there = {g: (groups == g) & (weights > 0) for g in names}
    return {g: float(np.average(flags[m], weights=weights[m])) if m.any() else None for g, m in there.items()}


def between_groups(
    flags: NDArray[np.bool_], true: Names, predicted: Names, names: Sequence[str], weights: Floats | None = None
) -> dict[str, dict[str, tuple[float, float]]]:
    """True group → predicted group → (share of the true group's images predicted so, share of those with a True flag);
    pairs without images are left out."""
    weights = np.ones(len(flags)) if weights is None else weights
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for group in names:
        whole = float(weights[true == group].sum())
        for other in names:
            own = (true == group) & (predicted == other) & (weights > 0)
            if own.any():
                rejected = float(np.average(flags[own], weights=weights[own]))
                found.setdefault(group, {})[other] = (float(weights[own].sum()) / whole, rejected)
    return found


def cost(
    point: Json, scope: str, groups: Groups, inside: Scored, outliers: Sequence[Scored], weights: Floats | None = None
) -> Json:
    """contract.bundle.Cost of an operating point: in-distribution images, by `weights` [N] where given, and outliers.

    The sets of outliers count alike; empty ones are left out.
    """
    flags = [rejected(of.scores, groups.of_class[of.predicted], point, scope) for of in (inside, *outliers)]
    return cost_of(flags, groups, inside, outliers, weights)


def cost_of(
    refused: Sequence[NDArray[np.bool_]], groups: Groups, inside: Scored, outliers: Sequence[Scored],
    weights: Floats | None = None,
) -> Json:  # fmt: skip
    """As `cost`, where it is known which images are `refused`: of `inside`, then of each set of `outliers`."""
    assert inside.labels is not None
    names, of_class, flags = groups.names, groups.of_class, refused[0]
    sets = [(f, o) for f, o in zip(refused[1:], outliers, strict=True) if len(o.scores)]
    caught: dict[str, float | None] = {}
    by_set = [shares(f, of_class[o.predicted], names) for f, o in sets]
    for group in names:
        measured = [share for found in by_set if (share := found[group]) is not None]
        caught[group] = float(np.mean(measured)) if measured else None
    return {
        "in_distribution_images": len(inside.scores),
        "outlier_images": sum(len(o.scores) for _, o in sets),
        "id_rejected": float(np.average(flags, weights=weights)),
        "id_rejected_by_group": shares(flags, of_class[inside.labels], names, weights),
        "id_rejected_by_predicted_group": shares(flags, of_class[inside.predicted], names, weights),
        "id_between_groups": between_groups(flags, of_class[inside.labels], of_class[inside.predicted], names, weights),
        "outliers_caught": float(np.mean([f.mean() for f, _ in sets])) if sets else None,
        "outliers_caught_by_predicted_group": caught,
    }
