"""Settings that cannot work are refused before the first step; a run that diverges stops and keeps its checkpoint."""

import math

import pytest
import torch

from tests.training import tiny
from training import trainer
from training.config import Config
from training.data import loading
from training.data.readers import ImageSet
from training.network.device import find_device
from training.places import photographs, require_outside, require_writable
from training.runs import checkpoint, first_stage, loop
from training.runs.loop import Diverged


@pytest.fixture
def no_step(monkeypatch):
    """A step of training fails the test."""

    def step(*_arguments, **_settings):
        raise AssertionError("training began")

    monkeypatch.setattr(trainer.Loop, "run", step)
    monkeypatch.setattr(trainer, "second_stage", step)


# ---- Before the first step ----


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stage2_batch_images": 500}, r"^--stage2-batch-images 500: 181 training images do not fill such a batch"),
        ({"batch_images": 190, "stage2_batch_images": 500}, r"--batch-images 190: 181 .*, use 181 or less\n--stage2-b"),
        ({"method": "tau-norm", "calibration_fraction": 0}, "no calibration images: train with --calibration-fraction"),
        ({"device": "gpu"}, "--device gpu: there is no such device; use auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:x"}, "--device cuda:x: there is no such device"),
    ],
)
def test_what_can_fail_early_fails_early(no_step, tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        trainer.train(tiny.config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_smote_fills_a_batch_that_the_images_do_not(tmp_path):
    config = tiny.config(method="crt-smote", epochs=1, stage2_batch_images=256)
    assert len(loading.load(config).train.labels) < 256
    checkpoint.trained(trainer.train(config, tmp_path / "run"))


def test_a_stage_2_in_closed_form_has_no_batch(tmp_path):
    checkpoint.trained(trainer.train(tiny.config(method="la-posthoc", epochs=1, stage2_batch_images=500), tmp_path))


@pytest.mark.parametrize("method", ["msp", "oe", "pascl", "oecc"])
def test_one_class_and_a_score_that_compares_classes_is_refused(no_step, tmp_path, monkeypatch, method):
    load = trainer.load

    def one_class(config, *rest, **options):
        data = load(config, *rest, **options)
        only = ImageSet(data.train.images, data.train.labels * 0, ("thing",))
        return loading.Data(**vars(data) | {"train": only, "calibration": only})

    monkeypatch.setattr(trainer, "load", one_class)
    with pytest.raises(ValueError, match=f"--method {method}: with one class its loss is 0 .* outliers: .*tailguard"):
        trainer.train(tiny.config(method=method), tmp_path / "run")
    with pytest.raises(AssertionError, match="training began"):
        trainer.train(tiny.config(method="tailguard"), tmp_path / "run")


def test_a_class_without_a_training_image_is_refused(no_step, tmp_path, monkeypatch):
    load = trainer.load

    def emptied(config, *rest, **options):
        data = load(config, *rest, **options)
        kept = (data.train.labels != 7).nonzero()[0]
        return loading.Data(**vars(data) | {"train": data.train.take(kept)})

    monkeypatch.setattr(trainer, "load", emptied)
    with pytest.raises(ValueError, match=r"--calibration-fraction 0\.55 leaves no training image of class 7"):
        trainer.train(tiny.config(), tmp_path / "run")


def test_a_file_in_the_place_of_the_folder_is_refused(no_step, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--out .*file is a file, name a folder"):
        trainer.train(tiny.config(), tmp_path / "file" / "run")


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(ValueError, match=r"--out .* cannot be written to, name another folder"):
        require_writable(tmp_path / "deep" / "run", "--out")
    assert not (tmp_path / "deep").exists()


def test_a_gpu_past_the_last_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match=r"--device cuda:2: this machine has 2 GPUs; use cuda:0 to cuda:1"):
        find_device("cuda:2")


def test_the_command_of_the_audit_trains_on_a_small_folder(no_step, tmp_path):
    """It names no batch of stage 2: that follows from the batch of stage 1."""
    config = tiny.config(batch_images=8, stage2_batch_images=None, stage2_epochs=None, method="tailguard")
    with pytest.raises(AssertionError, match="training began"):
        trainer.train(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("images", "batch", "expected"),
    [(11_166, 256, (128, 10)), (94, 32, (32, 300)), (94, 128, (128, 600)), (1_000, 64, (64, 40))],
)
def test_stage_2_of_few_images_takes_as_many_epochs_as_its_steps_need(images, batch, expected):
    config = tiny.config(stage2_batch_images=None, stage2_epochs=None, batch_images=batch).with_schedule(images)
    assert (config.stage2_batch_images, config.stage2_epochs) == expected
    given = tiny.config(stage2_batch_images=16, stage2_epochs=3).with_schedule(images)
    assert (given.stage2_batch_images, given.stage2_epochs) == (16, 3)


# ---- A finished stage 1 is not lost ----


@pytest.fixture
def stage1_only(tmp_path, monkeypatch):
    """A run that ended between its stages."""

    def killed(*_arguments):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "second_stage", killed)
        with pytest.raises(RuntimeError, match="killed"):
            trainer.train(tiny.config(), tmp_path / "run")
    state = checkpoint.load(tmp_path / "run")
    assert (state["stage"], state["epoch"]) == ("stage1", 2)
    return tmp_path / "run"


def test_finished_stage_1_is_resumed_with_another_stage_2_batch(stage1_only):
    config = checkpoint.resumed(stage1_only, tiny.config(stage2_batch_images=16), {"stage2_batch_images"})
    run = checkpoint.trained(trainer.train(config, stage1_only, resume=True))
    assert run.config.stage2_batch_images == 16
    with pytest.raises(ValueError, match="--resume keeps the run's stage2_batch_images 16; 32 was given"):
        checkpoint.resumed(stage1_only, tiny.config(stage2_batch_images=32), {"stage2_batch_images"})


def test_finished_stage_1_of_an_unfinished_run_is_taken(stage1_only, finished, tmp_path):
    tiny.assert_same_run(finished, trainer.train(tiny.config(stage1_from=stage1_only), tmp_path / "second"))


# ---- Divergence ----


def nan_at(monkeypatch, call):
    """The loss of stage 1 is NaN at this step, counted from 1 over the epochs."""
    build, steps = first_stage.stage1_losses, 0

    def broken(*arguments):
        losses = build(*arguments)

        def at_step(batch):
            nonlocal steps
            steps += 1
            parts = losses(batch)
            return {k: v * math.nan for k, v in parts.items()} if steps == call else parts

        return at_step

    monkeypatch.setattr(first_stage, "stage1_losses", broken)


def test_nan_stops_the_run_and_the_last_good_checkpoint_is_kept(tmp_path, monkeypatch):
    nan_at(monkeypatch, 5 + 3)  # five steps an epoch
    with pytest.raises(Diverged) as caught:
        trainer.train(tiny.config(epochs=3), tmp_path / "run")
    said = str(caught.value)
    assert said.startswith("stage1 diverged in epoch 1, step 2: the loss is nan; the checkpoint in ")
    assert "is of stage1, epoch 1, step 0. Train with a lower --learning-rate" in said
    state = checkpoint.load(tmp_path / "run")
    assert state["epoch"] == 1
    assert all(v.isfinite().all() for v in state["network"].values())


def test_a_learning_rate_too_large_leaves_no_checkpoint(tmp_path):
    with pytest.raises(Diverged, match=r"diverged in epoch 0, step .*no checkpoint was written yet"):
        trainer.train(tiny.config(method="msp", learning_rate=1e30), tmp_path / "run")
    assert not (tmp_path / "run" / checkpoint.CHECKPOINT_FILE).exists()


def test_a_network_that_is_not_finite_is_not_saved(tmp_path, monkeypatch):
    """The loss is that of before the last update, so a finite one does not prove the network finite."""
    monkeypatch.setattr(loop, "first_not_finite", lambda network: "head.weight")
    with pytest.raises(Diverged, match=r"epoch 1, step 0: head\.weight of the network is not finite"):
        trainer.train(tiny.config(), tmp_path / "run")
    assert not (tmp_path / "run" / checkpoint.CHECKPOINT_FILE).exists()


@pytest.mark.parametrize("part", ["network", "branch"])
def test_a_network_that_is_not_finite_is_not_used(finished, tmp_path, part):
    state = checkpoint.load(finished)
    state[part]["head.weight"][0, 0] = math.inf
    checkpoint.save(tmp_path, state)
    with pytest.raises(ValueError, match=r"the network in .* is not finite \(head\.weight\): train it again with a lo"):
        checkpoint.trained(tmp_path)


def test_nothing_is_written_among_the_images_that_are_read(no_step, tmp_path):
    """Plots and examples of a bundle were a class, or outliers, of the next run."""
    for name in ("flat/apple", "parted/train/apple", "parted/test/apple", "junk"):
        (tmp_path / name).mkdir(parents=True)

    def refused(data, out):
        written = {"--out": tmp_path / out}
        try:
            require_outside(written, tmp_path / data, None, tmp_path / "gone", outliers=tmp_path / "junk")
        except ValueError as error:
            return str(error).startswith(f"--out {tmp_path / out} lies in {tmp_path}")
        return False

    assert refused("flat", "flat/models")
    assert refused("flat", "flat/apple/models")
    assert refused("flat", "junk/models")
    assert refused("parted", "parted/test/apple")
    assert not refused("flat", "models")
    assert not refused("flat", "flat-models")
    assert not refused("parted", "parted/models")  # beside the parts, where nothing is read
    assert photographs(Config(dataset="cifar10", data=tmp_path)) is None  # beside a benchmark's archive may be anything
    config = Config(dataset="folder", data=tmp_path / "flat")
    with pytest.raises(ValueError, match=r"--out .* lies in .*: name a folder outside"):
        trainer.train(config, tmp_path / "flat" / "run")
