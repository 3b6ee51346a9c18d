"""Groups: hand-made embeddings, ids that live on, and the program that clusters, run as the service runs it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.review import grouping, regroup

ROOT = Path(__file__).resolve().parents[3]


def unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def blobs(per_blob: int, blobs: int, noise: float, dimensions: int = 128, seed: int = 0) -> NDArray[np.float32]:
    """`blobs` directions with `per_blob` embeddings near each, one blob after the other."""
    draw = np.random.default_rng(seed)
    middles = unit(draw.normal(size=(blobs, dimensions)))
    near = np.repeat(middles, per_blob, axis=0) + draw.normal(size=(blobs * per_blob, dimensions)) * noise
    return unit(near)


def test_the_middle_and_the_radius_by_hand() -> None:
    right, up = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    known = grouping.centres({"a": np.array([right, up], np.float32)})
    assert known.middle[0] == pytest.approx([0.5**0.5, 0.5**0.5])
    assert known.radius[0] == pytest.approx(1 - 0.5**0.5)  # both lie at 45° from the middle


def test_a_new_image_joins_the_nearest_group_only_within_its_radius() -> None:
    angles = np.deg2rad([0, 10, 80, 90, 45, 5])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    known = grouping.centres({"low": points[:2], "high": points[2:4]})
    assert grouping.assign(points[[4, 5]], known) == [None, "low"]
    assert grouping.assign(points[:0], known) == []
    assert grouping.assign(points, grouping.centres({})) == [None] * 6


def test_ids_live_on() -> None:
    before = ["a", "a", "a", "a", "b", "b", None, None]
    after = grouping.continued([1, 1, 1, 0, 0, 0, 2, -1], before)
    assert after[:3] == ["a"] * 3  # three of four
    assert after[3:6] == ["b"] * 3  # all of b, and one that was in a
    assert after[6] is not None
    assert after[6] not in ("a", "b")
    assert after[7] is None


def test_a_group_that_falls_apart_lives_on_in_one_part_only() -> None:
    after = grouping.continued([0, 0, 1, 1], ["a"] * 4)
    assert sorted(name == "a" for name in after) == [False, False, True, True]
    thirds = grouping.continued([0, 0, 1, 1, 2, 2], ["a"] * 6)
    assert "a" not in thirds  # no part holds half of it
    assert len(set(thirds)) == 3


def test_a_taken_id_goes_to_no_cluster() -> None:
    assert grouping.continued([0, 0], ["a", "a"], taken=["a"])[0] != "a"


def test_the_largest_and_most_alike_come_first() -> None:
    order = sorted([(10, 0.5), (6, 0.0), (10, 0.1)], key=lambda group: -grouping.alike_first(*group))
    assert order == [(10, 0.1), (6, 0.0), (10, 0.5)]


needs_sklearn = pytest.mark.skipif(regroup.missing() is not None, reason="scikit-learn is not installed")


@needs_sklearn
@pytest.mark.parametrize("per_blob", [6, 40])
def test_blobs_are_found_apart(per_blob: int) -> None:
    embedding = blobs(per_blob, 12, noise=0.02)
    truth = np.repeat(np.arange(12), per_blob)
    found = regroup.clusters(embedding.astype(np.float16))
    assert found.shape == (len(embedding),)
    assert found.dtype == np.int32
    for cluster in set(found.tolist()) - {-1}:
        assert len(set(truth[found == cluster])) == 1
    assert (found >= 0).mean() > 0.9


@needs_sklearn
def test_equal_few_and_no_images() -> None:
    same = np.repeat(unit(np.ones((1, 16))), 40, axis=0)
    assert (regroup.clusters(same) >= 0).all()
    assert regroup.clusters(same[:1]).tolist() == [-1]
    assert regroup.clusters(same[:0]).tolist() == []
    assert len(regroup.clusters(blobs(1, 3, 0.0))) == 3


@needs_sklearn
def test_the_same_images_give_the_same_groups_in_any_order() -> None:
    embedding = blobs(20, 5, noise=0.03)
    order = np.random.default_rng(1).permutation(len(embedding))
    first, second = regroup.clusters(embedding), regroup.clusters(embedding[order])
    pairs = {(a, b) for a, b in zip(first[order].tolist(), second.tolist(), strict=True)}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


@needs_sklearn
def test_a_grouping_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("raise SystemExit('no memory left')")
    monkeypatch.setattr(regroup, "PROGRAM", program)
    with pytest.raises(RuntimeError, match="exit status 1: no memory left"):
        regroup.clusters(blobs(2, 2, 0.0))
    program.write_text("import time; time.sleep(60)")
    with pytest.raises(RuntimeError, match="timed out"):
        regroup.clusters(blobs(2, 2, 0.0), limit_s=0.2)


def test_the_service_never_loads_scikit_learn() -> None:
    code = "import sys, service.review.desk\nprint(sorted({'sklearn', 'scipy', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
