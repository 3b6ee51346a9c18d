"""Samplers: exact counts where they are exact, shares within five standard deviations where they are random."""

import numpy as np
import pytest
import torch
from imblearn.over_sampling import RandomOverSampler
from imblearn.under_sampling import RandomUnderSampler

from training.data import samplers
from training.data.samplers import SAMPLERS

COUNTS = [60, 25, 9, 4]
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mixed(counts=COUNTS):
    """Labels in a fixed random order."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=generator(99))]


def draw(name, draws, labels=None, classes=4, progress=0.5, seed=0):
    labels = mixed() if labels is None else labels
    return SAMPLERS[name](labels, classes, draws, progress, generator(seed))


def assert_shares(drawn, expected):
    """Each class's share of the draws, within five standard deviations of what is expected."""
    expected = np.asarray(expected)
    found = torch.bincount(drawn, minlength=len(expected)).numpy() / len(drawn)
    assert (np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / len(drawn))).all(), found


@every_sampler
@pytest.mark.parametrize("draws", [1, 98, 1000])
def test_as_many_indices_as_asked(name, draws):
    found = draw(name, draws)
    assert found.shape == (draws,)
    assert found.dtype == torch.int64
    assert ((found >= 0) & (found < 98)).all()


@every_sampler
def test_the_generator_alone_decides(name):
    one = draw(name, 500)
    torch.manual_seed(123)
    assert torch.equal(one, draw(name, 500))
    assert not torch.equal(one, draw(name, 500, seed=1))
    source = generator()
    first, second = (SAMPLERS[name](mixed(), 4, 500, 0.5, source) for _ in range(2))
    assert torch.equal(first, one)
    assert not torch.equal(second, one)


@every_sampler
def test_classes_without_images_are_never_drawn(name):
    """First, middle and last: each class there is still comes up, and nothing else could."""
    labels = mixed([0, 30, 0, 5, 0])
    drawn = labels[draw(name, 2000, labels, classes=5)]
    assert drawn.unique().tolist() == [1, 3]


@every_sampler
def test_one_image(name):
    assert draw(name, 3, torch.tensor([2])).tolist() == [0, 0, 0]


@every_sampler
def test_balanced_data_stay_balanced(name):
    labels = mixed([50, 50, 50])
    assert_shares(labels[draw(name, 30_000, labels, classes=3)], [1 / 3] * 3)


# ------------------------------------------------------------------------------------------------ whole permutations


def test_natural_shows_every_image_once_a_round():
    found = draw("natural", 2 * 98 + 10)
    for part in (found[:98], found[98:196]):
        assert part.sort().values.tolist() == list(range(98))
    assert not torch.equal(found[:98], found[98:196])
    assert not torch.equal(found[:98], torch.arange(98))
    assert len(found[196:].unique()) == 10


def test_under_keeps_the_first_images():
    labels = torch.tensor([0, 1, 0, 0, 2, 1, 2, 1, 0])  # 4, 3 and 2 images
    one, two = draw("under", 12, labels, classes=3).chunk(2)
    assert one.sort().values.tolist() == two.sort().values.tolist() == [0, 1, 2, 4, 5, 6]
    assert one.tolist() != two.tolist()


def test_under_has_imbalanced_learns_counts():
    labels = mixed()
    _, expected = RandomUnderSampler(random_state=0).fit_resample(np.zeros((98, 1)), labels.numpy())
    found = labels[draw("under", len(expected))]
    assert found.bincount().tolist() == np.bincount(expected).tolist() == [4, 4, 4, 4]


def test_over_deals_every_image_equally():
    labels = mixed()
    found = draw("over", 4 * 60)
    shown = torch.bincount(found, minlength=98)
    for c, (fewest, once_more) in enumerate([(1, 0), (2, 10), (6, 6), (15, 0)]):  # 60 = 2·25 + 10 = 6·9 + 6 = 15·4
        of_class = shown[labels == c]
        assert sorted(of_class.tolist()) == [fewest] * (COUNTS[c] - once_more) + [fewest + 1] * once_more
    _, expected = RandomOverSampler(random_state=0).fit_resample(np.zeros((98, 1)), labels.numpy())
    assert labels[found].bincount().tolist() == np.bincount(expected).tolist()


def test_over_draws_its_remainder_anew():
    """Over many decks each image of class 1 has its extra card in 10 of 25 of them."""
    extra = torch.zeros(25)
    for seed in range(400):
        extra += torch.bincount(draw("over", 240, seed=seed), minlength=98)[mixed() == 1] - 2
    assert (extra / 400 - 0.4).abs().max() < 5 * (0.4 * 0.6 / 400) ** 0.5


def test_over_is_shuffled_before_it_is_cut():
    assert_shares(mixed()[draw("over", 120)], [0.25] * 4)


# -------------------------------------------------------------------------------------------------- with replacement


@pytest.mark.parametrize(
    ("name", "progress", "shares"),
    [
        ("balanced", 0.0, [0.25] * 4),
        ("square-root", 0.0, np.sqrt(COUNTS) / np.sqrt(COUNTS).sum()),
        ("progressive", 0.0, np.array(COUNTS) / 98),
        ("progressive", 1.0, [0.25] * 4),
        ("progressive", 0.3, 0.7 * np.array(COUNTS) / 98 + 0.3 / 4),
    ],
)
def test_shares_of_classes_and_of_images(name, progress, shares):
    labels = mixed()
    found = draw(name, 200_000, labels, progress=progress)
    assert_shares(labels[found], shares)
    per_image = (np.asarray(shares) / COUNTS)[labels]
    assert_shares(found, per_image)  # uniform within a class, every image reached


def test_progressive_ends():
    labels = mixed()
    at = {t: labels[draw("progressive", 50_000, progress=t)].bincount(minlength=4) for t in (0.0, 0.5, 1.0)}
    assert at[0.0][3] < at[0.5][3] < at[1.0][3]
    assert at[0.0][0] > at[0.5][0] > at[1.0][0]
    assert torch.equal(draw("progressive", 500, progress=1.0), draw("balanced", 500))


def test_progressive_leaves_empty_classes_out():
    """t/C among the classes there are: an empty one takes no share."""
    labels = mixed([90, 0, 10])
    drawn = labels[samplers.progressive(labels, 3, 50_000, 0.5, generator())]
    assert_shares(drawn, [0.5 * 0.9 + 0.25, 0, 0.5 * 0.1 + 0.25])
