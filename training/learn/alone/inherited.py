"""The manifest of a bundle that learned alone: what it has from its parent, and what was measured anew.

The thresholds, p-values and promises of the parent's groups stay: an image that is not handed over to a new class gets
the very score that it got before. The new classes are a group of their own, calibrated on reviewed images,
each scored by a gate that was fitted without it; where these are fewer than a level needs, it borrows from the parent's
groups, the rarest first.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.bundle import Cost, Manifest
from service.contract.calibration import calibrate, conformal
from service.contract.points import Scope
from service.contract.reference import ClassGroup, Reference, false_alarms

Json = dict[str, Any]
Flags = NDArray[np.bool_]
LEARNED = "learned"
OUTLIER = -1  # a truth that is no class
SPARE_SEED = 0


@dataclass(frozen=True)
class Seen:
    """What a graph gives for N reviewed images: `classes` [N] predicted, each score [N], and `truth` [N], which is
    OUTLIER for an outlier. `deciding` names the score that decides."""

    classes: NDArray[np.int64]
    scores: Mapping[str, NDArray[np.float64]]
    truth: NDArray[np.int64]
    deciding: str

    def take(self, kept: Flags) -> "Seen":
        return Seen(self.classes[kept], {n: s[kept] for n, s in self.scores.items()}, self.truth[kept], self.deciding)


def group_name(manifest: Manifest) -> str:
    """learned, learned-2, ...: of the classes that this bundle learns."""
    taken = sum(name == LEARNED or name.startswith(f"{LEARNED}-") for name in manifest.group_names)
    return LEARNED if not taken else f"{LEARNED}-{taken + 1}"


def grown(parent: Manifest, new: Mapping[str, int], calibration: Seen, compared: Seen) -> Json:
    """The fields of the manifest about groups, classes, scores and decisions. `new`: class name to images taught.

    `calibration` are reviewed images of the new classes, cross-fitted; `compared` are of any class, and outliers.
    """
    name, counts = group_name(parent), list(new.values())
    groups = [*parent.groups, ClassGroup(name=name, least_images=min(counts), most_images=max(counts))]
    of_class = {c.name: c.group for c in parent.classes} | dict.fromkeys(new, name)
    learned = _Learned(parent, name, of_class, calibration, compared)
    points = {point: learned.point(point) for point in parent.operating_points}
    flags = refused(points[parent.default_operating_point], compared, of_class, parent.threshold_scope)
    classes = [c.model_dump() | {"accuracy": None, "rejected": None} for c in parent.classes]
    for i, (taught, count) in enumerate(new.items(), len(classes)):
        own = compared.truth == i
        classes.append({"name": taught, "train_count": count, "group": name, "rejected": float(flags[own].mean()),
                        "accuracy": float((compared.classes[own] == i).mean())})  # fmt: skip
    return {
        "groups": [group.model_dump() for group in groups],
        "classes": classes,
        "operating_points": points,
        "calibration": learned.record(counts),
        "scores": {score: parent.scores[score].model_dump() for score in calibration.scores},
    }


def refused(point: Mapping[str, Any], seen: Seen, classes: Mapping[str, str], scope: Scope) -> Flags:
    """bool [N]: which images an operating point refuses; `classes`: the group of each class, in their order."""
    return calibrate.refused(seen.scores[seen.deciding], seen.classes, classes, dict(point), scope)


@dataclass(frozen=True)
class _Learned:
    """The group `name` of the new classes; `classes`: the group of every class."""

    parent: Manifest
    name: str
    classes: Mapping[str, str]
    calibration: Seen
    compared: Seen

    @property
    def of_class(self) -> NDArray[np.str_]:
        """[C]: the group of every class."""
        return np.array([*self.classes.values()])

    @property
    def reference(self) -> Reference:
        """Of the calibration images that are predicted in the group, with what is borrowed above them."""
        scores = self.calibration.scores[self.calibration.deciding]
        own = conformal.raised(scores[self._mine(self.calibration)], scores)
        levels = [p.level for p in self.parent.operating_points.values() if p.level is not None]
        return conformal.reference(own, np.ones(len(own)), 1.0, levels, self._spare())

    def point(self, name: str) -> Json:
        """An operating point of the parent, with the group's own threshold and what it costs."""
        old, reference = self.parent.operating_points[name], self.reference
        made = old.model_dump()
        made["group_thresholds"][self.name] = old.threshold if old.level is None else reference.threshold(old.level)
        if old.level is not None:
            own = max(false_alarms(old.level), 1 / (reference.images + 1))
            made["group_promises"] = made["group_promises"] | {self.name: own}
        for scope in ("global", "group"):
            measured = old.cost(scope)
            outside = self.compared.take(self.compared.truth == OUTLIER)
            made[f"{scope}_cost"] = {
                "calibration": self._cost(measured.calibration, made, scope, self.calibration, None),
                "test": self._cost(measured.test, made, scope, self._of_new(self.compared), outside),
            }
        return made

    def record(self, counts: Sequence[int]) -> Json:
        """The calibration record; `counts`: images taught, of each new class."""
        old, scores = self.parent.calibration, self.calibration.scores
        deciding = scores[self.calibration.deciding]
        return old.model_dump() | {
            "in_distribution_images": old.in_distribution_images + len(deciding),
            "images_by_group": {**old.images_by_group, self.name: len(deciding)},
            "class_shares": _shares(self.parent, counts),
            "presumed_shares": _presumed(old.presumed_shares, len(counts)),
            "references": {n: r.model_dump() for n, r in {**old.references, self.name: self.reference}.items()},
            "id_scores": sorted([*old.id_scores, *deciding.tolist()]),
            "quantiles": {
                n: {**old.quantiles[n], self.name: np.quantile(scores[n], old.quantile_levels).tolist()}
                for n in scores if n in old.quantiles
            },
        }  # fmt: skip

    def _mine(self, seen: Seen) -> Flags:
        return np.asarray(self.of_class[seen.classes] == self.name)

    def _of_new(self, seen: Seen) -> Seen:
        """The images of new classes."""
        return seen.take(seen.truth >= len(self.parent.classes))

    def _spare(self) -> Iterator[tuple[float, float]]:
        """Scores of the parent's groups, the rarest first, in an order drawn without a look at them."""
        draw = np.random.default_rng(SPARE_SEED)
        for group in reversed(self.parent.group_names):
            for score in draw.permutation(self.parent.calibration.reference("group", group).scores).tolist():
                yield score, 1.0

    def _cost(self, old: Cost | None, point: Json, scope: Scope, seen: Seen, outside: Seen | None) -> Json:
        """The parent's cost of known classes, which stays, with that of the new ones. Outliers only where reviewed."""
        flags = refused(point, seen, self.classes, scope)
        before = (old.in_distribution_images, old.id_rejected) if old else (0, 0.0)
        mine, total = self._mine(seen), before[0] + len(flags)
        nothing: dict[str, float | None] = dict.fromkeys(self.parent.group_names)
        between = old.id_between_groups if old else {}
        if between is not None:
            names = (*self.parent.group_names, self.name)
            between = {
                **between,
                **calibrate.between_groups(flags, self.of_class[seen.truth], self.of_class[seen.classes], names),
            }
        caught = refused(point, outside, self.classes, scope) if outside and len(outside.truth) else None
        return {
            "in_distribution_images": total,
            "outlier_images": 0 if caught is None else len(caught),
            "id_rejected": (before[0] * before[1] + float(flags.sum())) / total,
            "id_rejected_by_group": {**(old.id_rejected_by_group if old else nothing), self.name: float(flags.mean())},
            "id_rejected_by_predicted_group": {
                **(old.id_rejected_by_predicted_group if old else nothing),
                self.name: float(flags[mine].mean()) if mine.any() else None,
            },
            "id_between_groups": between,
            "outliers_caught": None if caught is None else float(caught.mean()),
            "outliers_caught_by_predicted_group": {**nothing, self.name: None},
        }


def _shares(parent: Manifest, counts: Sequence[int]) -> list[float]:
    """The expected mix: new classes by their images among all that were taught, the others by what is left."""
    total = sum(c.train_count for c in parent.classes) + sum(counts)
    new = [count / total for count in counts]
    return [share * (1 - sum(new)) for share in parent.calibration.class_shares] + new


def _presumed(old: Sequence[float] | None, new: int) -> list[float] | None:
    """The gate takes all classes for equally frequent; within the known ones nothing changes."""
    if old is None:
        return None
    classes = len(old) + new
    return [share * len(old) / classes for share in old] + [1 / classes] * new
