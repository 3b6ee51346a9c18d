"""Thresholds, quantiles and p-value references from weighted rows, by the very functions that made the old ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.bundle import Manifest
from service.contract.calibration import calibrate, conformal, distributions
from service.contract.calibration.calibrate import Scored, Weighted
from service.contract.calibration.groups import Groups
from service.contract.calibration.mix import ClassMix
from service.contract.calibration.unfit import Flags, counted, refused
from service.contract.intervals import effective
from service.contract.outcomes import Outcomes
from service.contract.points import Scope
from service.contract.reference import ALL, false_alarms
from service.errors import TailGuardError
from service.recalibrate.rows import Row, Rows

MIX = "reviewed stream"
SCOPES: tuple[Scope, ...] = ("global", "group")
Floats = NDArray[np.float64]
Json = dict[str, Any]


class CannotRecalibrate(TailGuardError):
    """The reviewed rows do not tell enough; the message says what is missing."""


@dataclass(frozen=True)
class Sample:
    """Reviewed in-distribution images and outliers with their weights, and the groups of the bundle."""

    inside: Weighted
    outliers: Weighted
    groups: Groups
    known: list[Row]
    strangers: list[Row]

    def outcomes(self) -> Outcomes:
        """Every reviewed image, in-distribution ones first."""
        return Outcomes.of(self.inside, self.outliers, np.append(_unfit(self.known), _unfit(self.strangers)))

    def decided(self) -> tuple[Scored, Scored]:
        """In-distribution images and outliers with scores for what an operating point refuses of them."""
        return refused(self.inside.images, _unfit(self.known)), refused(self.outliers.images, _unfit(self.strangers))


def _unfit(rows: Sequence[Row]) -> Flags:
    return np.array([row.unfit for row in rows], bool)


def _scores(manifest: Manifest, rows: Sequence[Row]) -> Floats:
    return np.array([row.scores[manifest.deciding_score] for row in rows], np.float64)


def groups_of(manifest: Manifest) -> Groups:
    """As the bundle has them."""
    counts = np.array([c.train_count for c in manifest.classes], np.int64)
    return Groups(manifest.groups, np.array([c.group for c in manifest.classes]), counts)


def sample(manifest: Manifest, rows: Rows) -> Sample:
    """The rows as arrays. CannotRecalibrate where a group of the predicted class has too few, or none was accepted."""
    groups = groups_of(manifest)
    known, strangers = rows.known(manifest.deciding_score), rows.outliers(manifest.deciding_score)
    require_sample(rows)
    found = Sample(
        _weighted(manifest, groups, known), _weighted(manifest, groups, strangers), groups, known, strangers
    )  # fmt: skip
    require_enough(manifest, found)
    return found


def _weighted(manifest: Manifest, groups: Groups, rows: Sequence[Row]) -> Weighted:
    place = {c.name: i for i, c in enumerate(manifest.classes)}
    predicted = np.array([place[row.predicted] for row in rows], np.int64)
    labels = np.array([place[row.truth] if row.truth is not None else 0 for row in rows], np.int64)
    weights = np.array([row.weight for row in rows], np.float64)
    if len(weights):
        weights = weights / weights.mean()
    of_class = np.zeros(len(manifest.classes))
    for group in groups.names:  # a new image may stand for as many as the one that stands for most
        own = weights[groups.of_class[predicted] == group] if len(rows) else weights
        of_class[groups.of_class == group] = own.max(initial=0.0)
    scored = Scored(_scores(manifest, rows), predicted, labels)
    return Weighted(counted(scored, _unfit(rows)), weights, of_class)


def require_sample(rows: Rows) -> None:
    """CannotRecalibrate where the reviewed rows say nothing of what was accepted, or of what was rejected.

    Without the known images among the rejected ones all scores lie below the old thresholds, and the new ones would
    refuse their share of what is left, beside what was refused before.
    """
    if not rows.kept:
        also = f" ({rows.unkept} labelled rows were not kept, and nobody knows how they were chosen)" * bool(
            rows.unkept
        )
        raise CannotRecalibrate(f"the ledger holds no kept row of this graph{also}: set TAILGUARD_KEEP and "
                                "TAILGUARD_KEEP_SAMPLE=.01, say, and review what is kept")  # fmt: skip
    if not any(stratum.decision == "accept" for stratum in rows.kept):
        raise CannotRecalibrate(
            "every kept row was rejected, which says nothing of the images that were accepted: set "
            "TAILGUARD_KEEP_SAMPLE=.01, say, so that a random share of all is kept, and review it"
        )
    accepted = [stratum for stratum in rows.kept if stratum.decision == "accept"]
    reviewed = {stratum.group for stratum in accepted if rows.reviewed[stratum]}
    for group in (stratum.group for stratum in accepted if stratum.group not in reviewed):
        kept = sum(rows.kept[stratum] for stratum in accepted if stratum.group == group)
        raise CannotRecalibrate(f"none of the {kept} kept images that were accepted in group {group} has been "
                                "reviewed: label the sampled ones too")  # fmt: skip
    looked_at = {s.group for s in rows.kept if s.decision == "reject" and (rows.labelled[s] or rows.reviewed[s])}
    if unseen := {s.group: None for s in sorted(rows.kept) if s.decision == "reject" and s.group not in looked_at}:
        raise CannotRecalibrate(f"none of the kept images that were rejected in group {', '.join(unseen)} has been "
                                "reviewed: known ones may be among them, label them too")  # fmt: skip


def levels_of(manifest: Manifest) -> list[float]:
    """Of the operating points that keep a share of images, the default first."""
    points = dict(manifest.operating_points)
    first = points.pop(manifest.default_operating_point)
    levels = [p.level for p in (first, *points.values()) if p.level is not None]
    if not levels:
        raise CannotRecalibrate("the bundle has no operating point that keeps a share of images: export it anew")
    return levels


def require_enough(manifest: Manifest, found: Sample) -> None:
    """CannotRecalibrate that names each group whose reviewed images cannot hold the highest level of the bundle."""
    refused = min(false_alarms(level) for level in levels_of(manifest))
    needed = round(1 / refused) - 1
    short = []
    of_predicted = found.groups.of_class[found.inside.images.predicted]
    for group in found.groups.names:
        weights = found.inside.weights[of_predicted == group]
        bound = conformal.own_bound(weights, float(weights.max(initial=0.0))) if len(weights) else 1.0
        if not conformal.holds(bound, refused):
            like = f", which tell as much as {effective(weights):.0f} alike" if len(weights) else ""
            short.append(f"group {group} has {len(weights)} reviewed in-distribution images{like}")
    if short:
        raise CannotRecalibrate(f"{'; '.join(short)}: at least {needed} of the same weight are needed in each for "
                                f"id{100 * (1 - refused):.10g}: review more of the sample")  # fmt: skip


def measured(manifest: Manifest, found: Sample) -> tuple[Json, Json]:
    """(operating points, calibration record) for a manifest; points that need outliers stay where these are too few."""
    inside, groups = found.inside, found.groups
    assert inside.images.labels is not None
    levels = levels_of(manifest)
    shares = np.bincount(inside.images.labels, inside.weights, minlength=len(manifest.classes))
    mix = ClassMix(MIX, shares / shares.sum())
    references = calibrate.references(inside, groups, levels)
    points = calibrate.keep_points(references, inside, groups, levels, mix)
    points = {_name_of(manifest, point["level"]): point for point in points.values()}
    points |= _catching(manifest, found)
    known, strangers = found.decided()
    for point in points.values():
        for kind in SCOPES:
            flags = [refusals(manifest, point, kind, one) for one in (known, strangers)]
            paid = calibrate.cost_of(flags, groups, known, [strangers], inside.weights)
            point[f"{kind}_cost"] = {"calibration": paid, "test": None}
    ordered = {name: points[name] for name in manifest.operating_points if name in points}
    old = manifest.calibration
    true_groups = groups.of_class[inside.images.labels]
    record = {
        "temperature": old.temperature, "in_distribution_images": len(found.known),
        "outlier_images": len(found.strangers),
        "images_by_group": {g: int((true_groups == g).sum()) for g in groups.names},
        "class_mix": mix.name, "class_shares": mix.shares.tolist(),
        "presumed_shares": old.presumed_shares,  # of the graph, which stays
        "references": {name: reference.model_dump() for name, reference in references.items()},
        "id_scores": distributions.distribution(_scores(manifest, found.known), inside.weights),
        "quantile_levels": distributions.QUANTILE_LEVELS,
        "quantiles": {name: _quantiles(name, found, true_groups) for name in manifest.scores},
    }  # fmt: skip
    return ordered, record


def refusals(manifest: Manifest, point: Json, scope: Scope, given: Scored) -> Flags:
    """bool [N]: which images an operating point refuses; a class may have a threshold of its own."""
    return calibrate.refused(given.scores, given.predicted, {c.name: c.group for c in manifest.classes}, point, scope)


def _name_of(manifest: Manifest, level: float) -> str:
    return next(name for name, point in manifest.operating_points.items() if point.level == level)


def _catching(manifest: Manifest, found: Sample) -> dict[str, Json]:
    """The points made from outliers: anew where there are as many as before needed, else with their old thresholds."""
    kept: dict[str, Json] = {}
    old = {name: point for name, point in manifest.operating_points.items() if point.level is None}
    weights = found.outliers.weights
    bound = conformal.own_bound(weights, float(weights.max())) if len(weights) else 1.0
    enough = conformal.holds(bound, false_alarms(calibrate.LEVEL))
    made = calibrate.catch_point(found.outliers.images, found.groups, found.outliers) if enough else {}
    for name, point in old.items():
        kept[name] = made.get(name) or point.model_dump(exclude={"global_cost", "group_cost"})
    return kept


def _quantiles(name: str, found: Sample, true_groups: NDArray[np.str_]) -> dict[str, list[float]]:
    sets: dict[str, tuple[list[Row], NDArray[np.bool_]]] = {
        ALL: (found.known, np.ones(len(found.known), bool)),
        **{g: (found.known, true_groups == g) for g in found.groups.names},
        "outliers": (found.strangers, np.ones(len(found.strangers), bool)),
    }
    quantiles = {}
    for key, (rows, chosen) in sets.items():
        pairs = [(row.scores.get(name), row.weight) for row, own in zip(rows, chosen.tolist(), strict=True) if own]
        there = [(score, weight) for score, weight in pairs if score is not None]
        if there:
            scores, weights = (np.array(column, np.float64) for column in zip(*there, strict=True))
            quantiles[key] = weighted_quantiles(scores, weights, distributions.QUANTILE_LEVELS)
    return quantiles


def weighted_quantiles(scores: Floats, weights: Floats, levels: Sequence[float]) -> list[float]:
    """The scores [N] below which these shares of the weight lie, between neighbours linear as numpy.quantile."""
    order = np.argsort(scores, kind="stable")
    scores, weights = scores[order], weights[order]
    if len(scores) == 1:
        return [float(scores[0])] * len(levels)
    middles = np.cumsum(weights) - weights / 2
    places = (middles - middles[0]) / (middles[-1] - middles[0])
    return [float(q) for q in np.interp(levels, places, scores)]
