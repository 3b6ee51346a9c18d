"""service/contract/calibration/prior.py on simulated streams whose posteriors and mix are known exactly."""

import numpy as np
import pytest
from numpy.typing import NDArray

from service.contract.calibration.prior import presumed_shares, stream_shares

Floats = NDArray[np.float64]
COUNTS = np.array([500, 200, 100, 50, 20, 10])
TRAINED = COUNTS / COUNTS.sum()
EVEN = np.full(6, 1 / 6)


def draw(random: np.random.Generator, mix: Floats, images: int) -> tuple[Floats, NDArray[np.int64]]:
    """Images as points on a line, class c around 2 c with deviation 1: their densities [N, 6] and labels [N]."""
    labels = random.choice(6, images, p=mix)
    at = 2 * labels + random.standard_normal(images)
    return np.exp(-((at[:, None] - 2 * np.arange(6)) ** 2) / 2), labels


def posterior(density: Floats, prior: Floats) -> Floats:
    joint: Floats = density * prior
    return np.asarray(joint / joint.sum(1, keepdims=True))


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("mix", [TRAINED, EVEN], ids=["as trained", "balanced"])
def test_the_presumed_mix_is_found_whatever_the_mix_of_the_calibration(tau: float, mix: Floats) -> None:
    prior = TRAINED**tau / (TRAINED**tau).sum()
    density, labels = draw(np.random.default_rng(0), mix, 3000)
    found = presumed_shares(posterior(density, prior), labels, COUNTS)
    assert found.sum() == pytest.approx(1)
    np.testing.assert_allclose(found, prior, atol=0.03)


def test_a_class_without_an_image_does_not_matter() -> None:
    density, labels = draw(np.random.default_rng(0), EVEN, 2000)
    seen = labels < 5
    found = presumed_shares(posterior(density, TRAINED)[seen], labels[seen], np.array([*COUNTS[:5], 0]))
    assert np.isfinite(found).all()
    assert (found > 0).all()


@pytest.mark.parametrize("mix", [TRAINED, EVEN, TRAINED[::-1]], ids=["as trained", "balanced", "reversed"])
@pytest.mark.parametrize("prior", [TRAINED, EVEN], ids=["plain", "adjusted"])
def test_em_finds_the_mix_of_a_stream(prior: Floats, mix: Floats) -> None:
    density, labels = draw(np.random.default_rng(1), mix, 4000)
    true = np.bincount(labels, minlength=6) / 4000
    found = stream_shares(posterior(density, prior), prior)
    assert np.abs(found - true).sum() / 2 < 0.03
    predicted = np.bincount(posterior(density, prior).argmax(1), minlength=6) / 4000
    if prior is TRAINED and mix is not TRAINED:  # what the predictions alone say is far off
        assert np.abs(predicted - true).sum() / 2 > 0.03


def test_em_on_one_image_and_from_the_true_mix() -> None:
    assert stream_shares(np.array([[0.7, 0.3]]), np.array([0.5, 0.5])).argmax() == 0
    certain = np.eye(3)[[0, 0, 1, 2]]
    np.testing.assert_allclose(stream_shares(certain, np.full(3, 1 / 3)), [0.5, 0.25, 0.25])
