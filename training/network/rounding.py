"""Weights of convolutions as 8-bit integers, so that what the convolution gives changes least.

Rounding errors of the weights of one output channel are made good by the weights not yet rounded (GPTQ, Frantar et al.
2023), as the covariance of the inputs says; what the channel's mean has moved goes into its bias.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

POSITIONS = 16  # of each batch of images, at which a convolution's input is looked at
DAMPING = 0.01  # of the mean variance, added to each input's
BLOCK = 64  # weights rounded before the rest hears of their errors, for speed
LARGEST = 127
# Without VNNI two products of a uint8 and an int8 are added in 16 bits, and saturate: two weights must stay below this.
LARGEST_PAIR = 128
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Of a convolution's input patches, K values in each of G groups: number, sums [G, K] and products [G, K, K]."""

    count: int
    sums: Doubles
    products: Doubles

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.sums + other.sums, self.products + other.products)

    @property
    def mean(self) -> Doubles:
        return self.sums / self.count

    @property
    def covariance(self) -> Doubles:
        mean = self.mean
        covariance: Doubles = self.products / self.count - mean[:, :, None] * mean[:, None, :]
        return covariance


def attributes(node: NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def moments_of(x: NDArray[np.float32], node: NodeProto, shape: tuple[int, ...], random: np.random.Generator) -> Moments:
    """Of `x` [N, C, H, W] as the convolution `node` with weights of `shape` sees it, at POSITIONS random places."""
    known = attributes(node)
    groups, stride, dilation = known.get("group", 1), known.get("strides", [1, 1]), known.get("dilations", [1, 1])
    top, left, bottom, right = known.get("pads", [0, 0, 0, 0])
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    rows, columns = (dilation[i] * np.arange(shape[2 + i]) for i in (0, 1))
    last = padded.shape[2] - rows[-1] - 1, padded.shape[3] - columns[-1] - 1
    at = [stride[i] * random.integers(0, last[i] // stride[i] + 1, POSITIONS) for i in (0, 1)]
    n, channels = x.shape[:2]
    patches = padded[:, :, (at[0][:, None] + rows)[:, :, None], (at[1][:, None] + columns)[:, None, :]]
    patches = patches.reshape(n, groups, channels // groups, POSITIONS, -1)  # N, G, C/G, P, h·w
    values = patches.transpose(1, 0, 3, 2, 4).reshape(groups, n * POSITIONS, -1).astype(np.float64)
    return Moments(values.shape[1], values.sum(axis=1), values.transpose(0, 2, 1) @ values)


def rounded(
    weight: NDArray[np.float32], bias: NDArray[np.float32], moments: Moments, step: float
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]:
    """(integers like `weight` [O, C/G, h, w], scale [O], bias [O]): weight ≈ integers · scale.

    `step` is that of the input: the bias will be an int32 in units of step · scale.
    """
    groups = len(moments.sums)
    flat = weight.reshape(groups, len(weight) // groups, -1).astype(np.float64)
    least = np.abs(bias).reshape(groups, -1) / (step * 2**30)
    scale = np.maximum(scales(flat), least).astype(np.float32)
    integers = _compensated(flat, moments, scale.astype(np.float64))
    moved = np.einsum("gok,gk->go", flat - integers * scale[..., None], moments.mean).reshape(-1)
    return integers.astype(np.int8).reshape(weight.shape), scale.reshape(-1), (bias + moved).astype(np.float32)


def scales(weight: Doubles) -> Doubles:
    """[G, O] of weights [G, O, K]: the least at which no weight and no pair of weights is too large, whatever the
    order in which a CPU takes them."""
    sizes = np.sort(np.abs(weight), axis=-1)
    pair = sizes[..., -1] + sizes[..., -2] if sizes.shape[-1] > 1 else sizes[..., -1]
    found: Doubles = np.maximum(sizes[..., -1] / LARGEST, pair / LARGEST_PAIR)
    return np.maximum(found, 1e-8)


def limits(weight: Doubles, scale: Doubles) -> Doubles:
    """[G, O, K], the largest integers allowed: the channel's largest weight as it is, the others with it no pair."""
    sizes = np.abs(weight) / scale[..., None]
    where = sizes.argmax(axis=-1)[..., None]
    peak = np.minimum(np.round(np.take_along_axis(sizes, where, axis=-1)), LARGEST)
    limit = np.repeat(np.minimum(LARGEST_PAIR - peak, LARGEST), weight.shape[-1], axis=-1)
    np.put_along_axis(limit, where, peak, axis=-1)
    return limit


def _compensated(weight: Doubles, moments: Moments, scale: Doubles) -> Doubles:
    """Whole numbers [G, O, K]; what rounding one changes in the output, those after it make good where they can."""
    size, covariance = weight.shape[-1], moments.covariance
    power = (
        np.trace(moments.products, axis1=1, axis2=2) / moments.count / size
    )  # in whose rounding a variance may drown
    variance = np.trace(covariance, axis1=1, axis2=2) / size + 1e-6 * power
    damped = covariance + (DAMPING * variance + 1e-10)[:, None, None] * np.eye(size)
    # inverse(damped) = upperᵀ · upper, by way of damped = root · rootᵀ with an upper triangular root
    root = np.linalg.cholesky(damped[:, ::-1, ::-1])[:, ::-1, ::-1]
    upper = np.linalg.inv(root)
    left, integers = weight.copy(), np.empty_like(weight)
    limit = limits(weight, scale)
    for start in range(0, size, BLOCK):
        block = slice(start, min(start + BLOCK, size))
        errors = np.zeros_like(left[..., block])
        for k in range(block.start, block.stop):
            integers[..., k] = np.clip(np.round(left[..., k] / scale), -limit[..., k], limit[..., k])
            error = (left[..., k] - integers[..., k] * scale) / upper[:, k, k, None]
            left[..., k + 1 : block.stop] -= error[..., None] * upper[:, k, None, k + 1 : block.stop]
            errors[..., k - start] = error
        left[..., block.stop :] -= errors @ upper[:, block, block.stop :]
    return integers
