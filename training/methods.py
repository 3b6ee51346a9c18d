"""METHODS: one frozen row per method; the literature on one screen."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from training import losses
from training.contrast import pascl
from training.outliers import outlier_exposure
from training.stage2 import ABF, ABF_HEAD, Stage2


@dataclass(frozen=True)
class Method:
    """What stage 1 minimises, what follows it, and which score decides."""

    paper: str
    loss: Callable[[Tensor, Tensor, Tensor], Tensor] = losses.cross_entropy
    outlier_term: Callable[[Tensor], Tensor] | None = None
    outlier_weight: float = 0.0  # λ1
    contrast: Callable[..., Tensor] | None = None
    stage2: Stage2 | None = None
    score: str = "msp"

    @property
    def needs_outliers(self) -> bool:
        return self.outlier_term is not None


_OE = {"outlier_term": outlier_exposure, "outlier_weight": 0.5}
_PASCL = {**_OE, "contrast": pascl, "paper": "Wang et al. 2022"}

METHODS: dict[str, Method] = {
    "msp": Method(paper="Hendrycks & Gimpel 2017"),
    "oe": Method(paper="Hendrycks et al. 2019", **_OE),  # type: ignore[arg-type]
    "pascl": Method(**_PASCL),  # type: ignore[arg-type]
    "pascl-abf": Method(**_PASCL, stage2=ABF),  # type: ignore[arg-type]
    "pascl-abf-head": Method(**_PASCL, stage2=ABF_HEAD),  # type: ignore[arg-type]
}


def find(name: str) -> Method:
    """The row of METHODS called `name`; ValueError naming the rows there are."""
    try:
        return METHODS[name]
    except KeyError:
        raise ValueError(f"there is no method {name!r}; the methods are {', '.join(METHODS)}") from None


def contrast_defaults(num_classes: int) -> tuple[float, float]:
    """PASCL's (λ2, T): (.1, .07) as on CIFAR-10, (.02, .2) as on CIFAR-100 (REFERENCE A4)."""
    return (0.1, 0.07) if num_classes < 50 else (0.02, 0.2)
