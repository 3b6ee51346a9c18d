"""What a step is: commands that exist, one after another, and what is read from the things they printed and wrote."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Json = dict[str, Any]
LIMIT_S = 540.0  # of a step in one call


@dataclass(frozen=True)
class Given:
    """The options that shape the steps. `data`: the folder that holds CIFAR, outliers and OOD sets; `weights`: files of
    pretrained weights by the name of the model; `small`: the rehearsal, which measures nothing of worth."""

    out: Path
    device: str = "cuda"
    small: bool = False
    data: Path | None = None
    weights: dict[str, Path] = field(default_factory=dict)

    def result(self, step: str) -> Path:
        return self.out / "results" / f"{step}.json"

    def work(self, step: str) -> Path:
        return self.out / "work" / step

    def measured(self, step: str) -> Json:
        """What a finished step found; empty where it is not finished."""
        path = self.result(step)
        return json.loads(path.read_text(encoding="utf-8"))["measured"] if path.is_file() else {}


@dataclass(frozen=True)
class Command:
    """One command of a step; its standard output is kept under `name`. `made`: a file that says that it is done, for
    commands that refuse to do their work twice."""

    name: str
    argv: list[str]
    environ: dict[str, str] = field(default_factory=dict)
    made: Path | None = None


@dataclass(frozen=True)
class Step:
    """`commands` are asked for when the step begins or goes on, so that a command with a checkpoint can resume it.

    `figures` reads the folder of the step and gives what its line in the summary says, each with its unit in the name;
    `needs` are names of found.py.
    """

    name: str
    worth: str
    expected: str
    needs: tuple[str, ...]
    commands: Callable[[Given, Path], list[Command]]
    figures: Callable[[Given, Path], Json]


def printed(work: Path, command: str) -> str:
    """What a finished command of the step printed."""
    return output(work, command).read_text(encoding="utf-8")


def output(work: Path, command: str) -> Path:
    return work / f"{command}.out"


def write(path: Path, text: str) -> None:
    """The whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = path.with_name(f".{path.name}.{os.getpid()}")
    begun.write_text(text, encoding="utf-8")
    os.replace(begun, path)
