"""The commands: what they refuse and what they say to do instead."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training import tiny
from training import __main__ as commands
from training import trainer
from training.config import options
from training.data import loading
from training.finished import calibrated
from training.methods.screen import screen
from training.runs import checkpoint
from training.runs.files import CALIBRATION_FILE, OUTPUTS_FILE, RESULTS_FILE
from training.runs.steps import LOCK_FILE

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(monkeypatch, capfd):
    """Give the commands these arguments; (exit status, everything printed)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["python -m training", *map(str, arguments)])
        status, message = 0, ""
        try:
            commands.main()
        except SystemExit as stop:
            status, message = (stop.code, "") if isinstance(stop.code, int | None) else (1, str(stop.code))
        printed = capfd.readouterr()
        return status or 0, "\n".join((message, printed.out, printed.err))

    return run


@pytest.fixture
def copied(finished, tmp_path):
    """A finished run of one's own."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


# ---- Options ----


@pytest.mark.parametrize("command", ["train", "evaluate", "calibrate", "export", "bench"])
def test_unknown_option_is_named(run, command, tmp_path):
    positional = [] if command in ("train", "bench") else [tmp_path]
    status, printed = run(command, *positional, "--widht", "8")
    assert status != 0
    assert "--widht" in printed


@pytest.mark.parametrize("command", sorted(commands.Command.model_fields))
def test_help_is_in_words_and_tells_what_an_option_takes(run, command):
    status, printed = run(command, "--help")
    assert status == 0
    assert not [odd for odd in ("null", "tuple[", "list[", "(default: ())", "(default: [])") if odd in printed]
    expected = {"audit": "Write a picture of the counts", "weights": "EfficientNet-Lite", "bench": "side by side",
                "table": "which joins data sets and backbones", "fit": "--calibration-fraction NUMBER"}  # fmt: skip
    assert expected.get(command, "") in " ".join(printed.split())


def test_unknown_option_of_the_real_command():
    command = [sys.executable, "-m", "training", "train", "--lerning-rate", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "--lerning-rate" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_line_is_there_before_torch_and_says_the_defaults_of_what_it_runs():
    ask = "import sys; from training.__main__ import Export; from training.export.exemplars import MOST_OF_A_CLASS\n"
    ask += "default = Export.model_fields['exemplars_per_class'].default\n"
    ask += "print(default == MOST_OF_A_CLASS, sorted({'torch', 'onnx', 'timm'} & set(sys.modules)))"
    for changed in ("", "import training.export.exemplars as e; e.MOST_OF_A_CLASS = 7\n"):
        done = subprocess.run([sys.executable, "-c", changed + ask], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout == "True []\n", done


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--width", "4"], "width"), (["--imbalance", "0.5"], "imbalance"), (["--dataset", "mnist"], "dataset"),
        (["--calibration-fraction", "1"], "calibration-fraction"), (["--epochs", "many"], "epochs"),
    ],
)  # fmt: skip
def test_value_out_of_range_is_named(run, given, named, tmp_path):
    status, printed = run("train", *given, "--out", tmp_path / "run")
    assert status != 0
    assert named in printed.replace("_", "-")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [".5,.25,1", "0.5,0.25,1", "(0.5, 0.25, 1.0)", "[.5,.25,1.]"])
def test_three_numbers_are_read_however_they_are_written(run, given, monkeypatch):
    seen = []
    monkeypatch.setattr(trainer, "train", lambda config, *_, **__: seen.append(config))
    status, printed = run("train", "--backbone", "lite0", "--backbone-mean", given, "--backbone-std", given)
    assert status == 0, printed
    assert seen[0].backbone_mean == seen[0].backbone_std == (0.5, 0.25, 1)


@pytest.mark.parametrize("given", ["rubbish", ".5,.5", "1,2,3,4", "a,b,c", "nan,1,1", "", ".5 .5 .5"])
def test_what_is_not_three_numbers_is_refused_with_an_example(run, given, tmp_path):
    status, printed = run("train", "--backbone", "lite0", "--backbone-mean", given, "--out", tmp_path / "run")
    assert status != 0
    assert "--backbone-mean" in printed
    assert f"as in 0.5,0.5,0.5, not '{given}'" in printed


def test_three_numbers_survive_the_way_over_a_command(run):
    assert options({"backbone_mean": (0.5, 0.25, 1)}) == ["--backbone-mean", "0.5,0.25,1"]


def test_unknown_command(run):
    status, printed = run("trian")
    assert status != 0
    assert "trian" in printed


def test_unknown_method(run, tmp_path):
    status, printed = run("train", "--dataset", "digits", "--method", "pscl", "--out", tmp_path / "run")
    assert status == 1
    assert "error: there is no method 'pscl'; the methods are msp, under-sampling, over-sampling" in printed


def test_missing_data(run, tmp_path):
    status, printed = run("train", "--data", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert status == 1
    assert "nowhere is not a folder: --data must name CIFAR's python files" in printed
    assert "Traceback" not in printed


def test_a_full_disk_is_said_in_a_line(run, tmp_path):
    (tmp_path / "data" / "ant").mkdir(parents=True), (tmp_path / "data" / "bee").mkdir()
    for i, name in enumerate(("ant", "bee") * 8):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (9, 9, 3), np.uint8)).save(
            tmp_path / "data" / name / f"{i}.png"
        )
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, most))
    try:
        status, printed = run("train", "--dataset", "folder", "--data", tmp_path / "data", "--out", tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
    assert status == 1
    assert "File too large: make room on the disk that is written to, or name a folder on another" in printed
    assert [p.name for p in (tmp_path / "run").rglob("*") if p.is_file()] == [LOCK_FILE]  # and nothing half written


def test_methods_prints_the_screen(run):
    status, printed = run("methods")
    assert status == 0
    assert printed.strip() == screen()


# ---- Training and resuming ----


def test_train_writes_the_settings_given(run, finished, tmp_path):
    status, printed = run("train", *tiny.options(tiny.config()), "--out", tmp_path / "run")
    assert status == 0, printed
    assert f"trained: {tmp_path / 'run'}" in printed
    tiny.assert_same_run(finished, tmp_path / "run")
    made_by = checkpoint.load(tmp_path / "run")["provenance"]
    assert made_by["command"].startswith("python -m training train --dataset digits --imbalance 10")


def test_what_was_not_given_is_left_to_the_schedule(run, tmp_path, monkeypatch):
    """Epochs and batch of a head on frozen features follow from the images, from the command line too."""
    seen = []
    monkeypatch.setattr(trainer, "train", lambda config, out, resume: seen.append(config))
    given = ["train", "--dataset", "digits", "--backbone", "onnx:x.onnx", "--out", tmp_path / "run"]
    run(*given)
    run(*given, "--epochs", 3)
    assert [(c.frozen, c.with_schedule(80).epochs, c.with_schedule(80).batch_images) for c in seen] == [
        (True, 400, 80), (True, 3, 80)
    ]  # fmt: skip


def test_existing_run_is_refused(run, copied):
    status, printed = run("train", *tiny.options(tiny.config()), "--out", copied)
    assert status == 1
    assert f"{copied} holds a run: --resume it, or choose another --out" in printed


@pytest.mark.parametrize(
    ("given", "named"), [(["--seed", "3"], "seed 0; 3"), (["--learning-rate", "0.5"], "learning_rate 0.001; 0.5"),
                         (["--method", "oe"], "method 'pascl-abf'; 'oe'")]
)  # fmt: skip
def test_resuming_with_another_setting_is_refused(run, copied, given, named):
    before = (copied / checkpoint.CHECKPOINT_FILE).read_bytes()
    status, printed = run("train", "--out", copied, "--resume", *given)
    assert status == 1
    assert f"--resume keeps the run's {named} was given" in printed
    assert (copied / checkpoint.CHECKPOINT_FILE).read_bytes() == before


def test_sides_of_another_run_and_another_share_held_back(run, finished, tmp_path):
    """The share was written down, and what was held back was another."""
    given = ("train", "--dataset", "digits", "--split-from", finished, "--out", tmp_path / "a", "--imbalance", "10")
    status, printed = run(*given, "--calibration-fraction", "0.2")
    assert status == 1
    assert "which has calibration fraction 0.55 and not 0.2: leave out --calibration-fraction, or --split" in printed
    status, printed = run(*given, "--calibration-fraction", "0.55", "--batch-images", "9000")
    assert "--batch-images 9000: 181 training images do not fill such a batch" in printed


def test_resuming_takes_the_settings_of_the_run(run, finished, copied):
    # the same again, and how the machine is used, may be given
    status, printed = run("train", "--out", copied, "--resume", "--seed", "0", "--device", "cpu", "--threads", "1")
    assert status == 0, printed
    tiny.assert_same_run(finished, copied)


def test_nothing_to_resume(run, tmp_path):
    status, printed = run("train", "--out", tmp_path, "--resume")
    assert status == 1
    assert "checkpoint.pt does not exist" in printed


# ---- Commands out of order ----


@pytest.mark.parametrize("command", ["evaluate", "calibrate", "export"])
def test_no_run(run, command, tmp_path):
    status, printed = run(command, tmp_path / "nowhere")
    assert status == 1
    assert "nowhere/checkpoint.pt does not exist: name the folder of a run (train --out)" in printed


@pytest.mark.parametrize("command", ["evaluate", "calibrate", "export"])
def test_run_has_not_finished(run, copied, command):
    checkpoint.save(copied, checkpoint.load(copied) | {"stage": "stage2", "epoch": 0})
    status, printed = run(command, copied)
    assert status == 1
    assert f"{copied} has not finished (stage stage2, epoch 0)" in printed
    assert f"python -m training train --out {copied} --resume" in printed


def test_export_before_calibrate(run, copied, tmp_path):
    status, printed = run("export", copied, "--out", tmp_path / "models")
    assert status == 1
    assert f"calibration.json does not exist: python -m training calibrate {copied}" in printed
    assert not (tmp_path / "models").exists()


def test_unknown_score(run, copied):
    status, printed = run("evaluate", copied, "--score", "mahalonobis")
    assert status == 1
    assert "error: There is no score 'mahalonobis'. Choose from: energy, msp" in printed


def test_score_that_the_network_cannot_give(run, copied):
    status, printed = run("evaluate", copied, "--score", "reject-mass")
    assert status == 1
    assert "Score 'reject-mass' reads reject logits, and this network has none" in printed
    assert not (copied / RESULTS_FILE).exists()


def test_another_score_leaves_the_methods_own_results(run, copied, tmp_path):
    """Tables print results.json and draw outputs.npz: another score has files of its own."""
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8))
    assert run("evaluate", copied, "--ood", tmp_path / "noise.npy")[0] == 0
    before = {name: (copied / name).read_bytes() for name in (RESULTS_FILE, OUTPUTS_FILE)}
    status, printed = run("evaluate", copied, "--score", "mahalanobis-pp")
    assert status == 0, printed
    assert {name: (copied / name).read_bytes() for name in before} == before
    other = json.loads((copied / "results-mahalanobis-pp.json").read_text())
    assert other["score"] == "mahalanobis-pp"
    assert set(other["ood"]) == {"nine", "noise"}  # on the OOD sets of the last evaluation
    assert (copied / "outputs-mahalanobis-pp.npz").is_file()


# ---- A run stands on its own ----


@pytest.fixture
def far_from_here(tmp_path, monkeypatch):
    """A run whose data were named from another folder than the one we stand in: (run, data)."""
    tiny.write_cifar10(tmp_path / "there" / "cifar", per_batch=20)
    monkeypatch.chdir(tmp_path / "there")
    config = tiny.config(
        dataset="cifar10", data=Path("cifar"), imbalance=None, method="msp", epochs=1, batch_images=20,
        calibration_fraction=0.2,
    )  # fmt: skip
    trainer.train(config, Path("run"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "there" / "run", tmp_path / "there" / "cifar"


def test_a_run_is_evaluated_from_another_folder(run, far_from_here):
    status, printed = run("evaluate", far_from_here[0])
    assert status == 0, printed


def test_data_that_moved_are_named_again(run, far_from_here, tmp_path):
    folder, data = far_from_here
    data.rename(tmp_path / "moved")
    status, printed = run("evaluate", folder)
    assert status == 1
    assert "--data" in printed
    for command in ("evaluate", "calibrate"):
        status, printed = run(command, folder, "--data", tmp_path / "moved")
        assert status == 0, printed
    status, printed = run("export", folder, "--data", tmp_path / "moved", "--out", tmp_path / "models")
    assert status == 0, printed
    status, printed = run("train", "--out", folder, "--resume", "--data", tmp_path / "moved")
    assert status == 0, printed


def test_other_data_in_the_new_place_are_refused(run, far_from_here, tmp_path):
    tiny.write_cifar10(tmp_path / "other", per_batch=10)
    status, printed = run("evaluate", far_from_here[0], "--data", tmp_path / "other")
    assert status == 1
    assert "error: " in printed


# ---- Export refuses before it works ----


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--name", "My Birds"], "--name 'My Birds': use small letters, digits and . _ -"),
        (["--version", "v 1"], "--version 'v 1': use letters, digits and . _ -, beginning with a letter or a digit"),
        (["--scores", "nonesuch"], "There is no score 'nonesuch'"),
        (["--examples", "empty"], "--examples empty holds no image: name a folder with some, or leave it out"),
        (["--out", "file/models"], "is a file, name a folder"),
    ],
)
def test_export_refuses_before_it_reads_data(run, copied, tmp_path, monkeypatch, given, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (copied / CALIBRATION_FILE).write_text('{"calibration": {"class_mix": "train"}}')
    monkeypatch.setattr(loading, "load", None)
    status, printed = run("export", copied, *given)
    assert status == 1
    assert said in printed


def test_a_device_that_is_none_is_refused_in_words(run, copied):
    for command in (["evaluate", copied], ["train", *tiny.options(tiny.config()), "--out", copied / "new"]):
        status, printed = run(*command, "--device", "gpu")
        assert status == 1
        assert "error: --device gpu: there is no such device; use auto, cpu, cuda or cuda:N" in printed


def test_calibrate_without_calibration_images(run, tmp_path):
    settings = tiny.config(calibration_fraction=0, epochs=1, method="msp", batch_images=128)
    assert run("train", *tiny.options(settings), "--out", tmp_path / "run")[0] == 0
    status, printed = run("calibrate", tmp_path / "run")
    assert status == 1
    assert "no calibration images: train with --calibration-fraction above 0" in printed


# ---- In order ----


def test_evaluate_and_calibrate(run, copied):
    status, printed = run("evaluate", copied)
    assert status == 0, printed
    results = json.loads((copied / RESULTS_FILE).read_text())
    assert f"accuracy {results['accuracy']:.2%}" in printed
    assert f"AUROC {results['ood']['nine']['auroc']:.2%}" in printed
    assert (results["method"], results["seed"]) == ("pascl-abf", 0)
    assert results["provenance"]["training"]["commit"]
    assert results["images"] == 478
    status, printed = run("calibrate", copied)
    assert status == 0, printed
    record = json.loads((copied / CALIBRATION_FILE).read_text())
    assert f"temperature {record['temperature']:.3f}, deciding score msp" in printed
    assert list(record["operating_points"]) == ["id95", "ood95"]
    # probabilities differ by the temperature alone, scores not at all
    assert record["evaluation"]["accuracy"] == results["accuracy"]
    assert record["evaluation"]["ood"]["nine"]["auroc"] == results["ood"]["nine"]["auroc"]
    status, printed = run("calibrate", copied, "--level", "0.9", "--level", "0.8", "--class-mix", "uniform")
    assert status == 0, printed
    record = json.loads((copied / CALIBRATION_FILE).read_text())
    assert list(record["operating_points"]) == ["id90", "id80", "ood95"]
    assert (record["default_operating_point"], record["calibration"]["class_mix"]) == ("id90", "uniform")
    status, printed = run("calibrate", copied, "--level", "95")
    assert (status, printed.strip().splitlines()[-1]) == (
        1, "error: level 95 is no share of images to keep: give one between 0 and 1, 0.95 say",
    )  # fmt: skip
    status, printed = run("calibrate", copied, "--class-mix", "flat")
    assert status == 1
    assert "class mix 'flat' is neither train, uniform nor a file of shares" in printed


def test_class_names_in_another_order_are_refused(run, copied):
    state = checkpoint.load(copied)
    state["classes"][0], state["classes"][1] = state["classes"][1], state["classes"][0]
    checkpoint.save(copied, state)
    status, printed = run("evaluate", copied)
    assert status != 0
    assert "in another order: class 0 was ['1'], the data say ['0']" in printed
    assert not (copied / RESULTS_FILE).exists()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("fit photos --ood a b c --name x", "fit photos --ood a --ood b --ood c --name x"),
        ("fit --ood a b photos", "fit --ood a --ood b photos"),
        ("fit --ood a photos --heads msp oe", "fit --ood a photos --heads msp --heads oe"),
        ("evaluate run --ood a --ood b --score msp", "evaluate run --ood a --ood b --score msp"),
        ("calibrate run --level .9 .8 --ood=a", "calibrate run --level .9 --level .8 --ood=a"),
        ("fit photos --ood", "fit photos --ood"),
        ("fit --ood a --thumbnails photos", "fit --ood a --thumbnails photos"),
        ("methods", "methods"),
        ("", ""),
    ],
)
def test_several_values_after_one_option_are_each_its_own(given, meant):
    """A shell makes them of --ood DIR/*: "unrecognized arguments" was all that was said of the second."""
    assert commands.spread(given.split()) == meant.split()


def test_a_file_that_cannot_be_written_is_refused_before_the_work(run, copied, tmp_path):
    """A traceback ended it, after hours of pareto."""
    (copied / CALIBRATION_FILE).write_text('{"calibration": {"class_mix": "train"}}')
    for command in (("pareto", copied, "--out"), ("audit", "--dataset", "digits", "--no-measure", "--json-file")):
        status, printed = run(*command, tmp_path)
        assert status == 1
        assert f"{command[-1]} {tmp_path} is a folder: name a file in it" in printed
    assert run(*command, tmp_path / "new" / "audit.json")[0] == 0
    assert (tmp_path / "new" / "audit.json").is_file()


@pytest.mark.parametrize("score", ["mahalanobis-pp|msp", "energy+rmds-pp"])
def test_thresholds_of_distances_in_another_unit_are_refused(score, tmp_path):
    """Read as they are, a million times too large, they would refuse nothing."""
    record = {"score": score, "calibration": {"class_mix": "train"}}
    (tmp_path / "calibration.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="is of an earlier version"):
        calibrated(tmp_path)
