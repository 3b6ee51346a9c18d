"""Two processes at half the batch each against one: the same BatchNorm, the same loss curve, the same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training import distributed_worker, tiny
from training import trainer
from training.network import distributed
from training.network.network import Network
from training.runs import checkpoint
from training.runs.steps import LOCK_FILE

ROOT = Path(__file__).resolve().parents[3]
# Sums in another order differ by 1e-7, and Adam's first steps divide each gradient by its own size, so that a gradient
# near zero moves its weight by ± the learning rate: the curves drift apart with the learning rate and the steps taken
# (at 1e-4 the contrastive term, whose temperature of .07 magnifies it most, is .004 of 3.9 apart in the second epoch).
# A small rate leaves what this test is about: that both see the same images, statistics, losses and gradients.
RATE = 1e-5
SETTINGS = tiny.config(learning_rate=RATE, stage2_learning_rate=RATE)
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder where two processes have left their norms and their run."""
    out = tmp_path_factory.mktemp("two")
    (out / "settings.json").write_text(SETTINGS.model_dump_json())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    given = [str(ROOT / "tests" / "training" / "distributed_worker.py"), str(out), str(out / "settings.json")]
    here = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(torchrun + given, cwd=ROOT, env=here, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return trainer.train(SETTINGS, tmp_path_factory.mktemp("one") / "run")


def test_norm_over_processes_is_the_norm_of_the_whole_batch(two):
    alone = distributed_worker.norm_step(*distributed_worker.batch())
    halves = [torch.load(two / f"norm{rank}.pt", weights_only=True) for rank in range(2)]
    for name in ("forward", "input_gradient", "eval"):
        torch.testing.assert_close(torch.cat([h[name] for h in halves]), alone[name], atol=2e-5, rtol=1e-5)
    for name in ("weight_gradient", "bias_gradient", "running_mean", "running_var", "num_batches_tracked", "loss"):
        for half in halves:
            torch.testing.assert_close(half[name], alone[name], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", distributed_worker.TERMS)
def test_a_loss_that_divides_by_the_batch_is_that_of_one_process(two, name):
    """Weights and constants are those of the whole batch, and random targets are drawn for the whole batch."""
    alone = distributed_worker.loss_values()[name]
    for rank in range(2):
        shared = json.loads((two / f"losses{rank}.json").read_text())[name]
        assert shared == pytest.approx(alone, rel=1e-5)


def test_one_process_that_stops_stops_all(two):
    assert all(torch.load(two / f"norm{rank}.pt", weights_only=True)["stopped"] for rank in range(2))


def test_loss_curve_is_that_of_one_process(one, two):
    alone, shared = (checkpoint.load(folder)["history"] for folder in (one, two / "run"))
    assert len(shared) == len(alone) == 3
    for a, b in zip(alone, shared, strict=True):
        assert a == pytest.approx(b, abs=TOLERANCE)


def test_weights_move_as_those_of_one_process(one, two):
    # How far Adam moves a weight says little (the rate, whatever the gradient); the direction says it all.
    torch.manual_seed(SETTINGS.seed)
    start = Network(8, SETTINGS.width).state_dict()
    alone, shared = checkpoint.load(one), checkpoint.load(two / "run")
    for key in ("network", "branch"):
        names = [n for n in start if n.endswith(("weight", "bias"))]
        moves = [torch.cat([(state[key][n] - start[n]).flatten() for n in names]) for state in (alone, shared)]
        assert moves[0].abs().max() > RATE
        assert torch.cosine_similarity(*moves, dim=0) > 0.98
        for name in (n for n in start if "running" in n):
            torch.testing.assert_close(shared[key][name], alone[key][name], atol=1e-2, rtol=1e-2, msg=name)


def test_run_of_two_processes_is_finished_and_whole(two):
    run = checkpoint.trained(two / "run")
    assert type(run.scoring.trunk.bn) is torch.nn.BatchNorm2d
    assert sorted(p.name for p in (two / "run").iterdir()) == [LOCK_FILE, checkpoint.CHECKPOINT_FILE, "split.csv"]


# ---- One process ----


def test_one_process_shares_nothing():
    batch = torch.rand(5, 2)
    assert distributed.share(batch) is batch or torch.equal(distributed.share(batch), batch)
    assert distributed.gather(batch) is batch
    network = torch.nn.BatchNorm2d(3)
    distributed.synchronise_norms(network)
    assert type(network) is torch.nn.BatchNorm2d
    losses, stopping = distributed.average(list(network.parameters()), {"loss": batch.sum()}, True)
    assert losses == {"loss": batch.sum()}
    assert stopping


def test_batch_that_does_not_split(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 3)
    with pytest.raises(ValueError, match="--batch-images 32: batches of 32 do not split over 3 processes"):
        trainer.train(tiny.config(), tmp_path / "run")
