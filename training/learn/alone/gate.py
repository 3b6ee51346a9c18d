"""The gate: multinomial logistic regression on the embedding, over known classes, new classes, and "outlier".

Known classes are taught by the bundle's exemplars and by reviewed images, the others by reviewed images alone; every
class weighs the same. Only the sum over the new classes, and over all the rest, is used: see grown.py.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

STRENGTHS = (10.0, 100.0, 1000.0)  # scikit-learn's C; rows have length 1, so that weights have to be large
FOLDS = 4
STEPS = 200
SMALLEST = 1e-12  # of a probability, in a logarithm
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Taught:
    """`rows` [N, D] of length 1, their `labels` [N] in 0..K-1, and `units` [N]: images that no fold may part."""

    rows: NDArray[np.float32]
    labels: Ints
    units: NDArray[np.uint64]


@dataclass(frozen=True)
class Gate:
    """weight [K, D] and bias [K]; `crossed` [N, K]: log-probabilities of each row by a gate fitted without its unit."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    crossed: NDArray[np.float32]
    strength: float


def fit(taught: Taught) -> Gate:
    """The gate whose strength, of STRENGTHS, is best by the cross-fitted likelihood, each class counting the same.

    Raises ValueError where there are fewer than two labels.
    """
    if len(np.unique(taught.labels)) < 2:
        raise ValueError("one class alone is told from nothing: the exemplars of the bundle are of a single class")
    tried = [(strength, _crossed(taught, strength)) for strength in STRENGTHS]
    strength, crossed = max(tried, key=lambda one: _likelihood(one[1], taught.labels))
    made = _fitted(taught.rows, taught.labels, strength)
    weight, bias = np.asarray(made.coef_, np.float64), np.asarray(made.intercept_, np.float64)
    if len(weight) == 1:  # of two classes scikit-learn keeps one row, the difference
        weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    return Gate(weight.astype(np.float32), bias.astype(np.float32), _log(crossed).astype(np.float32), strength)


def _crossed(taught: Taught, strength: float) -> Floats:
    """[N, K] probabilities of each row by a model that has not seen its unit."""
    from sklearn.model_selection import StratifiedGroupKFold  # takes as long to import as torch

    classes = int(taught.labels.max()) + 1
    found = np.zeros((len(taught.labels), classes))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # then a fold has none of it
        parts = list(folds.split(taught.rows, taught.labels, taught.units))
    for learned, left_out in parts:
        model = _fitted(taught.rows[learned], taught.labels[learned], strength)
        found[np.ix_(left_out, model.classes_)] = model.predict_proba(taught.rows[left_out])
    return found


def _fitted(rows: NDArray[np.float32], labels: Ints, strength: float) -> Any:
    """sklearn.linear_model.LogisticRegression."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near enough after so many steps
        return model.fit(rows.astype(np.float64), labels)


def _log(probabilities: Floats) -> Floats:
    return np.log(np.maximum(probabilities, SMALLEST))


def _likelihood(probabilities: Floats, labels: Ints) -> float:
    """The mean over the classes of the mean log-probability of their own rows."""
    own = _log(probabilities)[np.arange(len(labels)), labels]
    counts = np.bincount(labels)
    return float((np.bincount(labels, own) / np.maximum(counts, 1))[counts > 0].mean())
