"""How sure is a share? Wilson's interval, and that of the difference of two shares on the same images."""

import math

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054  # the 97.5% quantile of the standard normal distribution


def wilson(count: float, of: float, z: float = Z95) -> tuple[float, float]:
    """The score interval of a share `count` of `of` (Wilson 1927); (0, 1) of none. It holds for small numbers and for
    shares near 0 and 1, where p ± z·sqrt(p(1 - p)/n) does not.

    Neither needs to be whole: of weighted images give the effective number, (sum w)^2 / sum w^2 (Kish 1965).
    """
    if not of > 0:
        return 0.0, 1.0
    share = count / of
    middle = share + z * z / (2 * of)
    half = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    scale = 1 + z * z / of
    low, high = max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)
    return low if count else 0.0, high if count < of else 1.0


def effective(weights: NDArray[np.float64]) -> float:
    """How many images of equal weight tell as much as these [N] (Kish 1965)."""
    return float(weights.sum() ** 2 / (weights**2).sum()) if len(weights) and weights.sum() > 0 else 0.0


def paired(before: NDArray[np.bool_], after: NDArray[np.bool_], z: float = Z95) -> tuple[float, float]:
    """The interval of the share of `after` less that of `before`, both of the same images [N] (Agresti and Min 2005).

    Half an image is added to each cell of the fourfold table, which keeps it honest where few images changed.
    """
    n = len(before) + 2
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    middle = (gained - lost) / n
    half = z * math.sqrt(max(gained + lost + 1 - (gained - lost) ** 2 / n, 0.0)) / n
    return max(middle - half, -1.0), min(middle + half, 1.0)
