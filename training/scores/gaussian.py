"""Mahalanobis distances to classes that are Gaussians of one covariance, and those less one to all images (RMDS)."""

import torch
from torch import Tensor

from training.scores.fitted import TINY, Constants, Reference, Seen, unit_length

RIDGE = 1e-3  # × the mean variance: no direction counts as narrower than 1/30 of the typical one
UNIT_IMAGES = 4096  # of which distances take their unit, where there are so many


def mahalanobis(seen: Seen, centre: Tensor, whiten: Tensor, means: Tensor) -> Tensor:
    """min_c (f − μ_c)ᵀ Σ⁻¹ (f − μ_c) / u, Σ pooled over the classes (Mahalanobis distance, Lee et al. 2018)."""
    x = (seen.features - centre) @ whiten  # (N, F)
    # ‖x‖² − 2x·m + ‖m‖² finds the nearest mean with one product, but cancels: the distance itself is taken afresh
    nearest = (means.square().sum(dim=1) - 2 * x @ means.T).argmin(dim=1)
    return (x - means[nearest]).square().sum(dim=1)


def fit_mahalanobis(reference: Reference) -> Constants:
    """Mean of all images [F]; V [F, F] with V·Vᵀ = Σ⁻¹/u; the class means, centred and whitened [≤ C, F].

    A class without images has no mean; one with a single image adds nothing to Σ. See `_unit_distance` for u.
    """
    return _mahalanobis_of(reference)[0]


def _mahalanobis_of(reference: Reference) -> tuple[Constants, Tensor]:
    """The constants, and u []."""
    features = reference.features.double()
    centre = features.mean(dim=0)
    _, index, counts = torch.unique(reference.labels, return_inverse=True, return_counts=True)
    means = features.new_zeros(len(counts), features.shape[1]).index_add(0, index, features) / counts[:, None]
    deviations = features - means[index]
    whiten = _whitening(deviations)
    unit = _unit_distance(deviations, counts[index], whiten)
    whiten = whiten / unit.sqrt()
    return {"centre": centre.float(), "whiten": whiten.float(), "means": ((means - centre) @ whiten).float()}, unit


def _unit_distance(deviations: Tensor, of_class: Tensor, whiten: Tensor) -> Tensor:
    """u []: the median distance of a training image to its class, both of which are estimated without it.

    With fewer images than features a new image lies 10⁶ from every class and a training image at 0; how far hangs on
    the number of images. In units of u heads that learnt from a part of the images agree with the one that learnt from
    all, as cross-fitted thresholds take for granted. `deviations` [N, F] from class means, images `of_class` [N] of the
    own class. Where no image can be left out, u = 1.
    """
    rows = torch.arange(0, len(deviations), max(1, len(deviations) // UNIT_IMAGES), device=deviations.device)
    rows = rows[of_class[rows] > 1]
    grown = of_class[rows] / (of_class[rows] - 1)  # a deviation from a mean that lacks the image is this much longer
    own = (deviations[rows] @ whiten).square().sum(dim=1)
    left_out = grown.square() * own / (1 - grown * own / len(deviations)).clamp_min(TINY)  # Sherman & Morrison
    unit = left_out.median() if len(rows) else own.new_ones(())
    return torch.where(unit > TINY, unit, 1)


def rmds(seen: Seen, background: Tensor, centre: Tensor, whiten: Tensor, means: Tensor) -> Tensor:
    """min_c M_c − M_0: Mahalanobis distance less that to one Gaussian of all images (RMDS, Ren et al. 2021)."""
    return mahalanobis(seen, centre, whiten, means) - ((seen.features - centre) @ background).square().sum(dim=1)


def fit_rmds(reference: Reference) -> Constants:
    """As for mahalanobis, and the whitening [F, F] of all images around their mean, in the same unit."""
    features = reference.features.double()
    constants, unit = _mahalanobis_of(reference)
    background = _whitening(features - features.mean(dim=0)) / unit.sqrt()
    return {**constants, "background": background.float()}


def _whitening(deviations: Tensor) -> Tensor:
    """[N, F] → V [F, F] with V·Vᵀ = (Σ + ridge)⁻¹. The ridge carries N < F, dead features and zero variance."""
    covariance = deviations.T @ deviations / len(deviations)
    one = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    ridge = RIDGE * covariance.diagonal().mean().clamp_min(TINY)
    lower = torch.linalg.cholesky(covariance + ridge * one)
    inverse: Tensor = torch.linalg.solve_triangular(lower, one, upper=False)
    return inverse.T


def mahalanobis_pp(seen: Seen, **constants: Tensor) -> Tensor:
    """Mahalanobis distance of f/‖f‖ (Mahalanobis++, Mueller & Hein 2025; with the ridge also HPM, 2026)."""
    return mahalanobis(unit_length(seen), **constants)


def fit_mahalanobis_pp(reference: Reference) -> Constants:
    """As for mahalanobis, of features of length 1."""
    return fit_mahalanobis(unit_length(reference))


def rmds_pp(seen: Seen, **constants: Tensor) -> Tensor:
    """RMDS of f/‖f‖ (Mueller & Hein 2025)."""
    return rmds(unit_length(seen), **constants)


def fit_rmds_pp(reference: Reference) -> Constants:
    """As for rmds, of features of length 1."""
    return fit_rmds(unit_length(reference))
