"""The commands: python -m training train | evaluate | calibrate | export | pareto | methods | bench."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliPositionalArg,
    CliSubCommand,
    PydanticBaseSettingsSource,
    SettingsError,
)

from service.bundle import BundleError
from training.config import Config
from training.methods import METHODS

RESULTS_FILE, CALIBRATION_FILE = "results.json", "calibration.json"


class Train(Config):
    """Train stage 1, and stage 2 where the method has one, into a folder."""

    out: Path | None = None
    """Folder of the run; not given: runs/<dataset>-<method>-w<width>-s<seed>."""
    resume: bool = False
    """Go on from the checkpoint in --out, with the settings it holds."""

    def cli_cmd(self) -> None:
        from training import checkpoint, trainer

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
            sys.exit(f"interrupted; the run is kept: python -m training train --out {out} --resume")
        print(f"trained: {out}")


class OnRun(BaseModel):
    run: CliPositionalArg[Path]
    """Folder of a finished run."""
    ood: list[Path] = []
    """OOD test sets: an array, a folder of images or a folder of arrays, may be repeated; not given: the last ones."""
    score: str | None = None
    """Which score decides; not given: the method's."""

    def prepare(self) -> tuple[Any, Any, dict[str, Any], str]:
        """(run, data, OOD sets, deciding score)."""
        from training import checkpoint, data
        from training.scores import SCORES

        run = checkpoint.trained(self.run)
        loaded = data.load(run.config)
        checkpoint.require_same_data(self.run, list(run.classes), run.train_counts, loaded)
        paths = self.ood
        if not paths and (self.run / RESULTS_FILE).is_file():
            paths = [Path(p) for p in json.loads((self.run / RESULTS_FILE).read_text())["ood_paths"]]
        self._paths = [str(p.resolve()) for p in paths]
        score = self.score or run.method.score
        if score not in SCORES:
            raise ValueError(f"--score {score!r} is none of {', '.join(SCORES)}")
        return run, loaded, {**loaded.ood, **data.ood_sets(paths, loaded.size_px)}, score

    def best_device(self) -> torch.device:
        from training.trainer import find_device

        return find_device("auto")

    _paths: list[str] = []


class Evaluate(OnRun):
    """Every metric on the test images and OOD sets, into results.json."""

    def cli_cmd(self) -> None:
        from training import checkpoint, evaluate, predict

        run, data, ood, score = self.prepare()
        predictor = predict.torch_predict(predict.deployed(run), self.best_device())
        results = evaluate.evaluate(predictor, data.test, ood, run.train_counts, score)[0]
        made_by = checkpoint.provenance() | {"training": run.provenance}
        identity = {"method": run.config.method, "seed": run.config.seed, "config": run.config.model_dump(mode="json")}
        evaluate.write_json(
            self.run / RESULTS_FILE, identity | results | {"ood_paths": self._paths, "provenance": made_by}
        )
        print(summary(results))


class Calibrate(OnRun):
    """Temperature, operating points and their cost, into calibration.json; never from test images."""

    def cli_cmd(self) -> None:
        from training import calibrate, checkpoint, evaluate, measure, predict

        run, data, ood, score = self.prepare()
        device = self.best_device()
        plain = predict.torch_predict(predict.deployed(run), device)
        if len(data.calibration.labels) == 0:
            raise ValueError("there are no calibration images: train with --calibration-fraction above 0")
        temperature = calibrate.fit_temperature(plain(data.calibration.images).probabilities, data.calibration.labels)
        scaled = predict.torch_predict(predict.deployed(run, temperature), device)
        measured = measure.measure(scaled, data, ood, score=score, temperature=temperature, scope="group")
        record = {"score": score, "temperature": temperature, **measured, "provenance": checkpoint.provenance()}
        evaluate.write_json(self.run / CALIBRATION_FILE, evaluate.jsonable(record))
        print(f"temperature {temperature:.3f}, deciding score {score}")
        for name, point in measured["operating_points"].items():
            for kind in ("global", "group"):
                print(f"{name} {kind}: {share_line(point[f'{kind}_cost'])}")


class Export(OnRun):
    """One ONNX graph with its thresholds, as a bundle <out>/<name>/<version>."""

    out: Path = Path("models")
    name: str | None = None
    """Name of the bundle; not given: the data set's."""
    version: str = "1"
    precision: Literal["fp32", "int8"] = "int8"
    examples: Path | None = None
    """Folder of image files that travel in the bundle and are checked at load; not given: drawn ones."""
    candidates: Path | None = None
    """JSON written by `pareto`, to be shown in the card."""

    def cli_cmd(self) -> None:
        from training import export, readers

        run, data, ood, _ = self.prepare()
        calibration = calibrated(self.run)
        target = self.out / (self.name or run.config.dataset) / self.version
        rows = json.loads(self.candidates.read_text()) if self.candidates else None
        images = {p.name: p.read_bytes() for p in readers.image_files(self.examples)} if self.examples else None
        manifest = export.export(
            run, data, ood, calibration, target, precision=self.precision, candidates=rows, example_images=images
        )
        size = sum(p.stat().st_size for p in target.rglob("*") if p.is_file())
        print(f"{target}: {manifest.precision}, {size / 1e6:.2f} MB\n{summary(manifest.evaluation)}")


class Pareto(BaseModel):
    """Compare runs by size, speed and quality on the calibration split, to choose what ships."""

    runs: CliPositionalArg[list[Path]]
    out: Path = Path("pareto.json")

    def cli_cmd(self) -> None:
        from training import evaluate, pareto

        rows = [pareto.candidate(run, calibrated(run)) for run in self.runs]
        evaluate.write_json(self.out, rows)  # type: ignore[arg-type]
        print(pareto.table(rows))


class Methods(BaseModel):
    """The methods there are."""

    def cli_cmd(self) -> None:
        for name, m in METHODS.items():
            second = f"{m.stage2.passes} passes" if m.stage2 else "1 pass"
            print(f"{name:16} {'outliers' if m.needs_outliers else 'no outliers':12} {second:9} {m.score:8} {m.paper}")


class Bench(BaseModel):
    """The trainer's images/s against a bare loop's, measured in one run."""

    width: int = 64
    batch_images: int = 64
    """In-distribution images per step, as in `train`: a step is three times as many."""
    device: str = "auto"
    threads: int | None = None
    steps: Annotated[int, Field(ge=1)] = 2
    rounds: Annotated[int, Field(ge=1)] = 3

    def cli_cmd(self) -> None:
        from training import bench

        kept = self.model_dump(include={"width", "batch_images", "device", "threads"})
        print(json.dumps(bench.bench(Config(**kept), steps=self.steps, rounds=self.rounds)))


def calibrated(run: Path) -> dict[str, Any]:
    path = run / CALIBRATION_FILE
    if not path.is_file():
        raise ValueError(f"{path} does not exist: python -m training calibrate {run}")
    content = json.loads(path.read_text())
    assert isinstance(content, dict)
    return content


def summary(results: dict[str, Any]) -> str:
    """The headline: a line for accuracy and one per OOD set."""
    by_group = ", ".join(f"{g} {v:.1%}" for g, v in results["group_accuracy"].items() if v is not None)
    lines = [f"accuracy {results['accuracy']:.2%} ({by_group}) on {results['images']} images"]
    rows = results["ood"] | ({"mean": results["mean"]} if "mean" in results else {})
    width = max(map(len, rows), default=0)
    lines += [
        f"{n:{width}}  AUROC {r['auroc']:.2%}  AUPR {r['aupr']:.2%}  FPR95 {r['fpr95']:.2%}" for n, r in rows.items()
    ]
    return "\n".join(lines)


def share_line(cost: dict[str, Any]) -> str:
    parts = []
    for where, c in cost.items():
        caught = "" if c["outliers_caught"] is None else f", catches {c['outliers_caught']:.1%} of outliers"
        parts.append(f"{where} rejects {c['id_rejected']:.1%} of in-distribution images{caught}")
    return "; ".join(parts)


class Command(BaseSettings, cli_prog_name="python -m training", cli_kebab_case=True, cli_implicit_flags=True,
              cli_use_class_docs_for_groups=True, use_attribute_docstrings=True):  # fmt: skip
    """TailGuard's offline side: images → bundle."""

    train: CliSubCommand[Train]
    evaluate: CliSubCommand[Evaluate]
    calibrate: CliSubCommand[Calibrate]
    export: CliSubCommand[Export]
    pareto: CliSubCommand[Pareto]
    methods: CliSubCommand[Methods]
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


def main() -> None:
    try:
        CliApp.run(Command)
    except ValidationError as error:
        sys.exit(
            "\n".join(f"--{'.'.join(map(str, e['loc'][1:])).replace('_', '-')}: {e['msg']}" for e in error.errors())
        )
    except (SettingsError, BundleError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
