"""service/inference/health.py with a clock that the test sets."""

import threading

from service.inference.health import EngineHealth, HealthLimits


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def made() -> tuple[EngineHealth, Clock]:
    clock = Clock()
    return EngineHealth(HealthLimits(failed_runs=3, stalled_s=30, dead_s=60), clock), clock


def test_failures_in_a_row_are_a_fault_and_one_success_ends_it() -> None:
    health, clock = made()
    for _ in range(2):
        health.failed(RuntimeError("CUDA error 700"))
    assert health.fault() is None
    health.failed(RuntimeError("CUDA error 700"))
    assert health.fault() == "the last 3 runs of the graph failed: CUDA error 700"
    clock.now += 59
    health.failed(RuntimeError("CUDA error 700"))
    assert not health.dead()
    clock.now += 1
    assert health.dead()
    health.succeeded()
    assert (health.fault(), health.dead()) == (None, False)


def test_single_failures_between_successes_are_none() -> None:
    health, _ = made()
    for _ in range(10):
        health.failed(RuntimeError("x"))
        health.succeeded()
    assert health.fault() is None


def test_a_run_that_does_not_end_is_a_fault() -> None:
    health, clock = made()
    with health.running():
        clock.now += 29
        assert health.fault() is None
        clock.now += 2
        assert health.fault() == "no run of the graph has ended for 31 s"
        clock.now += 58
        assert not health.dead()
        clock.now += 1
        assert health.dead()
    assert (health.fault(), health.dead()) == (None, False)
    clock.now += 1000  # nothing runs: idle is no fault
    assert health.fault() is None


def test_a_hanging_thread_is_no_fault_while_others_end_their_runs() -> None:
    health, clock = made()
    entered, leave = threading.Event(), threading.Event()

    def hang() -> None:
        with health.running():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=hang)
    thread.start()
    assert entered.wait(10)
    for _ in range(10):
        clock.now += 20
        with health.running():
            assert health.fault() is None
    clock.now += 31
    assert health.fault() is not None
    leave.set()
    thread.join(10)
