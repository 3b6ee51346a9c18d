"""training/scores/either.py: constants by hand, the shares that they promise, the graph against numpy, names."""

import math

import numpy as np
import pytest
import torch

from service.contract.reasons import doubt
from training.scores import either
from training.scores.either import Either, Part, require_score


def spread(n: int, scale: float) -> np.ndarray:
    """n values of an exponential tail, evenly spaced in probability, in an order of their own."""
    values = -scale * np.log1p(-(np.arange(n) + 0.5) / n)
    return np.random.default_rng(0).permutation(values)


def as_probabilities(doubts: np.ndarray) -> np.ndarray:
    """[N, 3] whose doubt is this: the largest is 1/(1 + e^v) as long as v < log 2."""
    best = 1 / (1 + np.exp(doubts))
    return np.stack([best, (1 - best) / 2, (1 - best) / 2], axis=1)


def origin(part: Part) -> float:
    """Where the part has the value that it shares with the other one."""
    return part.at + either.ORIGIN * part.scale


def test_constants_by_hand() -> None:
    scores = np.arange(1000.0)  # 35 lie above 964.5, 140 above 859.5; 15 above 984.5, 60 above 939.5
    doubts = (np.arange(1000.0) - 990) / 100
    found = either.fit("energy", scores, as_probabilities(doubts), 1.0)
    assert origin(found.unknown_part) == pytest.approx(964.5)
    assert found.unknown_part.scale == pytest.approx(105.0)
    assert origin(found.unsure_part) == pytest.approx(-0.055, abs=1e-9)
    assert found.unsure_part.scale == pytest.approx(0.45)
    assert (found.unknown_part.share, found.unsure_part.share) == (pytest.approx(0.035), pytest.approx(0.015))


@pytest.mark.parametrize("unsure_share", [0.1, 0.3, 0.5])
def test_both_parts_refuse_their_share_at_every_level_and_not_more_than_promised_together(unsure_share: float) -> None:
    n = 40_000
    scores, doubts = spread(n, 7.0), np.random.default_rng(1).permutation(spread(n, 0.1)) - 0.9
    found = either.fit("energy", scores, as_probabilities(doubts), 1.0, unsure_share=unsure_share)
    total = found.values(scores, as_probabilities(doubts))
    for level in (0.8, 0.9, 0.95, 0.99):
        limit = np.quantile(total, level)
        unknown = (scores - found.unknown_part.at) / found.unknown_part.scale > limit
        unsure = (doubts - found.unsure_part.at) / found.unsure_part.scale > limit
        assert (unknown | unsure).mean() == pytest.approx(1 - level, abs=1e-3)
        assert unsure.mean() / (unknown.mean() + unsure.mean()) == pytest.approx(unsure_share, abs=0.02)


def test_weights_count() -> None:
    scores = np.concatenate([np.zeros(500), np.arange(1000.0)])
    weights = np.concatenate([np.full(500, 1e-9), np.ones(1000)])
    probabilities = as_probabilities(-scores / 1000)
    assert either.fit("energy", scores, probabilities, 1.0, weights=weights).unknown_part.scale == pytest.approx(105)


def test_an_image_of_which_the_model_is_sure_is_not_unsure_however_sure_it_is_of_the_others() -> None:
    probabilities = as_probabilities(-8.0 - spread(1000, 1.0))  # every one is right with more than 99.9%
    found = either.fit("energy", spread(1000, 1.0), probabilities, 1.0)
    assert origin(found.unsure_part) == pytest.approx(-math.log(19))
    values = found.values(np.full(3, -100.0), as_probabilities(np.array([-9.0, -4.0, 0.0])))
    assert values[0] < either.ORIGIN - 3
    assert values[1] < either.ORIGIN < values[2]


def test_images_that_all_score_alike_give_a_scale() -> None:
    found = either.fit("energy", np.ones(50), np.full((50, 2), 0.5), 1.0)
    assert math.isfinite(float(found.values(np.array([1.0, 2.0]), np.full((2, 2), 0.5))[1]))


def test_the_module_gives_what_numpy_and_the_service_give() -> None:
    two = Either("energy", 1.7, Part(at=-3.0, scale=2.0, share=0.03), Part(at=-1.0, scale=0.5, share=0.02))
    logits = torch.tensor([[4.0, 1.0, 0.0], [1.0, 1.0, 0.5], [60.0, 0.0, 0.0]])
    energy = torch.tensor([-5.0, -1.0, -40.0])
    probabilities = (logits / 1.7).softmax(dim=1).numpy()
    expected = [
        max((u + 3.0) / 2.0, (doubt(float(p.max())) + 1.0) / 0.5)
        for u, p in zip(energy.tolist(), probabilities, strict=True)
    ]
    np.testing.assert_allclose(two(energy, logits).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(two.values(energy.numpy(), probabilities), expected, rtol=1e-9)


def test_a_record_is_read_as_it_was_written() -> None:
    two = either.fit("energy+ncm", spread(100, 2.0), as_probabilities(-spread(100, 1.0)), 1.3, unsure_share=0.2)
    assert either.read(two.record()) == two
    assert two.name == "energy+ncm|msp"
    assert either.read(None) is None


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="--unsure-share"):
        either.fit("energy", np.arange(9.0), np.full((9, 2), 0.5), 1.0, unsure_share=share)


@pytest.mark.parametrize(
    ("name", "classes", "message"),
    [
        ("gen|msp", 3, "gen compares the classes"),
        ("msp|msp", 3, "msp compares the classes"),
        ("energy+msp|msp", 3, "compares the classes"),
        ("reject-mass|msp", 3, "reads reject logits"),
        ("energy|msp", 1, "these data have one"),
        ("energy|ncm", 3, "There is no score"),
        ("vym|msp", 3, "There is no score 'vym'"),
    ],
)
def test_names_that_mean_nothing_are_refused(name: str, classes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_score(name, False, classes)


def test_names() -> None:
    assert require_score("energy+ncm|msp", False, 3)
    assert either.unknown_of("energy|msp") == "energy"
    assert either.unknown_of("energy") is None
    assert either.says_unknown("mahalanobis-pp")
    assert not either.says_unknown("gen")
