"""service/inference/budget.py: threads that wait for memory, by events, without clocks."""

import threading

from service.inference.budget import ByteBudget

WAIT_S = 10


class Holder(threading.Thread):
    """Holds `count` bytes once it may, until `leave` is set."""

    def __init__(self, budget: ByteBudget, count: int) -> None:
        super().__init__(daemon=True)
        self.budget, self.count = budget, count
        self.holds, self.leave = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        with self.budget.hold(self.count):
            self.holds.set()
            self.leave.wait(WAIT_S)


def test_no_more_than_the_limit_is_held_and_whoever_waits_gets_it() -> None:
    budget = ByteBudget(100)
    first, second = Holder(budget, 60), Holder(budget, 40)
    assert first.holds.wait(WAIT_S)
    assert second.holds.wait(WAIT_S)
    third = Holder(budget, 60)
    assert budget._held_bytes == 100
    second.leave.set()
    second.join(WAIT_S)
    assert not third.holds.is_set()  # 60 + 60 do not fit
    first.leave.set()
    assert third.holds.wait(WAIT_S)
    third.leave.set()


def test_more_than_the_limit_is_held_alone() -> None:
    budget = ByteBudget(100)
    small = Holder(budget, 1)
    assert small.holds.wait(WAIT_S)
    large = Holder(budget, 1000)
    small.leave.set()
    assert large.holds.wait(WAIT_S)
    other = Holder(budget, 1)
    assert budget._held_bytes == 1000
    large.leave.set()
    assert other.holds.wait(WAIT_S)
    other.leave.set()


def test_what_raises_gives_its_bytes_back() -> None:
    budget = ByteBudget(100)
    for _ in range(3):
        try:
            with budget.hold(100):
                raise ValueError
        except ValueError:
            pass
    assert budget._held_bytes == 0
