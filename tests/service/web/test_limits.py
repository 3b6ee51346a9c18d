"""service/web/limits.py: no window leaves more than it may, and the wait that is named is the wait there is."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.web.limits import ROUNDING_S, Pacer, TokenBucket

rates = st.fractions(min_value=Fraction(1, 10), max_value=1000, max_denominator=1000)
bursts = st.integers(1, 20)
ROUNDING = Fraction(ROUNDING_S)
steps = st.lists(st.fractions(min_value=0, max_value=3, max_denominator=1000), max_size=60)


class Clock:
    """Time that stands until it is moved. Fractions keep it, and what is computed from it, exact."""

    def __init__(self, now: Fraction | float = Fraction(0)) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now  # type: ignore[return-value]  # a Fraction adds and compares as a float does


def test_by_hand() -> None:
    clock = Clock()
    bucket = TokenBucket(2, 3, clock)  # full: three at once, then one every half second
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.5]
    clock.now = Fraction(1, 4)
    assert bucket.take() == 0.25
    clock.now = Fraction(1, 2)
    assert [bucket.take(), bucket.take()] == [0, 0.5]
    clock.now = Fraction(100)  # it never holds more than its burst
    assert [bucket.take(2), bucket.take(2), bucket.take(1)] == [0, 0.5, 0]


@given(rates, bursts, steps)
def test_no_window_leaves_more_than_burst_and_rate(rate: Fraction, burst: int, waits: list[Fraction]) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, burst, clock)  # type: ignore[arg-type]
    taken = []
    for wait in waits:
        clock.now += wait
        if bucket.take() == 0:
            taken.append(clock.now)
    for i, j in itertools.combinations_with_replacement(range(len(taken)), 2):
        assert j - i + 1 <= burst + rate * (taken[j] - taken[i] + ROUNDING)


@given(rates, bursts, steps)
def test_the_wait_of_a_refusal_is_exact(rate: Fraction, burst: int, waits: list[Fraction]) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, burst, clock)  # type: ignore[arg-type]
    for wait in waits:
        clock.now += wait
        before = clock.now
        if (refused := Fraction(bucket.take())) > 0:
            if refused > 2 * ROUNDING:
                clock.now = before + refused - 2 * ROUNDING
                assert bucket.take() > 0
            clock.now = before + refused
            assert bucket.take() == 0


@given(rates, bursts, steps)
def test_what_is_allowed_is_not_less_than_asked_for(rate: Fraction, burst: int, waits: list[Fraction]) -> None:
    """Against the textbook: a counter that is filled up as time passes."""
    clock = Clock()
    bucket, level = TokenBucket(rate, burst, clock), Fraction(burst)  # type: ignore[arg-type]
    for wait in waits:
        clock.now += wait
        level = min(Fraction(burst), level + rate * wait)
        taken = bucket.take() == 0
        assert taken == (level >= 1) or 0 < 1 - level <= rate * ROUNDING
        level -= taken


@given(st.floats(0.01, 1e4), bursts, st.floats(0, 1e8))
def test_waiting_as_told_is_enough_in_floating_point(rate: float, burst: int, start: float) -> None:
    clock = Clock(start)
    bucket = TokenBucket(rate, burst, clock)
    while (wait := bucket.take()) == 0:
        pass
    assert wait == pytest.approx(1 / rate, abs=1e-6)
    clock.now += wait
    assert bucket.take() == 0


def test_impossible_buckets_and_takes_are_refused() -> None:
    for rate, burst in ((0, 1), (-1, 1), (float("nan"), 1), (1, 0)):
        with pytest.raises(ValueError, match="a bucket needs a rate above 0"):
            TokenBucket(rate, burst)
    with pytest.raises(ValueError, match="4 tokens never fit in a bucket of 3"):
        TokenBucket(1, 3).take(4)


def test_pacer_by_hand() -> None:
    clock = Clock()
    pacer = Pacer(4, 0.5, clock)  # four at once, then a quarter second apart, none held over half a second
    assert [pacer.delay() for _ in range(8)] == [0, 0, 0, 0, 0.25, 0.5, 0.5, 0.5]
    clock.now = Fraction(1, 2)  # the last two took no turn, so the next is due a quarter second from now
    assert pacer.delay() == 0.25
    clock.now = Fraction(10)
    assert [pacer.delay() for _ in range(5)] == [0, 0, 0, 0, 0.25]


def test_pacer_slower_than_one_a_second_lets_the_first_go() -> None:
    pacer = Pacer(0.25, 10, Clock())
    assert [pacer.delay(), pacer.delay(), pacer.delay()] == [0, 4, 8]


@given(rates, steps)
def test_pacer_keeps_its_rate_while_it_may_hold(rate: Fraction, waits: list[Fraction]) -> None:
    clock = Clock()
    pacer = Pacer(rate, 1e9, clock)  # type: ignore[arg-type]
    leave: list[Fraction] = []
    for wait in waits:
        clock.now += wait
        leave.append(Fraction(clock.now) + Fraction(pacer.delay()))
    assert leave == sorted(leave)  # first come, first out
    for i, j in itertools.combinations_with_replacement(range(len(leave)), 2):
        assert j - i + 1 <= max(Fraction(1), rate) + rate * (leave[j] - leave[i]) + Fraction(1, 10**6)


@given(rates, st.floats(0, 5), steps)
def test_pacer_holds_nobody_longer_than_asked(rate: Fraction, longest: float, waits: list[Fraction]) -> None:
    clock = Clock()
    pacer = Pacer(float(rate), longest, clock)
    for wait in waits:
        clock.now += wait
        assert 0 <= pacer.delay() <= longest
    clock.now += 1 + Fraction(longest) + Fraction(2 / rate)  # whatever came before, the debt is gone by then
    assert pacer.delay() == 0


def test_impossible_pacers_are_refused() -> None:
    for rate, longest in ((0, 1), (1, -1)):
        with pytest.raises(ValueError, match="a pacer needs a rate above 0"):
            Pacer(rate, longest)
