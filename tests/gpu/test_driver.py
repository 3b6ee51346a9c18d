"""The driver with steps of a second: order, limit, resuming, failure, a kill, what is missing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.settings.places import ROOT
from tests.gpu import __main__ as check
from tests.gpu import driver, found, running, summary
from tests.gpu.driver import CheckError
from tests.gpu.step import Command, Given, Json, Step, output, printed
from tests.gpu.steps import STEPS

# Counts up, an interruptible second each, and keeps what it has counted: a training run in small.
COUNTING = """
import sys, time, pathlib
kept = pathlib.Path(sys.argv[1])
for n in range(int(kept.read_text()) if kept.exists() else 0, int(sys.argv[2])):
    try:
        time.sleep(float(sys.argv[3]))
    except KeyboardInterrupt:
        sys.exit('interrupted; the run is kept')
    kept.write_text(str(n + 1))
    print(n + 1)
"""
MACHINE: Json = {"card": None, "cpus": 1, "load_average_before": 0.5, "commit": "abc", "versions": {"torch": "2"}}


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


def step(name: str, code: str = "print(7)", needs: tuple[str, ...] = ()) -> Step:
    return Step(
        name, f"worth of {name}", "1 min", needs, lambda given, work: [Command("say", python(code))],
        lambda given, work: {"said": int(printed(work, "say"))},
    )  # fmt: skip


def counting(name: str, to: int, seconds: float) -> Step:
    def commands(given: Given, work: Path) -> list[Command]:
        return [
            Command("first", python("import pathlib; p = pathlib.Path({!r}); p.write_text(p.read_text() + 'x' if "
                                    "p.exists() else 'x')".format(str(work / "firsts")))),
            Command("count", python(COUNTING, work / "kept", to, seconds)),
        ]  # fmt: skip

    def figures(given: Given, work: Path) -> Json:
        return {"counted": int((work / "kept").read_text()), "firsts": (work / "firsts").read_text()}

    return Step(name, "counts", "3 s", (), commands, figures)


def states(outcomes: list[driver.Outcome]) -> list[tuple[str, str]]:
    return [(o.step.name, o.state) for o in outcomes]


def run(steps: list[Step], out: Path, missing: dict[str, str] | None = None, **limits: float) -> list[driver.Outcome]:
    return driver.run(steps, Given(out), missing or {}, MACHINE, **limits)


# ---- Order, results, skipping ----


def test_steps_run_in_order_and_leave_their_results(tmp_path: Path) -> None:
    order = tmp_path / "order"
    code = "open({!r}, 'a').write({!r}); print(1)"
    steps = [step(name, code.format(str(order), name)) for name in "bca"]
    assert states(run(steps, tmp_path)) == [("b", "done"), ("c", "done"), ("a", "done")]
    assert order.read_text() == "bca"
    result = json.loads((tmp_path / "results" / "b.json").read_text())
    assert result["measured"] == {"said": 1}
    assert (result["device"], result["small"], result["machine"]) == ("cuda", False, MACHINE)
    assert not [path for path in (tmp_path / "results").iterdir() if path.name.startswith(".")]


def test_what_has_its_result_is_not_run_again(tmp_path: Path) -> None:
    run([step("a", "print(1)")], tmp_path)
    assert states(run([step("a", "raise SystemExit('ran again')")], tmp_path)) == [("a", "done")]
    assert Given(tmp_path).measured("a") == {"said": 1}


def test_a_rehearsal_and_a_measurement_do_not_share_a_folder(tmp_path: Path) -> None:
    run([step("a")], tmp_path)
    with pytest.raises(CheckError, match=r"was begun with .*'small': False.*choose another --out"):
        driver.run([step("a")], Given(tmp_path, small=True), {}, MACHINE)


# ---- Limit, resuming ----


def test_a_step_at_its_limit_is_interrupted_and_goes_on_in_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "LEAST_S", 0.0)
    long = counting("long", to=4, seconds=1.0)
    first = run([long, step("after")], tmp_path, limit_s=2.8)
    assert states(first) == [("long", "unfinished"), ("after", "done")]
    assert "goes on in the next call" in first[0].why
    kept = int((tmp_path / "work" / "long" / "kept").read_text())
    assert 1 <= kept < 4
    assert not (tmp_path / "results" / "long.json").exists()
    assert states(run([long], tmp_path, limit_s=60)) == [("long", "done")]
    assert Given(tmp_path).measured("long") == {"counted": 4, "firsts": "x"}  # its first command ran once
    said = [int(n) for n in printed(tmp_path / "work" / "long", "count").split()]
    assert said == list(range(kept + 1, 5))
    assert json.loads((tmp_path / "results" / "long.json").read_text())["seconds"] >= 4.0  # of both calls


def test_a_command_that_ignores_the_interruption_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "GRACE_S", 0.3)
    monkeypatch.setattr(driver, "LEAST_S", 0.0)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    started = time.monotonic()
    assert states(run([step("deaf", deaf)], tmp_path, limit_s=1.5)) == [("deaf", "unfinished")]
    assert time.monotonic() - started < 20


def test_no_step_begins_without_time_in_the_call(tmp_path: Path) -> None:
    outcomes = run([step("a")], tmp_path, call_s=driver.LEAST_S - 1)
    assert states(outcomes) == [("a", "unfinished")]
    assert not (tmp_path / "work" / "a").exists()


# ---- Failure, what is missing ----


def test_a_failure_is_said_and_stops_nothing(tmp_path: Path) -> None:
    unread = step("unread", "print('no number')")
    outcomes = run([step("bad", "raise SystemExit('error: no such thing')"), unread, step("good")], tmp_path)
    assert states(outcomes) == [("bad", "failed"), ("unread", "failed"), ("good", "done")]
    assert "'say' failed: error: no such thing" in outcomes[0].why
    assert "figures cannot be read: ValueError" in outcomes[1].why
    assert states(run([step("bad")], tmp_path)) == [("bad", "done")]  # tried again


def test_a_step_whose_needs_are_missing_is_skipped_by_name(tmp_path: Path) -> None:
    steps = [step("trains", needs=("torch", "cifar10")), step("serves", needs=("torch",))]
    outcomes = run(steps, tmp_path, missing={"cifar10": "cifar10 is not there."})
    assert states(outcomes) == [("trains", "skipped"), ("serves", "done")]
    assert outcomes[0].why == "cifar10 is not there."


def test_missing_data_are_named(tmp_path: Path) -> None:
    asked = {"cifar10", "cifar100"}
    assert "give --data DIR" in found.missing(Given(tmp_path), asked)["cifar10"]
    for path in ("cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/test_batch", "outliers/some.npy",
                 "ood/places_cifar100.npy", "near/cifar10.npy"):  # fmt: skip
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    lacking = found.missing(Given(tmp_path, data=tmp_path), asked)
    assert lacking["cifar10"] == f"cifar10 is not whole: --data {tmp_path} lacks {tmp_path / 'ood' / '*.npy'}."
    assert str(tmp_path / "cifar-100-python" / "train") in lacking["cifar100"]
    (tmp_path / "ood" / "scenes.npy").touch()
    (tmp_path / "ood" / "places_cifar10.npy").touch()
    assert "cifar10" not in found.missing(Given(tmp_path, data=tmp_path), asked)
    assert [path.name for path in found.ood(tmp_path, "cifar10")] == ["places_cifar10.npy", "scenes.npy"]
    assert [path.name for path in found.ood(tmp_path, "cifar100")] == ["places_cifar100.npy", "cifar10.npy"]


def test_a_missing_card_is_one_sentence_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert found.missing(Given(tmp_path), {"gpu"}) == {
        "gpu": "nvidia-smi is not on the path: install NVIDIA's driver, or rehearse with --device cpu --small."
    }
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'Failed to initialize NVML'\nexit 9\n")
    fake.chmod(0o755)
    assert "Failed to initialize NVML" in found.missing(Given(tmp_path), {"gpu"})["gpu"]
    fake.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200'\n")
    assert found.missing(Given(tmp_path), {"gpu"}) == {}


def test_without_cuda_both_runtimes_say_what_to_install(tmp_path: Path) -> None:
    if not found._fails("import torch; assert torch.cuda.is_available()"):
        pytest.skip("this machine has CUDA")
    lacking = found.missing(Given(tmp_path), {"torch", "onnxruntime"})
    assert "it sees no GPU" in lacking["torch"]
    pinned = next(line for line in found.PINNED.read_text().splitlines() if line.startswith("onnxruntime-gpu=="))
    assert pinned.split("==")[1] in lacking["onnxruntime"]


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found, "DISK_GB", 1e9)
    assert "GB are needed" in found.missing(Given(tmp_path / "new"), {"disk"})["disk"]


# ---- A kill ----

DRIVER = """
import sys, pathlib
from tests.gpu import test_driver as t
out = pathlib.Path(sys.argv[1])
t.run([t.counting('long', to=5, seconds=0.7)], out)
"""


def test_after_a_kill_nothing_runs_on_and_the_next_call_goes_on(tmp_path: Path) -> None:
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    work = tmp_path / "work" / "long"
    with subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], cwd=ROOT, env=environ) as process:
        until = time.monotonic() + 60
        while not (work / "kept").exists():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    before = int((work / "kept").read_text())
    assert before < 5
    assert not output(work, "count").exists()
    with driver._alone(tmp_path):  # the command was interrupted with its driver, and held the lock until then
        pass
    stopped = int((work / "kept").read_text())
    assert "interrupted; the run is kept" in (work / "log.txt").read_text()
    assert stopped < 5
    assert states(run([counting("long", to=5, seconds=0.01)], tmp_path)) == [("long", "done")]
    assert Given(tmp_path).measured("long") == {"counted": 5, "firsts": "x"}
    assert printed(work, "count").split()[0] == str(stopped + 1)


def test_two_checks_do_not_work_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "LOCK_WAIT_S", 0.3)
    with driver._alone(tmp_path), pytest.raises(CheckError, match="in use by another check"):
        run([step("a")], tmp_path)


def test_ctrl_c_ends_the_step_and_leaves_the_others(tmp_path: Path) -> None:
    interrupting = f"import os, signal, time; os.kill({os.getpid()}, signal.SIGINT); time.sleep(60)"
    outcomes = run([step("a", interrupting), step("b")], tmp_path)
    assert states(outcomes) == [("a", "unfinished"), ("b", "unfinished")]
    assert outcomes[1].why == "stopped before it began"


# ---- The command ----


def main(tmp_path: Path, steps: list[Step], *arguments: str) -> int:
    fixed = ["--out", str(tmp_path), "--device", "cpu", "--small", *arguments]
    return check.main(fixed, tuple(steps))


def test_exit_codes_say_done_failed_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [step("good", "print(1.5)"), step("bad", "raise SystemExit('error: a | b')")]
    steps[0] = Step("good", "", "", (), steps[0].commands, lambda given, work: {"figure, s": 1.5, "raw": {"not": 1}})
    assert main(tmp_path, steps) == 1
    table = capsys.readouterr().out
    assert "| good | done |" in table
    assert "| good | figure, s | 1.5 |" in table
    assert "error: a \\| b" in table
    assert "raw" not in table
    assert "A rehearsal" in table
    assert (tmp_path / "SUMMARY.md").read_text() in table
    assert main(tmp_path, steps, "--steps", "good") == 0
    assert main(tmp_path, [step("late")], "--call-minutes", "0.01") == 3


def test_steps_are_named_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tmp_path, [step("a")], "--steps", "b,a") == 1
    assert "--steps b: there is no such step; there are a" in capsys.readouterr().err
    assert [s.name for s in check.chosen("c, a", (step("a"), step("b"), step("c")))] == ["a", "c"]
    assert check.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(f"| {s.name} | {s.worth} | {s.expected} |" in listed for s in STEPS)


def test_the_table_of_nothing(tmp_path: Path) -> None:
    assert "# GPU check" in summary.markdown([], Given(tmp_path))
