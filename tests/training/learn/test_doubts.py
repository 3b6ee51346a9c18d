"""Which labels are doubtful: by hand, in five dimensions."""

import numpy as np
import pytest

from training.learn.doubts import doubtful

TREES = ["oak", "elm", "ash", "fir"]
CENTRES = {name: 8 * row for name, row in zip([*TREES, "outlier"], np.eye(5), strict=True)}


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order() -> None:
    global RNG
    RNG = np.random.default_rng(0)


def like(*names: str) -> np.ndarray:
    """One vector near the centre of each name."""
    return np.array([CENTRES[n] + RNG.normal(0, 0.5, 5) for n in names], np.float32)


KNOWN = [name for name in CENTRES for _ in range(40)]


def judge(looks: list[str], labels: list[str], groups: list[str] | None = None) -> dict[int, str]:
    said = np.array(groups or [""] * len(labels))
    return doubtful(like(*looks), np.array(labels), said, like(*KNOWN), np.array(KNOWN), TREES)


def test_a_label_that_the_image_does_not_look_like() -> None:
    assert judge(["outlier", "oak", "fir"], ["oak", "oak", "fir"]) == {0: "outlier"}


def test_a_group_does_not_vouch_for_itself() -> None:
    looks, labels = ["outlier"] * 6 + ["oak"], ["oak"] * 7
    found = judge(looks, labels, ["g1"] * 6 + ["g2"])
    assert found == dict.fromkeys(found, "outlier")
    assert len(found) >= 3  # of the others oak is by chance the tree that they are most alike
    alone = judge(looks, labels)  # six people who say the same are believed
    assert alone == {}


def test_what_nothing_is_known_of_is_not_judged() -> None:
    assert judge(["ash", "outlier"], ["outlier", "birch"]) == {}


def test_a_stranger_in_the_group_of_a_new_class() -> None:
    CENTRES["birch"] = np.full(5, -8.0)
    labels, groups = ["birch"] * 5, ["g1"] * 5
    assert judge(["birch"] * 4 + ["outlier"], labels, groups) == {4: "outlier"}
    del CENTRES["birch"]


def test_the_unusual_image_of_a_class_is_kept() -> None:
    half = (like("oak") + 0.8 * like("outlier")).astype(np.float32)  # more outlier than any oak, and still an oak
    found = doubtful(half, np.array(["oak"]), np.array([""]), like(*KNOWN), np.array(KNOWN), TREES)
    assert found == {}


def test_one_training_image_of_a_class() -> None:
    yew = np.full((1, 5), -8, np.float32)
    rows, labels = np.concatenate([like(*KNOWN), yew]), np.array([*KNOWN, "yew"])
    assert doubtful(yew + 0.1, np.array(["yew"]), np.array([""]), rows, labels, [*TREES, "yew"]) == {}
