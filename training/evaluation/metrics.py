"""Pure functions from scores, labels and predictions (arrays, lists, tensors on the CPU) to the floats a table prints.

OOD is the positive class and scores are larger = more outlying. scikit-learn computes AUROC and average precision. A
quantity "at level n" is taken at the measured ROC point nearest to n; nothing is interpolated and tied scores are one
point. The conventions are those of PASCL (Wang et al., ICML 2022), whose two ROC curves differ:

- FPR95 reads every distinct score, from recall 1 downward. Of two points equally near it takes the larger recall, and
  of several with one recall the largest FPR. (Hendrycks et al., ICLR 2019.)
- ACC@TPRn, ACC@FPRn and FPR@TPRn read the ROC curve without its collinear points, from recall 0 upward, starting at the
  point that flags nothing. Of two points equally near they take the smaller rate. Kept means score <= threshold, the
  rule of contract/decision.py, so an image on the threshold counts as flagged in that point's rate and is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
TPR_LEVELS = (0.98, 0.95, 0.90, 0.80)
ShotGroup = Literal["many", "medium", "few"]
SHOT_GROUPS: tuple[ShotGroup, ...] = ("many", "medium", "few")
FPR_LEVELS = (0.0001, 0.001, 0.01, 0.1)


@dataclass(frozen=True)
class OODMetrics:
    """How well scores part OOD from in-distribution images. All in [0, 1]."""

    auroc: float
    aupr: float  # average precision, OOD positive
    fpr95: float  # share of in-distribution images flagged when 95% of OOD images are caught
    fpr95_id_positive: float  # share of OOD images accepted when 95% of in-distribution images are kept
    aupr_id_positive: float


class GroupAccuracy(NamedTuple):
    """Unweighted mean of the class accuracies of each group, in [0, 1]; NaN for a group without images."""

    many: float
    medium: float
    few: float


class GroupFPR(NamedTuple):
    """In-distribution images flagged at one OOD recall, in [0, 1]; NaN for a group without images."""

    overall: float  # the rate of the ROC point: score >= threshold
    many: float  # the three groups, by true class: score > threshold
    medium: float
    few: float


# ---- OOD detection --------------------------------------------------------------------------------------------------


def ood_metrics(id_scores: ArrayLike, ood_scores: ArrayLike) -> OODMetrics:
    """AUROC, average precision and FPR95, the last two in both conventions. Scores [N] and [M].

    Raises ValueError for empty scores, scores of more than one dimension, and scores that are NaN or infinite.
    """
    from sklearn import metrics as sk  # takes as long to import as torch, and most commands never need it

    ins, outs = _scores("id_scores", id_scores), _scores("ood_scores", ood_scores)
    truth, scores = _joined(ins, outs)
    return OODMetrics(
        auroc=float(sk.roc_auc_score(truth, scores)),
        aupr=float(sk.average_precision_score(truth, scores)),
        fpr95=_fpr_at_recall(outs, ins, 0.95),
        fpr95_id_positive=_fpr_at_recall(-ins, -outs, 0.95),
        aupr_id_positive=float(sk.average_precision_score(1 - truth, -scores)),
    )


def _fpr_at_recall(positives: Floats, negatives: Floats, level: float) -> float:
    """Share of negatives at or above the threshold whose recall is nearest to `level`; ties as the header says."""
    thresholds = np.unique(np.concatenate([positives, negatives]))[::-1]  # (K,) descending
    caught = _at_least(positives, thresholds)
    flagged = _at_least(negatives, thresholds)
    complete = int(np.argmax(caught == len(positives)))  # lower thresholds only flag more negatives
    recall = caught[complete::-1] / len(positives)
    nearest = int(np.argmin(np.abs(recall - level)))
    return float(flagged[complete::-1][nearest] / len(negatives))


def _at_least(values: Floats, thresholds: Floats) -> Ints:
    """(K,): how many of the values are >= each threshold."""
    return len(values) - np.searchsorted(np.sort(values), thresholds, side="left")


# ---- Accuracy of what is kept ---------------------------------------------------------------------------------------


def accuracy_at_tpr(
    labels: ArrayLike, predictions: ArrayLike, id_scores: ArrayLike, ood_scores: ArrayLike, level: float
) -> float:
    """ACC@TPRn: accuracy on the in-distribution images kept when a share `level` of the OOD images is caught.

    Labels, predictions and id_scores [N], ood_scores [M]. "ACC95" in the literature is level 0.95. NaN when nothing is
    kept. Raises ValueError as ood_metrics does, and for lengths that differ or a level outside [0, 1].
    """
    return _accuracy_at("tpr", labels, predictions, id_scores, ood_scores, level)


def accuracy_at_fpr(
    labels: ArrayLike, predictions: ArrayLike, id_scores: ArrayLike, ood_scores: ArrayLike, level: float
) -> float:
    """ACC@FPRn: accuracy on the in-distribution images kept when a share `level` of them is rejected.

    The OOD scores [M] only decide which points the ROC curve has. Otherwise as accuracy_at_tpr.
    """
    return _accuracy_at("fpr", labels, predictions, id_scores, ood_scores, level)


def fpr_at_tpr_by_group(
    labels: ArrayLike,
    id_scores: ArrayLike,
    ood_scores: ArrayLike,
    train_counts: ArrayLike,
    levels: Sequence[float] = TPR_LEVELS,
) -> dict[float, GroupFPR]:
    """FPR@TPRn: for each OOD recall in `levels`, the share of in-distribution images flagged, overall and by group.

    Labels and id_scores [N], ood_scores [M], train_counts [C]. A group of class_groups counts all its images. (PASCL
    cuts groups at class indices here and averages over classes.) Raises ValueError as accuracy_at_tpr does.
    """
    groups = np.array(class_groups(train_counts))
    ins, outs = _scores("id_scores", id_scores), _scores("ood_scores", ood_scores)
    truth = _labels(labels, len(groups))
    _same_length(labels=truth, id_scores=ins)
    by_level = {}
    for level in levels:
        rate, threshold = _roc_point("tpr", ins, outs, level)
        shares = {g: _mean(ins[groups[truth] == g] > threshold) for g in SHOT_GROUPS}
        by_level[level] = GroupFPR(overall=rate, **shares)
    return by_level


def _accuracy_at(
    axis: str, labels: ArrayLike, predictions: ArrayLike, id_scores: ArrayLike, ood_scores: ArrayLike, level: float
) -> float:
    ins, outs = _scores("id_scores", id_scores), _scores("ood_scores", ood_scores)
    truth, predicted = _integers("labels", labels), _integers("predictions", predictions)
    _same_length(labels=truth, predictions=predicted, id_scores=ins)
    kept = ins <= _roc_point(axis, ins, outs, level)[1]
    return _mean(truth[kept] == predicted[kept])


def _roc_point(axis: str, ins: Floats, outs: Floats, level: float) -> tuple[float, float]:
    """(FPR, threshold) of the ROC point whose "fpr" or "tpr" is nearest to `level`; the threshold may be +inf."""
    if not 0 <= level <= 1:
        raise ValueError(f"level is {level}: give a share in [0, 1]")
    from sklearn.metrics import roc_curve

    fpr, tpr, thresholds = roc_curve(*_joined(ins, outs), drop_intermediate=True)
    nearest = int(np.argmin(np.abs((tpr if axis == "tpr" else fpr) - level)))
    return float(fpr[nearest]), float(thresholds[nearest])


# ---- Accuracy by class and group ------------------------------------------------------------------------------------


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Share of predictions [N] that equal their label [N]. Raises ValueError when empty or lengths differ."""
    truth, predicted = _integers("labels", labels), _integers("predictions", predictions)
    _same_length(labels=truth, predictions=predicted)
    return _mean(truth == predicted)


def class_accuracy(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> list[float]:
    """Accuracy of each of the C classes, NaN for a class without images. Labels and predictions [N].

    Raises ValueError when empty, when lengths differ, and for labels outside 0..C-1. A prediction outside is an error
    of the classifier (a reject class, say) and counts as wrong.
    """
    truth, predicted = _labels(labels, num_classes), _integers("predictions", predictions)
    _same_length(labels=truth, predictions=predicted)
    return [_mean(predicted[truth == c] == c) for c in range(num_classes)]


def class_groups(train_counts: ArrayLike) -> list[ShotGroup]:
    """The group of each class from its number of training images [C], as the papers' tables cut them.

    With the counts sorted in descending order, many means more images than the class at index floor(0.34 C) has, few
    means fewer than the one at floor(0.67 C), medium the rest. Above 100 classes the bounds are 100 and 20 images
    (Liu et al., CVPR 2019). Raises ValueError for empty or negative counts.
    """
    counts = _integers("train_counts", train_counts)
    if counts.min() < 0:
        raise ValueError(f"train_counts has {counts.min()}: a class cannot have fewer than 0 images")
    descending = np.sort(counts)[::-1]
    n = len(counts)
    most, least = (100, 20) if n > 100 else (descending[int(0.34 * n)], descending[int(0.67 * n)])
    return ["many" if c > most else "few" if c < least else "medium" for c in counts]


def group_accuracy(labels: ArrayLike, predictions: ArrayLike, train_counts: ArrayLike) -> GroupAccuracy:
    """Unweighted mean class accuracy of the many, medium and few groups; classes without images are left out.

    Labels and predictions [N], train_counts [C]. Raises ValueError as class_accuracy and class_groups do.
    """
    groups = np.array(class_groups(train_counts))
    by_class = np.array(class_accuracy(labels, predictions, len(groups)))
    seen = ~np.isnan(by_class)
    return GroupAccuracy(*(_mean(by_class[seen & (groups == g)]) for g in SHOT_GROUPS))


# ---- Checks ---------------------------------------------------------------------------------------------------------


def _joined(ins: Floats, outs: Floats) -> tuple[Ints, Floats]:
    return np.repeat([0, 1], [len(ins), len(outs)]), np.concatenate([ins, outs])


def _mean(values: NDArray[np.bool_] | Floats) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _scores(name: str, values: ArrayLike) -> Floats:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"{name} has shape {scores.shape}: give one score per image, for at least one image")
    if bad := int(np.count_nonzero(~np.isfinite(scores))):
        raise ValueError(f"{name} has {bad} values of {len(scores)} that are NaN or infinite: they cannot be ranked")
    return scores


def _integers(name: str, values: ArrayLike) -> Ints:
    array = np.asarray(values)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name} has shape {array.shape}: give one number per item, for at least one item")
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} has dtype {array.dtype}: give integers")
    return array.astype(np.int64)


def _labels(values: ArrayLike, num_classes: int) -> Ints:
    labels = _integers("labels", values)
    if (low := int(labels.min())) < 0 or (high := int(labels.max())) >= num_classes:
        raise ValueError(f"labels has {low if low < 0 else high}: {num_classes} classes are 0..{num_classes - 1}")
    return labels


def _same_length(**arrays: Floats | Ints) -> None:
    if len({len(a) for a in arrays.values()}) > 1:
        lengths = ", ".join(f"{name} {len(a)}" for name, a in arrays.items())
        raise ValueError(f"lengths differ: {lengths}")
