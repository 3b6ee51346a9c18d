"""What stands between a photograph and a pretrained trunk, and the one error of everything about backbones."""

from dataclasses import dataclass
from typing import Any

from service.contract.manifest import Resampling

PLAIN = (1 / 255, 1 / 255, 1 / 255)  # the std with which, and a mean of 0, pixels stay what they are


class BackboneError(ValueError):
    """A backbone or its weights cannot be used; the message names the value and the remedy."""


@dataclass(frozen=True)
class Preprocessing:
    """What stands between a photograph and the trunk: `mean` and `std` [3] of RGB in [0, 1]."""

    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_share: float = 1.0  # of the short side, kept around the centre
    resampling: Resampling = "bilinear"


def three(values: Any, what: str) -> tuple[float, float, float]:
    """The `what`, mean or std, of RGB in [0, 1]. BackboneError where it cannot be that."""
    numbers = tuple(float(v) for v in values)
    if len(numbers) != 3:
        raise BackboneError(f"the {what} must be three numbers, for red, green and blue, not {numbers}")
    if not all(-1 <= n <= 1 for n in numbers) or (what == "std" and not all(n > 0 for n in numbers)):
        raise BackboneError(f"the {what} {numbers} is not one of RGB in [0, 1]: divide one of pixels up to 255 by 255")
    return numbers
