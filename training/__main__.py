"""The commands: python -m training train | evaluate | table | calibrate | export | pareto | methods | audit | bench."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliPositionalArg,
    CliSubCommand,
    PydanticBaseSettingsSource,
    SettingsError,
)

from service.contract.bundle import BundleError
from training.config import PYTHON_M, Config, options, program
from training.finished import Calibrate, Evaluate, Export, Pareto


class Train(Config):
    """Train stage 1, and stage 2 where the method has one, into a folder."""

    out: Path | None = None
    """Folder of the run; not given: runs/<dataset>-<method>-w<width>-s<seed>."""
    resume: bool = False
    """Go on from the checkpoint in --out, with the settings it holds."""

    def cli_cmd(self) -> None:
        from training import trainer
        from training.runs import checkpoint

        given = Config.model_validate(self.model_dump(exclude={"out", "resume"}))
        out = self.out or Path("runs") / f"{self.dataset}-{self.method}-w{self.width}-s{self.seed}"
        if self.resume:
            kept = Config.model_validate(checkpoint.load(out)["config"])
            here = {k: getattr(given, k) for k in self.model_fields_set & checkpoint.MACHINE_KEYS}
            for key in self.model_fields_set - checkpoint.MACHINE_KEYS - {"out", "resume"}:
                if getattr(given, key) != getattr(kept, key):
                    raise ValueError(
                        f"--resume keeps the run's {key} {getattr(kept, key)!r}; {getattr(given, key)!r} was given"
                    )
            given = kept.model_copy(update=here)
        try:
            trainer.train(given, out, resume=self.resume)
        except trainer.Interrupted:
            sys.exit(f"interrupted; the run is kept: {program()} train --out {out} --resume")
        print(f"trained: {out}")


class Table(BaseModel):
    """Train what a table lacks, then print it and write it with its pictures: <out>/<name>.md, .csv, .html and .png."""

    name: CliPositionalArg[str]
    """comparison, ablation, per-set, balance or long-tail."""
    budget: Literal["full", "small"] = "small"
    """full: ResNet-18, 200 epochs, PASCL's recipe. small: width 16, 12 epochs, hours on two CPU cores."""
    seeds: Annotated[int, Field(ge=1)] = 1
    """Seeds per row; in the small budget of MSP, OE, PASCL and TailGuard, the others have one."""
    out: Path = Path("runs/tables")
    """Runs go to <out>/runs, where another table finds them again."""
    dataset: Literal["cifar10", "cifar100", "folder", "digits"] = "cifar10"
    data: Path | None = None
    """As in `train`, as are imbalance, outliers, image_size_px and device."""
    imbalance: Annotated[float, Field(gt=1)] = 100
    outliers: Path | None = None
    image_size_px: int | None = None
    device: str = "auto"
    ood: list[Path] = []
    """OOD test sets, as in `evaluate`."""
    width: int | None = None
    """Replaces the budget's, as do epochs and batch_images."""
    epochs: int | None = None
    batch_images: int | None = None
    at_once: Annotated[int, Field(ge=1)] = 1
    """Runs trained side by side on the device; one CIFAR run does not fill a large GPU, or two cores."""
    threads: int | None = None
    """CPU threads per run; not given: the cores shared out."""
    results: Path | None = None
    """Also write each run's result, without paths, to this folder."""
    render_only: bool = False
    """Train nothing: print what the finished runs say."""

    def cli_cmd(self) -> None:
        from training import tables
        from training.evaluation import evaluate
        from training.runs import several as runs
        from training.tables.compact import compact

        table = tables.find(self.name)
        self._require_data(table)
        jobs = [job for imbalance in table.imbalances for job in self._jobs(table, imbalance)]
        if not self.render_only:
            threads = self.threads or max(1, (os.cpu_count() or 1) // self.at_once)
            try:
                runs.run(jobs, self.ood, at_once=self.at_once, threads=threads)
            except runs.Interrupted:
                sys.exit("interrupted; what was trained is kept: give the same command again to go on")
        found = runs.results(jobs, self.budget)
        print(tables.write(self.name, found, runs.outputs(jobs), self.out))
        if self.results:
            self.results.mkdir(parents=True, exist_ok=True)
            for job, result in zip([j for j in jobs if j.done], found, strict=True):
                evaluate.write_json(self.results / f"{job.folder.name}.json", compact(result))

    def _require_data(self, table: Any) -> None:
        """ValueError before anything is trained when the table's runs would lack data."""
        from training.methods.methods import find

        if self.dataset == "digits":  # brings its own outliers and OOD set
            return
        if self.data is None:
            raise ValueError(f"--dataset {self.dataset} needs --data DIR")
        if self.outliers is None and (names := [n.method for n in table.needs if find(n.method).needs_outliers]):
            raise ValueError(f"table {self.name} trains {', '.join(dict.fromkeys(names))} on outliers: give --outliers")
        if not self.ood and table.on_ood:
            raise ValueError(
                f"table {self.name} measures OOD detection: give --ood, an array or a folder, once or more"
            )

    def _jobs(self, table: Any, imbalance: float) -> list[Any]:
        """The runs that the table needs on data of this imbalance."""
        from training.runs import several as runs

        balanced = imbalance <= 1
        settings: dict[str, Any] = {"imbalance": 1 if balanced else self.imbalance} | runs.BUDGETS[self.budget]
        if balanced:
            settings["epochs"] = runs.BALANCED_EPOCHS[self.budget]
        settings |= {k: v for k in ("width", "epochs", "batch_images") if (v := getattr(self, k)) is not None}
        settings |= {k: getattr(self, k) for k in ("dataset", "data", "outliers", "image_size_px", "device")}
        base = Config(**settings, views=table.views)
        methods = [need.method for need in table.needs if need.imbalance == imbalance]
        return runs.plan(base, methods, self.seeds, self.budget, self.out)


class Methods(BaseModel):
    """The methods there are, and the parts they are made of."""

    def cli_cmd(self) -> None:
        from training.methods.methods import screen

        print(screen())


class Audit(BaseModel):
    """The look before training: counts, duplicates, what the tail can support, and a recommended command."""

    data: CliPositionalArg[Path]
    """CIFAR's python files, or a folder with train/<class>/*, test/<class>/* and perhaps val, outliers and ood."""
    imbalance: Annotated[float | None, Field(ge=1)] = None
    """Look at the long-tail cut with this ratio."""
    outliers: Path | None = None
    """Training outliers, as in `train`."""
    ood: list[Path] = []
    """OOD test sets, as in `evaluate`."""
    image_size_px: Annotated[int, Field(ge=8)] = 32
    plot: Path | None = None
    """Write a picture of the counts to this PNG."""
    json_file: Path | None = None
    """Write the whole report to this file too."""

    def cli_cmd(self) -> None:
        from training import audit
        from training.evaluation import evaluate

        report = audit.audit(
            self.data, imbalance=self.imbalance, outliers=self.outliers, ood=self.ood, size_px=self.image_size_px
        )
        print(audit.render(report))
        if self.plot:
            audit.plot(report, self.plot)
        if self.json_file:
            evaluate.write_json(self.json_file, report.model_dump(mode="json"))


class Bench(BaseModel):
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


class Command(BaseSettings, cli_kebab_case=True, cli_implicit_flags=True,
              cli_use_class_docs_for_groups=True, use_attribute_docstrings=True):  # fmt: skip
    """TailGuard's offline side: images → bundle."""

    train: CliSubCommand[Train]
    evaluate: CliSubCommand[Evaluate]
    table: CliSubCommand[Table]
    calibrate: CliSubCommand[Calibrate]
    export: CliSubCommand[Export]
    pareto: CliSubCommand[Pareto]
    methods: CliSubCommand[Methods]
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


def main(arguments: list[str] | None = None, prog: str = PYTHON_M) -> None:
    """Run one command. Exits with one line where it is refused; `prog` is how it was called, for its help."""
    Command.model_config["cli_prog_name"] = prog
    try:
        CliApp.run(Command, arguments)
    except ValidationError as error:
        sys.exit(
            "\n".join(f"--{'.'.join(map(str, e['loc'][1:])).replace('_', '-')}: {e['msg']}" for e in error.errors())
        )
    except (SettingsError, BundleError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
