"""NTOM's outliers: which of the pool an epoch takes, and that mining resumes exactly."""

import numpy as np
import pytest
import torch

from tests.training import tiny
from tests.training.data.test_data import CPU, numbered, numbers
from tests.training.test_trainer import interrupt_after
from training import trainer
from training.data import loading
from training.data.batches import Batches
from training.methods import objective
from training.methods.methods import build_network, resolve
from training.runs import checkpoint
from training.runs.loop import Interrupted

STEPS, BATCH = 3, 4  # an epoch needs 12 outliers, its pool is 48


def batches(outliers, *, mining=0.125, seed=0, per_image=1):
    pool = numbered([0] * outliers).images
    images = numbered(np.arange(STEPS * BATCH) % 3)
    return Batches(images, pool, BATCH, seed=seed, stage=1, device=CPU, mining=mining, per_image=per_image)


def by_number(images):
    """Easiness: the smaller the number, the easier; ascending order is from the last image to the first."""
    return -torch.tensor(numbers(images)).float()


def shown(source, epoch=0, first_step=0, easiness=by_number):
    return [numbers(b.outliers) for b in source.epoch(epoch, first_step, easiness=easiness)]


def flat(steps):
    return [i for step in steps for i in step]


@pytest.mark.parametrize(("share", "skipped"), [(0.0, 0), (0.125, 6), (0.5, 24), (0.75, 36)])
def test_outliers_start_at_a_share_of_the_pool_in_ascending_easiness(share, skipped):
    """48 outliers are the whole pool: the hardest 48·q are skipped, the next 12 are shown."""
    found = flat(shown(batches(48, mining=share)))
    hardest_first = list(range(47, -1, -1))
    assert sorted(found) == sorted(hardest_first[skipped : skipped + 12])
    assert len(set(found)) == 12


def test_the_pool_is_four_epochs_worth_and_drawn_anew():
    """Of 500 outliers an epoch rates 48; which ones changes from epoch to epoch."""
    rated = []

    def watching(images):
        rated.append(numbers(images))
        return by_number(images)

    source = batches(500)
    first, second = (flat(shown(source, epoch, easiness=watching)) for epoch in (0, 1))
    assert [len(r) for r in rated] == [48, 48]
    assert all(len(set(r)) == 48 for r in rated)
    assert set(rated[0]) != set(rated[1])
    for pool, found in zip(rated, (first, second), strict=True):
        assert sorted(found) == sorted(sorted(pool, reverse=True)[6:18])


def test_order_within_an_epoch_is_not_that_of_easiness():
    found = flat(shown(batches(48)))
    assert found != sorted(found)
    assert found != sorted(found, reverse=True)


def test_fewer_outliers_than_an_epoch_needs_come_round_again():
    """10 outliers, q = .2: the 8 easiest, in rounds."""
    found = flat(shown(batches(10, mining=0.2)))
    assert len(found) == 12
    assert set(found) == set(range(8))
    assert sorted(found[:8]) == list(range(8))


def test_per_image_doubles_what_an_epoch_needs():
    steps = shown(batches(500, per_image=2))
    assert [len(s) for s in steps] == [8, 8, 8]
    assert len(set(flat(steps))) == 24


def test_equally_easy_outliers_are_the_pools_own_order():
    found = flat(shown(batches(500), easiness=lambda images: torch.zeros(len(images))))
    assert found == flat(shown(batches(500), easiness=lambda images: torch.zeros(len(images))))
    assert len(set(found)) == 12


def test_an_epoch_depends_on_seed_and_epoch_alone():
    source = batches(500)
    first = shown(source, 3)
    shown(source, 0)
    assert shown(source, 3) == shown(batches(500), 3) == first
    assert shown(batches(500, seed=1), 3) != first


@pytest.mark.parametrize("first_step", [1, 2])
def test_the_rest_of_an_epoch_keeps_its_outliers(first_step):
    """A resumed run cannot rate again, its network has moved on: the order of the epoch comes with it."""
    source, resumed = batches(500), batches(500)
    whole = shown(source)
    resumed.mined = source.mined
    assert shown(resumed, 0, first_step, easiness=lambda images: 1 / 0) == whole[first_step:]


def test_without_mining_nothing_is_rated():
    source = batches(48, mining=None)
    assert len(set(flat(shown(source, easiness=lambda images: 1 / 0)))) == 12
    assert source.mined is None


# ---- In a run ----


def test_easiness_is_the_log_odds_of_the_outlier_class_in_eval_mode():
    config = tiny.config(method="ntom")
    torch.manual_seed(0)
    network = build_network(resolve(config), 8, 8).train()
    pixels = torch.from_numpy(loading.load(config).outliers)
    found = objective.easiness(config, network, CPU)(pixels)
    assert network.training
    network.eval()
    with torch.no_grad():
        logits, features = network(pixels.permute(0, 3, 1, 2).float() / 255)
        p = torch.cat([logits, network.rejects(features)], dim=1).softmax(dim=1)[:, -1]
    torch.testing.assert_close(found, p.logit(), atol=1e-4, rtol=1e-4)
    assert torch.equal(found.argsort(), p.logit().argsort())


@pytest.mark.parametrize("views", [1, 3 + 2, 15 + 4])
def test_resumed_run_is_the_uninterrupted_one(tmp_path, monkeypatch, views):
    config = tiny.config(method="ntom")
    whole = trainer.train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_after(patch, views)
        with pytest.raises(Interrupted):
            trainer.train(config, tmp_path / "run")
    state = checkpoint.load(tmp_path / "run")
    assert 0 < state["step"] < 5
    assert state["mined"] is not None
    trainer.train(config, tmp_path / "run", resume=True)
    tiny.assert_same_run(whole, tmp_path / "run")
    assert checkpoint.load(tmp_path / "run")["mined"] is None
