"""Intervals by hand, and what they hold for."""

import numpy as np
import pytest

from service.contract.intervals import effective, paired, wilson


def test_wilson_against_published_values() -> None:
    # Newcombe 1998, table I: 81 of 263 and 0 of 20
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(20, 20) == pytest.approx((1 - 0.1611, 1.0), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_effective_number() -> None:
    assert effective(np.ones(7)) == pytest.approx(7)
    assert effective(np.array([3.0, 1.0])) == pytest.approx(1.6)  # 16 / 10
    assert effective(np.zeros(0)) == 0.0


def test_paired_by_hand_and_never_of_no_width() -> None:
    before, after = np.zeros(10, bool), np.zeros(10, bool)
    before[:6], after[:4] = True, True  # 2 lost, none gained
    # (0 - 2) / 12 ± z·sqrt(2 + 1 - 4 / 12) / 12
    half = 1.959964 * (3 - 4 / 12) ** 0.5 / 12
    assert paired(before, after) == pytest.approx((-2 / 12 - half, -2 / 12 + half))
    low, high = paired(before, before)
    assert low < 0 < high


def test_paired_covers_the_true_difference() -> None:
    draw = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        before = draw.random(60) < 0.8
        after = np.where(draw.random(60) < 0.1, ~before, before)  # truth: .1 * .2 - .1 * .8 = -.06
        low, high = paired(before, after)
        inside += low <= -0.06 <= high
    assert inside / 400 > 0.92
