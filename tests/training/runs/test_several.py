"""The runs of a table: which are needed, in which order, what is skipped, resumed, refused and reported."""

import json
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from service.contract import progress
from tests import warm
from tests.training import tiny
from training import __main__ as commands
from training import trainer
from training.config import Config
from training.methods.methods import METHODS, NONE
from training.runs import checkpoint, files, several
from training.runs.steps import alone_in
from training.tables import jobs as planned
from training.tables.compact import compact

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.timeout(900)  # five processes import torch: minutes on a busy machine
CONFIG = Config(dataset="digits", imbalance=10, width=8, epochs=1, batch_images=32, device="cpu")


def plan(methods, *, seeds=1, budget="small", out=Path("out"), base=CONFIG):
    return planned.plan(base, methods, seeds, budget, out)


def names(jobs):
    return [(j.config.method, j.config.seed) for j in jobs]


def test_command_line_holds_the_settings_of_the_job(monkeypatch):
    """Read back as `python -m training train` reads it."""
    given = {}

    def train(config, out, *, resume=False):
        given.update(config=config, out=out, resume=resume)

    monkeypatch.setattr(trainer, "train", train)
    base = CONFIG.model_copy(update={"partial": False, "outliers": Path("a b.npy"), "views": 2})
    job = plan(["pascl-abf"], base=base)[1]
    training, evaluation = several.commands(job, [Path("/ood/svhn.npy")], 2)
    monkeypatch.setattr(sys, "argv", ["python -m training", *training[3:]])
    commands.main()
    assert given["config"] == job.config.model_copy(update={"threads": 2})
    assert (given["out"], given["resume"]) == (job.folder, False)
    assert evaluation[3:] == ["evaluate", str(job.folder), "--ood", "/ood/svhn.npy"]


# ---- How it runs: with small commands in the place of training ----


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """Jobs whose commands append to a log and write results.json; (plan of these methods, what happened)."""
    log = tmp_path / "happened"
    log.touch()
    failing: set[str] = set()

    def commands(job, ood, threads):
        name, done = job.config.method, job.folder / several.RESULTS_FILE
        if name in failing:
            return [["sh", "-c", f"echo {name} broke its leg >&2; exit 3"]]
        content = json.dumps({"config": job.config.model_dump(mode="json")})
        return [
            ["sh", "-c", f"echo begin {name} >> {log}; sleep .3"],
            ["sh", "-c", f"echo end {name} >> {log}; cat > {done} <<'END'\n{content}\nEND"],
        ]

    monkeypatch.setattr(several, "commands", commands)
    monkeypatch.setattr(several, "POLL_SECONDS", 0.01)

    def jobs(*methods, **changes):
        return plan(methods, out=tmp_path, base=CONFIG.model_copy(update=changes))

    jobs.failing = failing
    jobs.happened = lambda: log.read_text().splitlines()
    return jobs


def test_one_at_a_time_in_order(scripted):
    several.run(scripted("oe", "abf"), [])
    assert scripted.happened() == [f"{what} {name}" for name in ("oe", "msp", "abf") for what in ("begin", "end")]


def test_a_run_that_another_process_trains_is_waited_for(scripted, monkeypatch):
    """A killed table leaves its runs training: the same command trained them a second time, into one checkpoint."""
    (job,), at_work = scripted("msp"), several.at_work
    with ExitStack() as other:
        other.enter_context(alone_in(job.folder))

        def look(folder):
            held = at_work(folder)
            assert not scripted.happened()
            other.close()
            return held

        monkeypatch.setattr(several, "at_work", look)
        several.run([job], [])
    assert scripted.happened() == ["begin msp", "end msp"]


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path):
    with alone_in(tmp_path / "run"), pytest.raises(ValueError, match=r"is at work there: .* another --out"):
        trainer.train(CONFIG, tmp_path / "run")


def test_two_at_once_and_a_second_stage_after_its_first(scripted):
    several.run(scripted("oe", "abf", "crt"), [], at_once=2)
    happened = scripted.happened()
    assert sorted(happened[:2]) == ["begin msp", "begin oe"]
    assert happened.index("end msp") < min(happened.index("begin abf"), happened.index("begin crt"))
    running = most = 0
    for line in happened:
        running += 1 if line.startswith("begin") else -1
        most = max(most, running)
    assert most == 2


def test_what_is_done_is_skipped(scripted):
    several.run(scripted("oe"), [])
    several.run(scripted("oe", "msp"), [])
    assert scripted.happened() == ["begin oe", "end oe", "begin msp", "end msp"]
    several.run(scripted("oe", "msp"), [])
    assert len(scripted.happened()) == 4


def test_a_run_with_another_setting_is_refused(scripted):
    several.run(scripted("oe"), [])
    with pytest.raises(ValueError, match=r"-oe-.* holds a run with tail_fraction 0\.4 instead of 0\.5: choose another"):
        several.run(scripted("oe", "msp", tail_fraction=0.5), [])
    assert len(scripted.happened()) == 2  # before anything else is trained
    several.run(scripted("oe", device="auto", threads=2), [])  # how the machine is used may differ


def test_a_failing_run_is_reported_while_the_others_finish(scripted):
    scripted.failing.add("msp")
    jobs = scripted("abf", "oe")
    with pytest.raises(ValueError, match="these runs failed") as caught:
        several.run(jobs, [])
    said = str(caught.value).splitlines()
    folders = {j.config.method: j.folder for j in jobs}
    log = folders["msp"] / files.LOG_FILE
    assert said[1:] == [
        f"{folders['msp'].name}: see {log}", f"{folders['abf'].name}: waits for {folders['msp']}",
    ]  # fmt: skip
    assert "msp broke its leg" in log.read_text()
    assert scripted.happened() == ["begin oe", "end oe"]
    scripted.failing.clear()
    several.run(jobs, [])
    assert all(job.done for job in jobs)


def shown(share, stage=1):
    """What a stage's bar says in a run's log."""
    return f"stage{stage}: {share:3d}%|####      | {share}/100 [00:10<00:15,  4.00step/s, loss=0.5]"


def test_progress_in_a_log_has_an_estimate_from_the_runs_own(monkeypatch, tmp_path, capfd):
    """Before any run has ended; what a run had done before it was interrupted is not counted as speed."""
    monkeypatch.setattr(several, "POLL_SECONDS", 0.01)
    monkeypatch.setenv(progress.EVERY, "0.1")
    job = plan(["msp"], out=tmp_path)[0]
    job.folder.mkdir(parents=True)
    (job.folder / files.LOG_FILE).write_text(shown(95) + "\n")
    content = json.dumps({"config": job.config.model_dump(mode="json")})
    script = f"echo '{shown(40)}'; sleep .4; echo '{shown(50)}'; sleep .4; echo 'reading'; sleep .3; "
    script += f"cat > {job.folder / files.RESULTS_FILE} <<'END'\n{content}\nEND"
    monkeypatch.setattr(several, "commands", lambda *_: [["sh", "-c", script]])
    several.run([job], [])
    said = capfd.readouterr().err
    assert "\r" not in said
    assert "95%" not in said
    lines = said.splitlines()
    assert lines[0].startswith("  0%|")
    assert lines[-1].startswith("100%|")
    half = [line for line in lines if "| 0.5/1 " in line]
    assert any("msp stage1:  50%]" in line for line in half)
    assert any("msp reading]" in line for line in half)
    assert [line for line in lines if "| 0.4/1 " in line]
    left = [int(re.search(r"<00:(\d\d),", line)[1]) for line in half]
    assert all(2 <= seconds <= 10 for seconds in left), half  # five times as long as the 0.1 of the run took


def test_share_of_a_run_with_two_stages(tmp_path):
    alone = next(name for name, method in METHODS.items() if method.stage2 != NONE)
    job = several.Job(CONFIG.model_copy(update={"method": alone}), tmp_path, None)
    started = several._Process(job, [["true"]])
    assert started.last_line().strip() == alone
    assert started.share is None
    for stage, share, expected in ((1, 50, 0.25), (1, 100, 0.5), (2, 50, 0.75)):
        with started.path.open("a") as log:
            log.write(shown(share, stage) + "\n" + "\r".join(["x" * 100] * 3) + "\n")
        started.last_line()
        assert started.share == expected
    started.process.wait()
    second = several._Process(several.Job(job.config, tmp_path, tmp_path), [["true"]])
    with second.path.open("a") as log:
        log.write(shown(50, 2))
    assert second.last_line() == f"{alone} stage2:  50%"
    assert second.share == 0.5
    second.process.wait()


def test_signal_handlers_are_put_back(scripted):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    several.run(scripted("oe"), [])
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


# ---- The real thing: a table interrupted and resumed ----


def table(out, *more):
    """The command as a user gives it."""
    settings = "--dataset digits --imbalance 10 --width 8 --epochs 3 --batch-images 32 --device cpu --threads 1"
    settings += " --methods pascl-abf"  # and pascl, whose network it begins with
    return [sys.executable, "-m", "training", "table", "per-set", *settings.split(), "--out", str(out), *more]


def wait_for(condition, process, seconds=240):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture(scope="module")
def interrupted_and_resumed(tmp_path_factory):
    """(folder, jobs, what stood there after Ctrl-C, what the table printed in the end)."""
    out = tmp_path_factory.mktemp("tables")
    jobs = plan(["pascl-abf"], out=out, base=CONFIG.model_copy(update={"epochs": 3}))
    first = jobs[0].folder / checkpoint.CHECKPOINT_FILE
    with warm.Popen(table(out), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for(first.exists, process)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 1, errors
    assert "interrupted; what was trained is kept: give the same command again to go on" in errors
    state = checkpoint.load(jobs[0].folder)
    done = warm.run(table(out, "--results", str(out / "small")), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out, jobs, state, done.stdout


def test_ctrl_c_leaves_a_checkpoint(interrupted_and_resumed):
    _, _, state, _ = interrupted_and_resumed
    assert state["stage"] == "stage1"
    assert 1 <= state["epoch"] < 3


def test_the_same_command_goes_on(interrupted_and_resumed):
    out, jobs, state, printed = interrupted_and_resumed
    assert all(job.done for job in jobs)
    history = checkpoint.load(jobs[0].folder)["history"]
    assert history[: state["epoch"]] == state["history"]  # kept, not trained again
    assert [h["epoch"] for h in history] == list(range(3))
    assert "PASCL" in printed or "pascl" in printed
    assert (out / "per-set.md").is_file()


def test_results_to_commit_hold_no_path(interrupted_and_resumed):
    out, jobs, _, _ = interrupted_and_resumed
    files = sorted((out / "small").glob("*.json"))
    assert [f.stem for f in files] == sorted(job.folder.name for job in jobs)
    for file in files:
        text = file.read_text()
        assert str(out) not in text
        assert str(ROOT) not in text
        assert '"/' not in text
        compact = json.loads(text)
        assert compact["method"] in ("pascl", "pascl-abf")
        assert set(compact["provenance"]) == {"commit", "versions"}


def test_compact_keeps_numbers_and_drops_paths(interrupted_and_resumed):
    _, jobs, _, _ = interrupted_and_resumed
    result = planned.results(jobs, "small")[0]
    result["config"] |= {"data": "/home/me/cifar", "outliers": "/home/me/tiny.npy", "stage1_from": "/home/me/run"}
    found = compact(result)
    assert found["config"]["outliers"] == "tiny.npy"
    assert "/home" not in json.dumps(found)
    assert found["config"]["width"] == CONFIG.width
    assert found["accuracy"] == pytest.approx(result["accuracy"], abs=1e-6)
    assert found["mean"]["auroc"] == pytest.approx(result["mean"]["auroc"], abs=1e-6)


def test_everything_done_starts_nothing(interrupted_and_resumed, monkeypatch):
    _, jobs, _, _ = interrupted_and_resumed
    monkeypatch.setattr(subprocess, "Popen", None)
    several.run(jobs, [])
    assert {method for method, *_ in planned.outputs(jobs)} == {"pascl", "pascl-abf"}


def test_resumed_run_is_the_uninterrupted_one(interrupted_and_resumed, tmp_path):
    _, jobs, _, _ = interrupted_and_resumed
    config = jobs[0].config.model_copy(update={"threads": 1})
    tiny.assert_same_run(jobs[0].folder, trainer.train(config, tmp_path / "run"))
