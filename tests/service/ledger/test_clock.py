"""service/ledger/clock.py: a wall clock that was set forward is believed after a day."""

import time

import pytest
from structlog.testing import capture_logs

from service.ledger.clock import DAY_S, Clock


class Clocks:
    """A wall clock that is set, and one that nobody sets."""

    def __init__(self) -> None:
        self.wall, self.steady = 1_000_000.0, 50.0
        self.clock = Clock(lambda: self.wall, lambda: self.steady)

    def after(self, seconds: float, set_by: float = 0.0) -> float:
        """The time by the clock, in seconds since it was made."""
        self.steady += seconds
        self.wall += seconds + set_by
        return self.clock.now() - 1_000_000.0


def test_it_goes_with_the_wall_clock_and_its_small_corrections() -> None:
    clocks = Clocks()
    assert clocks.after(10) == 10
    assert clocks.after(10, set_by=3600) == 3620
    assert clocks.after(10, set_by=-7200) == -3570
    assert clocks.after(90 * DAY_S) == 90 * DAY_S - 3570  # of a process that ran, or a computer that slept, for long


def test_corrections_of_less_than_a_day_add_up() -> None:
    clocks = Clocks()
    for hours in range(1, 50):
        assert clocks.after(0, set_by=3600) == 3600 * hours


def test_set_forward_it_waits_a_day() -> None:
    clocks = Clocks()
    with capture_logs() as logs:
        assert clocks.after(10, set_by=100 * DAY_S) == 10
        assert clocks.after(DAY_S - 1) == DAY_S + 9
        assert clocks.after(1) == 101 * DAY_S + 10
        assert clocks.after(1) == 101 * DAY_S + 11
    assert [log["days"] for log in logs] == [100]


def test_set_right_again_it_was_nothing() -> None:
    clocks = Clocks()
    clocks.after(10, set_by=100 * DAY_S)
    assert clocks.after(10, set_by=-100 * DAY_S) == 20
    assert clocks.after(0.9 * DAY_S, set_by=100 * DAY_S) == 0.9 * DAY_S + 20
    assert clocks.after(0.2 * DAY_S) == pytest.approx(1.1 * DAY_S + 20)  # its day begins anew


def test_set_back_it_goes_back() -> None:
    clocks = Clocks()
    assert clocks.after(10, set_by=-500 * DAY_S) == 10 - 500 * DAY_S
    assert clocks.after(10, set_by=500 * DAY_S) == 20 - 500 * DAY_S


@pytest.mark.parametrize("days", [1.5, 29])
def test_a_service_that_stood_still_for_some_days_has_the_right_time(days: float) -> None:
    clocks = Clocks()
    clocks.clock.begin(lambda before: before - (days - 1) * DAY_S)
    assert clocks.after(10) == 10
    clocks.clock.begin(lambda before: before - 100 * DAY_S)  # of a ledger that was opened again
    assert clocks.after(10) == 20


def test_wrong_from_the_start_it_waits_a_day() -> None:
    """A computer whose clock is in 2099 until the network sets it, and a service that starts with the system."""
    clocks = Clocks()
    clocks.clock.begin(lambda before: before - 99 * DAY_S)
    with capture_logs() as logs:
        assert clocks.after(10) == 10 - 100 * DAY_S
        assert clocks.after(DAY_S) == DAY_S + 10
    assert [log["days"] for log in logs] == [100]


def test_the_real_one() -> None:
    assert Clock().now() == pytest.approx(time.time(), abs=1)
