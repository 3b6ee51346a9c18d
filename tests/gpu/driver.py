"""The steps one after another: what is done is skipped, what was interrupted goes on, what fails stops nothing else."""

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from service.errors import TailGuardError
from tests.gpu import running
from tests.gpu.step import LIMIT_S, Given, Json, Step, output, write
from training.runs.signals import StopRequest, on_stop

LEAST_S = 20.0  # a step that would have less is left to the next call
LOCK_WAIT_S = running.GRACE_S + 5

State = Literal["done", "unfinished", "failed", "skipped"]


class CheckError(TailGuardError):
    """The check cannot be made as it was asked for."""


@dataclass(frozen=True)
class Outcome:
    """What became of a step in this call; `why` in one sentence, empty where it is done."""

    step: Step
    state: State
    why: str = ""


def run(
    steps: Sequence[Step], given: Given, missing: Mapping[str, str], machine: Json, *,
    limit_s: float = LIMIT_S, call_s: float | None = None,
) -> list[Outcome]:  # fmt: skip
    """Go through `steps` in their order. `missing`: by the name of what a step may need, why it is not there;
    `machine` goes into every result; `limit_s` bounds each step, `call_s` the whole call.

    Raises CheckError where the output folder is in use, or was filled with other settings.
    """
    until = None if call_s is None else time.monotonic() + call_s
    found = []
    with _alone(given.out) as lock:
        _require_same(given)
        stop = StopRequest()
        with on_stop(lambda number, frame: setattr(stop, "requested", True)):
            for step in steps:
                left = limit_s if until is None else min(limit_s, until - time.monotonic())
                outcome = _outcome(step, given, missing, machine, left, stop, lock.fileno())
                print(f"{step.name}: {outcome.state}{outcome.why and f', {outcome.why}'}", file=sys.stderr, flush=True)
                found.append(outcome)
    return found


def _outcome(
    step: Step, given: Given, missing: Mapping[str, str], machine: Json, left: float, stop: StopRequest, lock: int
) -> Outcome:
    if given.result(step.name).is_file():
        return Outcome(step, "done")
    if lacking := [missing[name] for name in step.needs if name in missing]:
        return Outcome(step, "skipped", " ".join(lacking))
    if stop.requested:
        return Outcome(step, "unfinished", "stopped before it began")
    if left < LEAST_S:
        return Outcome(step, "unfinished", "no time was left in this call")
    return _work(step, given, machine, left, lambda: stop.requested, lock)


def _work(step: Step, given: Given, machine: Json, limit_s: float, stopping: Callable[[], bool], lock: int) -> Outcome:
    """Its commands as far as they are not done, then its figures."""
    work = given.work(step.name)
    work.mkdir(parents=True, exist_ok=True)
    print(
        f"{step.name}: {step.worth} (expected: {step.expected}; log: {work / 'log.txt'})", file=sys.stderr, flush=True
    )
    started, before = time.monotonic(), _spent(work)
    for command in step.commands(given, work):
        if output(work, command.name).is_file():
            continue
        if command.made and command.made.exists():
            write(output(work, command.name), "")
            continue
        end = running.run(command, work, limit_s - (time.monotonic() - started), stopping, lock)
        spent = before + time.monotonic() - started
        write(work / "spent.json", json.dumps({"seconds": spent}))
        if end == "interrupted":
            return Outcome(step, "unfinished", f"interrupted in {command.name!r}, goes on in the next call")
        if end == "failed":
            return Outcome(step, "failed", f"{command.name!r} failed: {_last_line(work / 'log.txt')}")
    try:
        figures = step.figures(given, work)
    except Exception as error:  # of one step, whatever it read; the others go on
        return Outcome(step, "failed", f"its figures cannot be read: {type(error).__name__}: {error}")
    kept = {
        "step": step.name, "worth": step.worth, "device": given.device, "small": given.small, "machine": machine,
        "seconds": round(_spent(work), 1), "load_average_after": round(os.getloadavg()[0], 2), "measured": figures,
    }  # fmt: skip
    write(given.result(step.name), json.dumps(kept, indent=1) + "\n")
    return Outcome(step, "done")


def _spent(work: Path) -> float:
    """Seconds of earlier calls; one that was killed counts up to its last finished command."""
    path = work / "spent.json"
    return float(json.loads(path.read_text())["seconds"]) if path.is_file() else 0.0


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        lines = file.read().decode(errors="replace").replace("\r", "\n").strip().split("\n")
    return f"{lines[-1].strip()[:300]} (see {log})"


@contextmanager
def _alone(out: Path) -> Any:
    """The lock of the folder. A command of a call that was killed holds it until its checkpoint is written."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("a") as lock:
        until = time.monotonic() + LOCK_WAIT_S
        while not _locked(lock):
            if time.monotonic() > until:
                raise CheckError(f"--out {out} is in use by another check: wait for it, or choose another --out")
            time.sleep(0.2)
        yield lock


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _require_same(given: Given) -> None:
    """A rehearsal and a measurement never share a folder."""
    path, now = given.out / "given.json", {"device": given.device, "small": given.small}
    if path.is_file() and (then := json.loads(path.read_text())) != now:
        raise CheckError(f"--out {given.out} was begun with {then}, not {now}: choose another --out, or remove it")
    write(path, json.dumps(now))
