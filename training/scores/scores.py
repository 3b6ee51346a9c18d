"""SCORES: one row per outlier score. Seen of N images → [N], larger = more outlying, comparable within one model.

Every score can be part of an exported graph, and so can the sum of two, named like "energy+ncm". `fitted` makes the
module for a network; the scores whose constants are fitted on training images are in fitted.py and gaussian.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.scores import fitted as posthoc
from training.scores import gaussian
from training.scores.fitted import Constants, Reference, Seen

__all__ = ["SCORES", "Fitted", "Reference", "Score", "Seen", "find", "fitted"]

GEN_GAMMA, GEN_CLASSES, SPAN_IMAGES = 0.1, 100, 2000


@dataclass(frozen=True)
class Score:
    """One row of SCORES."""

    formula: str  # one line, shown in the bundle's manifest; z logits, f features, p softmax
    paper: str
    value: Callable[..., Tensor]  # value(seen, **constants) → [N]
    fit: Callable[[Reference], Constants] | None = None
    needs_reject: bool = False
    constant_for_one_class: bool = False  # it compares classes
    cost: str = "negligible"  # beyond the trunk, per image; C classes, F features


def energy(seen: Seen) -> Tensor:
    """−T·logsumexp_k(z_k / T) with T = 1 (Liu et al. 2020). Any real number."""
    return -seen.logits.logsumexp(dim=1)


def msp(seen: Seen) -> Tensor:
    """1 − max_k softmax(z)_k (maximum softmax probability, Hendrycks & Gimpel 2017). In [0, 1)."""
    return 1 - seen.logits.softmax(dim=1).amax(dim=1)


def max_logit(seen: Seen) -> Tensor:
    """−max_k z_k (Hendrycks et al. 2022). Any real number."""
    return -seen.logits.amax(dim=1)


def gen(seen: Seen) -> Tensor:
    """Σ over the 100 largest p_k of (p_k·(1 − p_k))^0.1, p = softmax(z) (generalised entropy, Liu et al. 2023). ≥ 0."""
    p = seen.logits.softmax(dim=1).sort(dim=1, descending=True).values
    # 1 − p of the first class as the sum of the others: 1 − p itself rounds to 0 or 6e-8, which ^0.1 makes 0 or 0.19
    rest = torch.cat([p[:, 1:].sum(dim=1, keepdim=True), 1 - p[:, 1:]], dim=1)
    return (p * rest)[:, :GEN_CLASSES].pow(GEN_GAMMA).sum(dim=1)


def reject_mass(seen: Seen) -> Tensor:
    """Log-odds of the reject classes' probability m among all C + R: log m/(1 − m) = logsumexp r − logsumexp z.

    It ranks as m does, without ties where m rounds to 0 or 1. Any real number.
    """
    return seen.reject.logsumexp(dim=1) - seen.logits.logsumexp(dim=1)


def reject_half(seen: Seen) -> Tensor:
    """½·logsumexp r − logsumexp z, the mean of `reject_mass` and `energy`. Any real number. This project.

    e^z is the density of a class and e^r that of the training outliers, both up to one constant (see
    outliers.outlier_class_adjusted). Log-odds against those outliers are logsumexp r − logsumexp z, against outliers
    spread evenly over everything −logsumexp z. What comes is neither: the mean of the two halves what is known of the
    training outliers, and its background is the geometric mean of both densities.
    """
    return 0.5 * seen.reject.logsumexp(dim=1) - seen.logits.logsumexp(dim=1)


def in_or_out(seen: Seen) -> Tensor:
    """−g, g the one reject logit of a network trained with P(in-distribution) = sigmoid(g) (ImOOD, Liu et al. 2024)."""
    return -seen.reject[:, 0]


SCORES: dict[str, Score] = {
    "energy": Score("-T*logsumexp(z/T), z the stage-1 logits", "Liu et al. 2020", energy),
    "msp": Score(
        "1 - max softmax(z), z the stage-1 logits", "Hendrycks & Gimpel 2017", msp, constant_for_one_class=True,
    ),
    "max-logit": Score("-max z", "Hendrycks et al. 2022", max_logit),
    "gen": Score(
        "sum over the 100 largest p of (p*(1-p))^0.1, p = softmax(z)", "Liu et al. 2023 (GEN)", gen,
        constant_for_one_class=True,
    ),
    "reject-mass": Score(
        "logsumexp(r) - logsumexp(z), r the reject logits: log-odds of their mass",
        "Mohseni et al. 2020 (SOFL); Wei et al. 2024 (EAT)", reject_mass, needs_reject=True,
    ),
    "reject-half": Score(
        "logsumexp(r)/2 - logsumexp(z): the mean of reject-mass and energy", "this project", reject_half,
        needs_reject=True,
    ),
    "background": Score(
        "log(sum(e^r) + e^c) - logsumexp(z), c the 5% quantile of logsumexp(z) on training images, less 4",
        "this project", posthoc.background, posthoc.fit_background, needs_reject=True,
    ),
    "in-or-out": Score("-g, P(in) = sigmoid(g)", "Liu et al. 2024 (ImOOD)", in_or_out, needs_reject=True),
    "react": Score(
        "-logsumexp(W*min(f, c) + b), c the 90th percentile of training activations",
        "Sun et al. 2021 (ReAct)", posthoc.react, posthoc.fit_react, cost="C*F multiply-adds",
    ),
    "fdbd": Score(
        "-mean over k != c* of (z_c* - z_k)/||w_c* - w_k||, divided by ||f - mean f||",
        "Liu & Qin 2024 (fDBD)", posthoc.fdbd, posthoc.fit_fdbd, cost="C + F multiply-adds, C*C constants",
        constant_for_one_class=True,
    ),
    "nci": Score(
        "-w_c*.(f - mean f)/||f - mean f|| - 0.001*||f||_1",
        "Liu & Qin 2025 (NCI)", posthoc.nci, posthoc.fit_nci, cost="2*F multiply-adds",
    ),
    "vim": Score(
        "a*||R'(f - u)|| - logsumexp(z), R the minor half of the training features' directions",
        "Wang et al. 2022 (ViM)", posthoc.vim, posthoc.fit_vim, cost="F*F/2 multiply-adds",
    ),
    "ncm": Score(
        "-max_c cos(f, m_c), m_c the mean of class c", "Mensink et al. 2013 (nearest class mean)",
        posthoc.ncm, posthoc.fit_ncm, cost="C*F multiply-adds",
    ),
    "mahalanobis": Score(
        "min_c (f - m_c)' S^-1 (f - m_c) / u, u the median over training images left out",
        "Lee et al. 2018", gaussian.mahalanobis, gaussian.fit_mahalanobis, cost="F*F + C*F multiply-adds",
    ),
    "mahalanobis-pp": Score(
        "min_c (f - m_c)' S^-1 (f - m_c) / u, f of length 1", "Mueller & Hein 2025 (Mahalanobis++); HPM 2026",
        gaussian.mahalanobis_pp, gaussian.fit_mahalanobis_pp, cost="F*F + C*F multiply-adds",
    ),
    "rmds": Score(
        "(min_c (f - m_c)' S^-1 (f - m_c) - (f - m)' S0^-1 (f - m)) / u",
        "Ren et al. 2021 (RMDS)", gaussian.rmds, gaussian.fit_rmds, cost="2*F*F + C*F multiply-adds",
    ),
    "rmds-pp": Score(
        "(min_c (f - m_c)' S^-1 (f - m_c) - (f - m)' S0^-1 (f - m)) / u, f of length 1",
        "Mueller & Hein 2025 (RMDS++)", gaussian.rmds_pp, gaussian.fit_rmds_pp, cost="2*F*F + C*F multiply-adds",
    ),
    "knn": Score(
        "-(K-th largest cosine of f to a bank of training images), K = 0.1% of the bank",
        "Sun et al. 2022 (KNN)", posthoc.knn, posthoc.fit_knn,
        cost="bank*F multiply-adds, 4*bank*F bytes in the graph; bank of 4,096, F = 512: 2.1 M and 8.4 MB",
    ),
}  # fmt: skip


def summed(first: str, second: str) -> Score:
    """The sum of two rows of SCORES, each divided by its span from the 5% to the 95% quantile on training images."""
    both = SCORES[first], SCORES[second]
    rows = dict(zip(("first_", "second_"), both, strict=True))

    def fit(reference: Reference) -> Constants:
        features, reject = reference.features, reference.reject
        if reject is None and any(row.needs_reject for row in both):
            raise ValueError(f"{first}+{second} reads reject logits, and the training images were given without")
        whole = Seen(features, reference.logits, features[:, :0] if reject is None else reject)
        seen = Seen(*(outputs[:: span_step(len(features))] for outputs in whole))
        constants: Constants = {}
        for place, row in rows.items():
            own = row.fit(reference) if row.fit else {}
            width = span(row.value(seen, **own).detach().cpu().numpy())
            constants |= {place + key: value for key, value in own.items()}
            constants[place + "span"] = torch.tensor(width, dtype=torch.float32, device=features.device)
        return constants

    def value(seen: Seen, **constants: Tensor) -> Tensor:
        total = torch.zeros_like(seen.logits[:, 0])
        for place, row in rows.items():
            own = {key.removeprefix(place): tensor for key, tensor in constants.items() if key.startswith(place)}
            width = own.pop("span")
            total = total + row.value(seen, **own) / width
        return total

    return Score(
        f"{first}/w1 + {second}/w2, w the span of a score from the 5% to the 95% quantile on training images",
        "; ".join(row.paper for row in both), value, fit, any(row.needs_reject for row in both),
        any(row.constant_for_one_class for row in both), ", and ".join(dict.fromkeys(row.cost for row in both)),
    )  # fmt: skip


def span_step(images: int) -> int:
    """Spans are measured on training images so many apart, about SPAN_IMAGES of them."""
    return max(1, images // SPAN_IMAGES)


def span(values: NDArray[np.floating[Any]]) -> float:
    """From the 5% to the 95% quantile of scores [N]; never 0."""
    low, high = np.quantile(values.astype(np.float64), [0.05, 0.95])
    return max(float(high - low), posthoc.TINY)


def find(name: str) -> Score | None:
    """The row of SCORES called `name`, or for "energy+ncm" the sum of two; None where there is none."""
    first, plus, second = name.partition("+")
    if plus and first != second and first in SCORES and second in SCORES:
        return summed(first, second)
    return SCORES.get(name)


class Fitted(nn.Module):
    """A score with its constants as buffers. Seen of N images → [N]."""

    def __init__(self, score: Score, constants: Constants) -> None:
        super().__init__()
        self.score = score
        for name, constant in constants.items():
            self.register_buffer(name, constant.detach().clone(memory_format=torch.contiguous_format))

    def forward(self, seen: Seen) -> Tensor:
        return self.score.value(seen, **dict(self.named_buffers()))


def require_score(name: str, has_reject: bool, num_classes: int | None = None) -> Score:
    """The row of SCORES called `name`. ValueError where there is none, or where it says nothing of this network.

    That is a score of reject logits without such logits, and one that compares classes where there is one class.
    """
    score = find(name)
    if score is None:
        raise ValueError(f"There is no score {name!r}. Choose from: {', '.join(SCORES)}; or ONE+OTHER; or ONE|msp.")
    if score.needs_reject and not has_reject:
        free = ", ".join(other for other, row in SCORES.items() if not row.needs_reject)
        raise ValueError(
            f"Score {name!r} reads reject logits, and this network has none. Train it with a method that adds them, "
            f"or choose from: {free}."
        )
    if score.constant_for_one_class and num_classes == 1:
        free = ", ".join(other for other, row in SCORES.items() if not row.constant_for_one_class)
        raise ValueError(f"Score {name!r} compares classes, and these data have one. Choose from: {free}.")
    return score


def fitted(name: str, reference: Reference | None, has_reject: bool) -> Fitted:
    """The score `name`, fitted on `reference` where it needs that. Raises ValueError where it cannot be computed."""
    score = require_score(name, has_reject)
    if score.fit is None:
        return Fitted(score, {})
    if reference is None:
        free = ", ".join(other for other, row in SCORES.items() if row.fit is None)
        raise ValueError(f"Score {name!r} is fitted on training images, and none were given. Pass a Reference, or "
                         f"choose from those that need no fitting: {free}.")  # fmt: skip
    with torch.no_grad():
        return Fitted(score, score.fit(reference))
