"""service/ledger/policy.py: who is kept, and with which probability."""

import time
from typing import Any

import pytest

from service.ledger.policy import Choice, Policy
from service.observe.metrics import Metrics
from service.settings import Settings

FAST = {"keep_images_per_s": 1e9}


def policy(metrics: Metrics | None = None, **settings: Any) -> Policy:
    return Policy(Settings(**FAST | settings), (metrics or Metrics()).store_images)


def test_what_keep_keeps_is_kept_for_certain() -> None:
    assert policy(keep="all").choose("accept") == policy(keep="all").choose("reject") == Choice(None, 1.0)
    assert policy(keep="rejected").choose("reject") == Choice(None, 1.0)
    assert policy(keep="rejected").choose("accept") == Choice(None, None)
    assert policy(keep="none", keep_sample=1).choose("accept") == Choice(1.0, 1.0)


def test_the_sample_is_a_share_of_accepted_and_rejected_alike() -> None:
    """Of 40,000 images at a rate of .05, 2,000 are expected with a deviation of 44: five of them are allowed."""
    chosen = policy(keep="rejected", keep_sample=0.05)
    for decision, of_the_rest in (("accept", None), ("reject", 1.0)):
        choices = [chosen.choose(decision) for _ in range(40_000)]  # type: ignore[arg-type]
        sampled = [choice for choice in choices if choice.sample_rate is not None]
        assert abs(len(sampled) - 2000) < 220
        assert set(sampled) == {Choice(0.05, of_the_rest or 0.05)}
        assert {choice.keep_probability for choice in choices if choice.sample_rate is None} == {of_the_rest}


def test_two_processes_draw_differently() -> None:
    one, other = policy(keep_sample=0.5), policy(keep_sample=0.5)
    assert [one.choose("accept") for _ in range(200)] != [other.choose("accept") for _ in range(200)]


def test_the_pace_limits_keep_and_not_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    metrics = Metrics()
    pace = {"keep_images_per_s": 4, "keep_burst_images": 5}
    chosen = policy(metrics, keep="all", keep_sample=1, **pace)
    probabilities = [chosen.choose("accept") for _ in range(20)]
    assert set(probabilities) == {Choice(1.0, 1.0)}  # the sample takes what the pace refuses
    assert metrics.store_images.labels("limited")._value.get() == 15  # five at once
    chosen = policy(metrics, keep="all", **pace)
    kept = 0
    for _ in range(1000):  # ten seconds of 100 a second
        kept += chosen.choose("accept").keep_probability is not None
        now += 0.01
    assert 40 <= kept <= 45


def test_a_batch_that_comes_at_once_is_kept_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    metrics = Metrics()
    chosen = Policy(Settings(keep="rejected"), metrics.store_images)
    assert sum(chosen.choose("reject").keep_probability is not None for _ in range(300)) == 256  # 10 a second, at once
    now += 6.4
    assert sum(chosen.choose("reject").keep_probability is not None for _ in range(100)) == 64  # what has come since
    now += 3600
    assert sum(chosen.choose("reject").keep_probability is not None for _ in range(300)) == 256  # and never more
    assert metrics.store_images.labels("limited")._value.get() == 44 + 36 + 44
