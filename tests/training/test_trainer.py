"""The spine: one seed gives one run, however often it is interrupted; what it refuses; what its settings turn off."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import warm
from tests.training import tiny
from tests.training.data.test_folders import noise_class
from training import trainer
from training.data import loading, taxonomy
from training.data.taxonomy import Taxonomy
from training.methods import objective
from training.network.device import find_device
from training.runs import checkpoint
from training.runs.loop import Interrupted

ROOT = Path(__file__).resolve().parents[2]
STAGE1_STEPS, STAGE2_STEPS = 5, 2  # an epoch of tiny.config()


def interrupt_after(monkeypatch, views):
    """A real SIGINT when the run draws its `views`-th view."""
    count = 0
    view = objective.augment.view

    def counting(images, generator, **settings):
        nonlocal count
        count += 1
        if count == views:
            os.kill(os.getpid(), signal.SIGINT)
        return view(images, generator, **settings)

    monkeypatch.setattr(objective.augment, "view", counting)


# ---- One seed, one run ----


def test_history_of_a_run(finished):
    state = checkpoint.load(finished)
    assert [(h["stage"], h["epoch"]) for h in state["history"]] == [("stage1", 0), ("stage1", 1), ("stage2", 0)]
    for h in state["history"][:2]:
        assert h["loss"] == pytest.approx(h["class"] + 0.5 * h["outlier"] + 0.1 * h["contrast"], rel=1e-5)
        # near the start every class is about as likely as any other
        assert h["class"] == pytest.approx(np.log(8), abs=0.7)
        assert h["outlier"] >= np.log(8)  # the entropy of the uniform distribution
    assert state["history"][1]["class"] < state["history"][0]["class"]
    assert state["classes"] == list("01234567")
    assert state["train_counts"] == loading.load(tiny.config()).train.counts.tolist()


def test_one_seed_gives_the_same_run_twice(finished, tmp_path):
    tiny.assert_same_run(finished, trainer.train(tiny.config(), tmp_path / "again"))


def test_another_seed_gives_another_run(finished, tmp_path):
    other = checkpoint.load(trainer.train(tiny.config(seed=1, epochs=1), tmp_path / "run"))
    assert other["history"][0]["loss"] != checkpoint.load(finished)["history"][0]["loss"]


def test_trained_run_comes_back(finished):
    run = checkpoint.trained(finished)
    state = checkpoint.load(finished)
    tiny.assert_same_weights(run.scoring.state_dict(), state["network"])
    tiny.assert_same_weights(run.classifying.state_dict(), state["branch"])
    assert not run.scoring.training
    assert not run.classifying.training
    assert run.method.passes == 2
    assert run.config == tiny.config()


# ---- Interrupted and resumed ----

VIEWS = 3  # of a stage-1 step: two of the images, one of the outliers
STAGE1_VIEWS = 2 * STAGE1_STEPS * VIEWS


@pytest.mark.parametrize(
    ("views", "where"),
    [
        (1, ("stage1", 0, 1)),
        (2 * VIEWS + 1, ("stage1", 0, 3)),
        (STAGE1_STEPS * VIEWS, ("stage1", 0, 5)),  # the last step of an epoch
        (STAGE1_VIEWS, ("stage1", 1, 5)),  # the last step of the stage
        (STAGE1_VIEWS + 1, ("stage2", 0, 1)),
        (STAGE1_VIEWS + STAGE2_STEPS, ("stage2", 0, 2)),  # the last step of all
    ],
)
def test_resumed_run_is_the_uninterrupted_one(finished, tmp_path, monkeypatch, views, where):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_after(patch, views)
        with pytest.raises(Interrupted):
            trainer.train(tiny.config(), out)
    state = checkpoint.load(out)
    assert (state["stage"], state["epoch"], state["step"]) == where
    with pytest.raises(ValueError, match=rf"has not finished \(stage {where[0]}, epoch {where[1]}\): .*--resume"):
        checkpoint.trained(out)
    trainer.train(tiny.config(), out, resume=True)
    tiny.assert_same_run(finished, out)


def test_what_was_killed_before_its_first_checkpoint_leaves_no_taxonomy_to_the_next_run(tmp_path, monkeypatch):
    """Its nodes were answered by the next run in the folder, which was given none."""
    Taxonomy("FILE.csv", {"0": ("round",)}).write(tmp_path / "run")
    interrupt_after(monkeypatch, 1)
    with pytest.raises(Interrupted):
        trainer.train(tiny.config(), tmp_path / "run")
    assert taxonomy.recorded(tmp_path / "run") is None


def test_interruption_between_the_stages_is_not_lost(finished, tmp_path, monkeypatch):
    save = checkpoint.save

    def interrupting(folder, state):
        save(folder, state)
        if (state["stage"], state["epoch"]) == ("stage1", 2):
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", interrupting)
        with pytest.raises(Interrupted):
            trainer.train(tiny.config(), tmp_path / "run")
    assert checkpoint.load(tmp_path / "run")["stage"] == "stage2"
    left = tmp_path / "run" / f".checkpoint.{tiny.ended()}.pt"
    left.write_bytes(b"of a process that was killed while it wrote")
    os.utime(left, (0, 0))
    trainer.train(tiny.config(), tmp_path / "run", resume=True)
    assert not left.exists()  # as large as the checkpoint, and one more for each kill
    tiny.assert_same_run(finished, tmp_path / "run")


def test_second_interruption_acts_at_once(tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 1)
    view = objective.augment.view

    def twice(images, generator, **settings):
        found = view(images, generator, **settings)
        os.kill(os.getpid(), signal.SIGINT)
        return found

    monkeypatch.setattr(objective.augment, "view", twice)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(tiny.config(), tmp_path / "run")


def test_signal_handlers_are_put_back(tmp_path):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]  # ray, used in this process, leaves its own
    trainer.train(tiny.config(method="msp", epochs=1), tmp_path / "run")
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_killed_between_checkpoints_goes_back_to_the_last(finished, tmp_path, monkeypatch):
    save, saved = checkpoint.save, 0

    def dying(folder, state):
        nonlocal saved
        saved += 1
        if saved == 2:
            raise RuntimeError("killed")
        save(folder, state)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", dying)
        with pytest.raises(RuntimeError, match="killed"):
            trainer.train(tiny.config(), tmp_path / "run")
    assert checkpoint.load(tmp_path / "run")["epoch"] == 1
    trainer.train(tiny.config(), tmp_path / "run", resume=True)
    tiny.assert_same_run(finished, tmp_path / "run")


def test_ctrl_c_of_the_command(tmp_path):
    """The command as a user runs and stops it, resumed in this process, against one run without a break."""
    settings, out = tiny.config(epochs=12, method="pascl"), tmp_path / "run"
    command = [sys.executable, "-m", "training", "train", *tiny.options(settings), "--out", str(out)]
    with warm.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 240
        while not (out / checkpoint.CHECKPOINT_FILE).exists():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1, errors
    assert "stopping after this step" in errors
    assert f"interrupted; the run is kept: python -m training train --out {out} --resume" in errors
    state = checkpoint.load(out)
    assert state["stage"] == "stage1"
    assert 1 <= state["epoch"] < 12
    assert len(state["history"]) == state["epoch"]
    trainer.train(settings, out, resume=True)
    tiny.assert_same_run(out, trainer.train(settings, tmp_path / "whole"))


# ---- Checkpoints ----


def test_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, {"epoch": 1})

    def full_disk(state, file):
        file.write(b"half of a che")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save(tmp_path, {"epoch": 2})
    assert checkpoint.load(tmp_path) == {"epoch": 1}


def test_unreadable_checkpoint(tmp_path):
    (tmp_path / "fit" / "msp").mkdir(parents=True)
    (tmp_path / "fit" / "msp" / checkpoint.CHECKPOINT_FILE).touch()
    for folder in ("", "joint"):  # that of all heads, or a head that there is not
        with pytest.raises(ValueError, match=r"checkpoint\.pt does not exist: name .*, such as .*fit/msp$"):
            checkpoint.load(tmp_path / "fit" / folder)
    with pytest.raises(ValueError, match=r"checkpoint\.pt does not exist: name the folder of a run"):
        checkpoint.load(tmp_path)
    checkpoint.save(tmp_path, {"epoch": 1})
    path = tmp_path / checkpoint.CHECKPOINT_FILE
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"checkpoint\.pt cannot be read .*train again"):
        checkpoint.load(tmp_path)


def test_existing_run_is_not_overwritten(finished):
    before = (finished / checkpoint.CHECKPOINT_FILE).read_bytes()
    with pytest.raises(ValueError, match=r"holds a run: --resume it, or choose another --out"):
        trainer.train(tiny.config(), finished)
    assert (finished / checkpoint.CHECKPOINT_FILE).read_bytes() == before


def test_nothing_to_resume(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint to resume"):
        trainer.train(tiny.config(), tmp_path / "run", resume=True)


def test_resuming_with_other_data(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    tiny.write_cifar10(tmp_path / "data")
    with pytest.raises(ValueError, match="images that the run has as train are no longer in the data"):
        trainer.train(tiny.config(dataset="cifar10", data=tmp_path / "data"), tmp_path, resume=True)


def test_training_images_that_changed_places_between_classes(tmp_path):
    for seed, name in enumerate(("ant", "bee")):
        noise_class(tmp_path / "data" / name, 20, seed)
    given = tiny.config(
        dataset="folder", data=tmp_path / "data", image_size_px=8, imbalance=None, calibration_fraction=0.2,
        group_by="none", method="msp", batch_images=8, stage2_batch_images=8,
    )  # fmt: skip
    run = trainer.train(given, tmp_path / "run")
    data = loading.load(given, run)
    checkpoint.require_same_data(run, list(data.train.classes), data.train.counts.tolist(), data)
    ant, bee = (next(row["path"] for row in _split(run) if row["part"] == "train" and row["class"] == c)
                for c in ("ant", "bee"))  # fmt: skip
    Path(ant).rename(tmp_path / "data" / "bee" / "was-ant.png")
    Path(bee).rename(tmp_path / "data" / "ant" / "was-bee.png")
    data = loading.load(given, run)
    for ended in (
        lambda: checkpoint.require_same_data(run, list(data.train.classes), data.train.counts.tolist(), data),
        lambda: trainer.train(given, run, resume=True),
        lambda: trainer.train(given.model_copy(update={"stage1_from": run, "stage2": "crt"}), tmp_path / "second"),
    ):
        with pytest.raises(ValueError, match="on other labels: 2 of its training images are of another class now"):
            ended()
    third = trainer.train(given.model_copy(update={"split_from": run}), tmp_path / "third")
    data = loading.load(given, third)  # it wrote down the labels of the other run, and could never be calibrated
    checkpoint.require_same_data(third, list(data.train.classes), data.train.counts.tolist(), data)
    sides = [sorted((row["part"], row["key"], row["group"]) for row in _split(one)) for one in (run, third)]
    assert sides[0] == sides[1]


def _split(run):
    with (run / "split.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# ---- What settings turn off ----


def test_without_contrast_it_is_outlier_exposure(tmp_path):
    one = trainer.train(tiny.config(method="pascl", contrast_weight=0), tmp_path / "pascl")
    two = trainer.train(tiny.config(method="oe"), tmp_path / "oe")
    tiny.assert_same_run(one, two)
    assert set(checkpoint.load(two)["history"][0]) == {"stage", "epoch", "loss", "class", "outlier"}


def test_msp_needs_no_outliers(tmp_path):
    tiny.write_cifar10(tmp_path / "data", per_batch=10)
    settings = {"dataset": "cifar10", "data": tmp_path / "data", "imbalance": None, "calibration_fraction": 0}
    sizes = {"epochs": 1, "batch_images": 20}
    for method in ("oe", "pascl", "pascl-abf"):
        with pytest.raises(ValueError, match=f"--method {method} learns from outliers: give --outliers FILE, or use"):
            trainer.train(tiny.config(method=method, **settings, **sizes), tmp_path / method)
        assert not (tmp_path / method).exists()
    out = trainer.train(tiny.config(method="msp", **settings, **sizes), tmp_path / "run")
    history = checkpoint.load(out)["history"]
    assert set(history[0]) == {"stage", "epoch", "loss", "class"}
    assert history[0]["loss"] == history[0]["class"]


def test_msp_does_not_look_at_outliers(tmp_path, monkeypatch):
    one = trainer.train(tiny.config(method="msp", epochs=1), tmp_path / "one")
    load = trainer.load

    def without(*given, **named):
        found = load(*given, **named)
        return loading.Data(**vars(found) | {"outliers": found.outliers[:0]})

    monkeypatch.setattr(trainer, "load", without)
    tiny.assert_same_run(one, trainer.train(tiny.config(method="msp", epochs=1), tmp_path / "two"))


# ---- Stage 1 of another run ----


def test_stage1_from_another_run(finished, tmp_path):
    first = trainer.train(tiny.config(method="pascl"), tmp_path / "first")
    second = trainer.train(tiny.config(stage1_from=first), tmp_path / "second")
    tiny.assert_same_run(finished, second)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"seed": 3}, "seed"), ({"contrast_weight": 0.5}, "contrast_weight"), ({"method": "msp"}, "method"),
     ({"epochs": 3, "imbalance": 5}, "imbalance, epochs")],
)  # fmt: skip
def test_stage1_of_a_run_that_does_not_fit(finished, tmp_path, changes, named):
    with pytest.raises(ValueError, match=rf"was trained with another {named}: give the same"):
        trainer.train(tiny.config(stage1_from=finished, **changes), tmp_path / "run")


def test_stage1_that_has_not_finished(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "half")
    checkpoint.save(tmp_path / "half", checkpoint.load(finished) | {"stage": "stage1", "epoch": 1})
    with pytest.raises(ValueError, match=r"half is still in stage 1 \(epoch 1\): finish it first"):
        trainer.train(tiny.config(stage1_from=tmp_path / "half"), tmp_path / "run")


# ---- Where ----


def test_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--device cuda: no GPU is available; use --device cpu"):
        trainer.train(tiny.config(device="cuda"), tmp_path / "run")
    assert find_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(("precision", "expected"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_autocast(precision, expected):
    with objective.autocast(tiny.config(precision=precision), torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected
