"""service/observe/class_mix.py: the mix of a simulated stream, what is expected of it, and where both are published."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.contract import bundle
from service.observe import class_mix
from service.observe.class_mix import ClassMix, expected_cdf, expected_images, expected_rejection
from service.settings import Settings
from service.web.app import create_app
from tests.service import tiny
from tests.service.observe.test_metrics import samples

EVEN = (1 / 3, 1 / 3, 1 / 3)


def manifest(tmp_path: Path, **calibration: Any) -> bundle.Manifest:
    changes = tiny.manifest()["calibration"] | {"presumed_shares": EVEN} | calibration
    return bundle.read(tiny.write(tmp_path / "tiny", calibration=changes))


def posteriors(random: np.random.Generator, mix: tuple[float, ...], images: int) -> np.ndarray:
    """Probabilities for points on a line, class c around 2 c with deviation 1, that presume all classes alike."""
    at = 2 * random.choice(3, images, p=mix) + random.standard_normal(images)
    density = np.exp(-((at[:, None] - 2 * np.arange(3)) ** 2) / 2)
    return np.asarray(density / density.sum(1, keepdims=True), np.float32)


def test_the_mix_of_a_stream_and_its_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_mix, "LEAST_S", 0.0)
    monkeypatch.setattr(class_mix, "TIMES", 0)
    mix, random = ClassMix(manifest(tmp_path)), np.random.default_rng(0)
    for shares in ((0.8, 0.15, 0.05), (0.1, 0.2, 0.7)):  # more than are remembered, so that the first are forgotten
        for row in posteriors(random, shares, class_mix.MOST_IMAGES + 500):
            mix.observe(row)
        found = mix.shares()
        assert found is not None
        np.testing.assert_allclose(found, shares, atol=0.04)


def test_nothing_is_said_too_early_or_without_the_presumed_mix(tmp_path: Path, tiny_bundle: Path) -> None:
    early, silent = ClassMix(manifest(tmp_path)), ClassMix(bundle.read(tiny_bundle))
    for row in posteriors(np.random.default_rng(0), EVEN, 199):
        early.observe(row)
        silent.observe(row)
    assert early.shares() is None
    early.observe(np.array(EVEN, np.float32))
    assert early.shares() is not None
    for _ in range(10):
        silent.observe(np.array(EVEN, np.float32))
    assert silent.shares() is None


def test_what_is_expected_of_a_mix_by_hand(tmp_path: Path) -> None:
    quantiles = {"all": (-10.0, -7.5, -5.1), "many": (-10.0, -9.0, -8.0), "few": (-8.0, -6.0, -4.0)}
    given = manifest(tmp_path, class_shares=(0.5, 0.3, 0.2), quantiles={"energy": quantiles}, id_scores=(-9.0, -6.0))
    bounds = [-9.0, -6.0, float("inf")]
    assert expected_cdf(given, bounds, None) == [0.5, 1.0, 1.0]
    assert expected_cdf(given, bounds, np.array([0.5, 0.3, 0.2])) == [0.5, 1.0, 1.0]
    # .3 less of "many" (.5 of it at most -9, all at most -6), .3 more of "few" (none, and half)
    np.testing.assert_allclose(expected_cdf(given, bounds, np.array([0.2, 0.3, 0.5])), [0.35, 0.85, 1.0])


def test_a_tail_weighted_up_counts_as_fewer_images(tmp_path: Path) -> None:
    given = manifest(tmp_path, in_distribution_images=100, images_by_group={"many": 80, "medium": 16, "few": 4})
    assert expected_images(given, None) == 100
    assert expected_images(given, np.array([0.8, 0.16, 0.04])) == pytest.approx(100)
    assert expected_images(given, np.array([0.0, 0.0, 1.0])) == pytest.approx(4)
    assert expected_images(given, np.array([1.0, 0.0, 0.0])) == pytest.approx(80)


def test_mix_and_expectation_are_published(tmp_path: Path, settings: Settings) -> None:
    given = manifest(tmp_path)
    del given
    with TestClient(create_app(settings.model_copy(update={"bundle": tmp_path / "tiny"}))) as client:
        red = tiny.photo()
        client.post("/classify", content=red, headers={"content-type": "image/png"}).raise_for_status()
        assert {row["stream_share"] for row in client.get("/stats").json()["classes"]} == {None}
        found = samples(client)
        # PromQL averages what is expected over the replicas: calibration's own, of one that has just started and knows
        # no mix, would stand beside what the others know.
        expected = {"tailguard_expected_cdf", "tailguard_expected_images", "tailguard_expected_stream_rejection"}
        assert not expected & {name for name, _ in found}
        mix = client.app.state.runtime.model.metrics.stream.class_mix  # type: ignore[attr-defined]
        assert mix._seen == 1  # the accepted image
        for row in posteriors(np.random.default_rng(0), (0.1, 0.1, 0.8), 2000):
            mix.observe(row)
        shares = [row["stream_share"] for row in client.get("/stats").json()["classes"]]
        np.testing.assert_allclose(shares, [0.1, 0.1, 0.8], atol=0.05)
        found = samples(client)
        assert expected <= {name for name, _ in found}
        told = {dict(labels)["class"]: v for (name, labels), v in found.items() if name == "tailguard_class_mix"}
        assert told == pytest.approx(dict(zip(tiny.CLASSES, shares, strict=True)))


def test_rejection_that_is_expected_of_a_mix_by_hand(tmp_path: Path) -> None:
    given = manifest(tmp_path)
    cost = given.operating_points[given.default_operating_point].cost("group").calibration
    by_true = {"many": 0.02, "medium": 0.05, "few": 0.30}
    between = {"many": {"many": (0.9, 0.0), "few": (0.1, 0.2)}, "medium": {"medium": (1.0, 0.05)},
               "few": {"few": (0.5, 0.1), "many": (0.5, 0.5)}}  # fmt: skip
    said = cost.model_copy(update={"id_rejected_by_group": by_true, "id_between_groups": between})
    assert expected_rejection(given, said, None) == {"all": cost.id_rejected, **cost.id_rejected_by_predicted_group}
    found = expected_rejection(given, said, np.array([0.4, 0.2, 0.4]))
    assert found["all"] == pytest.approx(0.4 * 0.02 + 0.2 * 0.05 + 0.4 * 0.3)
    # predicted "many": .4 * .9 of "many", none refused, and .4 * .5 of "few", half refused
    assert found["many"] == pytest.approx(0.2 * 0.5 / (0.36 + 0.2))
    assert found["medium"] == pytest.approx(0.05)
    assert found["few"] == pytest.approx((0.04 * 0.2 + 0.2 * 0.1) / (0.04 + 0.2))
    silent = said.model_copy(update={"id_between_groups": None})  # of an earlier version
    found = expected_rejection(given, silent, np.array([0.4, 0.2, 0.4]))
    assert found["all"] == pytest.approx(0.138)
    assert found["many"] == cost.id_rejected_by_predicted_group["many"]
