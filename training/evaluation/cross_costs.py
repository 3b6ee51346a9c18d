"""What operating points cost where each image was judged by a head that had not seen it (cross_fit.py)."""

import numpy as np
from numpy.typing import NDArray

from service.contract.calibration import calibrate
from service.contract.calibration.calibrate import Scored, Weighted
from service.contract.calibration.groups import Groups
from service.contract.calibration.mix import ClassMix
from service.contract.calibration.unfit import counted
from service.contract.calibration.unfit import refused as refused_too
from service.contract.decision import Scope
from training.evaluation.cross_fit import FOLDS, Judged, mean
from training.evaluation.reasons import Found, mean_shares, shares
from training.runs.files import Json


def costs(
    judged: Judged, score: str, points: dict[str, Json], groups: Groups, mix: ClassMix, scope: Scope, told: Found
) -> tuple[dict[str, dict[str, Json]], dict[str, NDArray[np.bool_]], dict[str, dict[str, float]]]:
    """By point: costs by scope, which images are refused [N], and shares of the OOD sets that are.

    Each fold is judged at the thresholds that the other folds give, at a lower level where these have too few images
    for the point's; those of outliers (`ood95`) are the points' own.
    What is refused for which reason goes into `told`.
    """
    found: dict[str, dict[str, list[Json]]] = {name: {"global": [], "group": []} for name in points}
    refused = {name: np.zeros(len(judged.labels), bool) for name in points}
    caught: dict[str, dict[str, float]] = {name: dict.fromkeys(judged.ood[0], 0.0) for name in points}
    codes, outside = np.zeros(len(judged.labels), np.int64), list[dict[str, Json]]()
    for k in range(FOLDS):
        own, others = judged.of(k), np.flatnonzero(judged.folds != k)
        inside = refused_too(judged.scored(score, own), judged.unfit[own])
        weighted = Weighted.by_mix(counted(judged.scored(score, others), judged.unfit[others]), mix, groups)
        sets = {
            name: refused_too(Scored(out.scores[score].astype(np.float64), out.predictions), told.unfit(name, out))
            for name, out in judged.ood[k].items()
        }
        for name, given in points.items():
            point = given
            if given["level"] is not None:
                [level] = calibrate.supported_levels([given["level"]], weighted)
                references = calibrate.references(weighted, groups, [level])
                [point] = calibrate.keep_points(references, weighted, groups, [level], mix).values()
            for kind, into in found[name].items():
                into.append(calibrate.cost(point, kind, groups, inside, list(sets.values())))
            if told.teller and name == told.default:
                codes[own] = told.teller.codes(judged.outputs.take(own), judged.unfit[own], point)
                outside.append({where: shares(told.teller.codes(out, told.unfit(where, out), point))
                                for where, out in judged.ood[k].items()})  # fmt: skip
            refused[name][own] = calibrate.rejected(inside.scores, groups.of_class[inside.predicted], point, scope)
            for where, outliers in sets.items():
                flags = calibrate.rejected(outliers.scores, groups.of_class[outliers.predicted], point, scope)
                caught[name][where] += float(flags.mean()) / FOLDS
    if told.teller:
        told.test = told.teller.told(codes, judged.outputs.predictions, judged.labels)
        told.outliers = {where: mean_shares([sets[where] for sets in outside]) for where in judged.ood[0]}
    costed = {name: {kind: pooled(rows, judged, groups) for kind, rows in kinds.items()}
              for name, kinds in found.items()}  # fmt: skip
    return costed, refused, caught


def pooled(rows: list[Json], judged: Judged, groups: Groups) -> Json:
    """One cost of the folds' own: shares of images by how many images each fold has, shares of outliers as means."""
    true, predicted = groups.of_class[judged.labels], groups.of_class[judged.outputs.predictions]

    def by_group(key: str, of: NDArray[np.str_]) -> dict[str, float | None]:
        out: dict[str, float | None] = {}
        for group in groups.names:
            counts = [int((of[judged.of(k)] == group).sum()) for k in range(FOLDS)]
            refused = sum(n * row[key][group] for n, row in zip(counts, rows, strict=True) if n)
            out[group] = refused / sum(counts) if sum(counts) else None
        return out

    def between() -> dict[str, dict[str, tuple[float, float]]]:
        found: dict[str, dict[str, tuple[float, float]]] = {}
        true = groups.of_class[judged.labels]
        counts = [{g: int((true[judged.of(k)] == g).sum()) for g in groups.names} for k in range(FOLDS)]
        for group in groups.names:
            for other in groups.names:  # images of the one that are predicted in the other, and those refused of them
                pairs = [(n[group] * cell[0], n[group] * cell[0] * cell[1]) for n, row in zip(counts, rows, strict=True)
                         if (cell := row["id_between_groups"].get(group, {}).get(other))]  # fmt: skip
                if pairs:
                    there, refused = map(sum, zip(*pairs, strict=True))
                    found.setdefault(group, {})[other] = (there / sum(n[group] for n in counts), refused / there)
        return found

    sizes = [row["in_distribution_images"] for row in rows]
    numbers = [{key: value for key, value in row.items() if key != "id_between_groups"} for row in rows]
    return mean(numbers, None) | {
        "id_between_groups": between(),
        "in_distribution_images": sum(sizes),
        "id_rejected": float(np.average([row["id_rejected"] for row in rows], weights=sizes)),
        "id_rejected_by_group": by_group("id_rejected_by_group", true),
        "id_rejected_by_predicted_group": by_group("id_rejected_by_predicted_group", predicted),
    }
