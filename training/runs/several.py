"""Runs trained and evaluated several at once, each in a process of its own, those that are finished skipped.

A run is finished when its results.json is there; a checkpoint without one is resumed; a second stage starts from the
finished stage 1 of another run, so that no stage is trained twice. Where another process trains a run, it is waited
for: a table that is killed, or whose terminal is closed, leaves its runs training.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from service.contract.progress import EVERY, Progress
from training.config import HEAD_SCHEDULE, Config, options
from training.methods.methods import NONE, find
from training.runs import checkpoint
from training.runs.checkpoint import CHECKPOINT_FILE, MACHINE_KEYS
from training.runs.files import LOG_FILE, RESULTS_FILE
from training.runs.signals import on_stop
from training.runs.steps import at_work

POLL_SECONDS = 0.5
WATCHED_S = "5"  # between the lines of a run's progress in its log, while somebody watches them on a terminal
TAIL_BYTES = 2000  # of a log, which hold its last line
STAGE_BAR = re.compile(r"stage([12]): +(\d+)%")


class Interrupted(Exception):
    """Ctrl-C or TERM: every run was asked to write its checkpoint."""


@dataclass(frozen=True)
class Job:
    """One run: its settings, its folder, and the folder whose finished stage 1 it takes."""

    config: Config
    folder: Path
    after: Path | None

    @property
    def done(self) -> bool:
        return (self.folder / RESULTS_FILE).is_file()


def require_same_settings(job: Job) -> None:
    """ValueError when the folder of a job holds a run, finished or not, with other settings."""
    if job.done:
        kept = Config.model_validate(json.loads((job.folder / RESULTS_FILE).read_text())["config"])
    elif (job.folder / CHECKPOINT_FILE).is_file():
        kept = Config.model_validate(checkpoint.load(job.folder)["config"])
    else:
        return
    free = {*MACHINE_KEYS, "data", "stage1_from"}
    if find(job.config.method).stage2 == NONE:
        free |= {"stage2_epochs", "stage2_batch_images", "stage2_learning_rate"}
    derived = ("stage2_epochs", "stage2_batch_images")  # by the trainer, where they are not given
    free |= {key for key in derived if getattr(job.config, key) is None}
    if job.config.frozen:
        free |= {"feature_cache", *(set(HEAD_SCHEDULE) - job.config.model_fields_set)}
        free |= {"image_size_px"} if job.config.image_size_px is None else set()
    one, two = (
        c.model_dump(exclude=free) | {key: path.name for key in ("outliers", "weights") if (path := getattr(c, key))}
        for c in (kept, job.config)
    )  # fmt: skip
    if differ := [f"{k} {one[k]!r} instead of {two[k]!r}" for k in one if one[k] != two[k]]:
        raise ValueError(f"{job.folder} holds a run with {', '.join(differ)}: choose another --out, or remove it")


def commands(job: Job, ood: Sequence[Path], threads: int | None) -> list[list[str]]:
    """Train (or resume), then evaluate."""
    start = [sys.executable, "-m", "training"]
    on = ["--on", job.config.on] if job.config.on != "here" else []
    threading = [*on, *(["--threads", str(threads)] if threads else [])]
    if (job.folder / CHECKPOINT_FILE).is_file():
        train = ["--out", str(job.folder), "--resume"]
    else:
        given = job.config.model_dump(mode="json", exclude={"threads", "on"}, exclude_defaults=True)
        if job.config.frozen:  # what is not given is derived, and what is given may be what is the default elsewhere
            given |= {key: getattr(job.config, key) for key in HEAD_SCHEDULE if key in job.config.model_fields_set}
        train = [*options(given), "--out", str(job.folder)]
    sets = [part for path in ood for part in ("--ood", str(path.resolve()))]
    return [[*start, "train", *train, *threading], [*start, "evaluate", str(job.folder), *on, *sets]]


def run(jobs: Sequence[Job], ood: Sequence[Path], *, at_once: int = 1, threads: int | None = None) -> None:
    """Train and evaluate what is missing, `at_once` runs side by side.

    Raises ValueError when a run failed (the others are finished first), Interrupted on Ctrl-C or TERM.
    """
    for job in jobs:
        require_same_settings(job)
    waiting = [job for job in jobs if not job.done]
    running: dict[Job, _Process] = {}
    failed: list[str] = []
    asked_to_stop: list[int] = []
    done = finished = len(jobs) - len(waiting)
    begun: dict[Job, float] = {}  # with which share each run began
    with on_stop(lambda number, frame: asked_to_stop.append(number)), Progress(
        total=len(jobs), initial=finished, unit="run", dynamic_ncols=True
    ) as bar:  # fmt: skip
        while waiting or running:
            held = [j for j in waiting if at_work(j.folder)]  # by what a killed table left running, or another table
            ready = [j for j in waiting if j not in held and (j.after is None or (j.after / RESULTS_FILE).is_file())]
            for job in ready[: max(0, at_once - len(running) - len(held))]:
                waiting.remove(job)
                running[job] = _Process(job, commands(job, ood, threads))
            if not running and not held:  # every job left depends on one that failed
                break
            time.sleep(POLL_SECONDS)
            for job in [job for job, process in running.items() if process.finished()]:
                del running[job]
                if not job.done:
                    failed.append(f"{job.folder.name}: see {job.folder / LOG_FILE}")
                done += 1
            others = [f"waiting for the process that is at work in {job.folder}" for job in held]
            said = "; ".join([*(process.last_line() for process in running.values()), *others])
            begun |= {job: p.share for job, p in running.items() if p.share is not None and job not in begun}
            bar.initial = finished + sum(begun.values())  # what a resumed run had done tells nothing about the speed
            bar.n = round(done + sum(p.share or 0 for p in running.values()), 2)
            bar.set_postfix_str(said)
            if asked_to_stop:
                for process in running.values():
                    process.stop()
                raise Interrupted
    failed += [f"{job.folder.name}: waits for {job.after}" for job in waiting]
    if failed:
        raise ValueError("these runs failed:\n" + "\n".join(failed))


class _Process:
    """Runs the commands of one job one after another and appends their output to its log file.

    `share`: how much of its training is done, 0 to 1, by the last bar that `last_line` met; None before the first.
    """

    def __init__(self, job: Job, steps: list[list[str]]) -> None:
        job.folder.mkdir(parents=True, exist_ok=True)
        self.job, self.steps = job, steps
        self.path = job.folder / LOG_FILE
        self.begins = self.path.stat().st_size if self.path.exists() else 0  # before it, what was interrupted
        self.share: float | None = None
        self.stages = 2 if job.after is None and find(job.config.method).stage2 != NONE else 1
        self._next()

    def _next(self) -> None:
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        if sys.stderr.isatty():
            environment.setdefault(EVERY, WATCHED_S)
        with self.path.open("ab") as log:  # its own session: Ctrl-C reaches it through stop() alone
            self.process = subprocess.Popen(
                self.steps.pop(0), stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def finished(self) -> bool:
        if self.process.poll() is None:
            return False
        if self.process.returncode == 0 and self.steps:
            self._next()
            return False
        return True

    def last_line(self) -> str:
        """The method and its progress, from the last progress bar in the log."""
        with self.path.open("rb") as log:
            log.seek(max(self.begins, self.path.stat().st_size - TAIL_BYTES))
            tail = log.read().decode(errors="replace").replace("\r", "\n")
        if bars := STAGE_BAR.findall(tail):
            stage, percent = bars[-1]
            before = int(stage) - 1 if self.stages == 2 else 0
            self.share = (before + int(percent) / 100) / self.stages
        return f"{self.job.config.method} {tail.strip().split(chr(10))[-1].split('|')[0].strip()[:30]}"

    def stop(self) -> None:
        """Ask for a checkpoint and wait for it."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait()
