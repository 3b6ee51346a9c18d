"""Runs side by side: `table` trains what a table lacks and writes it; `pareto` compares to choose what ships."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field
from pydantic_settings import CliPositionalArg

from training.config import CIFAR_RESNET, RGB, Config, Tune
from training.finished import OnRun, calibrated
from training.runs.files import write_json

RESULTS = Path(__file__).parent / "results"


class Table(BaseModel, use_attribute_docstrings=True):
    """Train what a table lacks, then print it and write it with its pictures: <out>/<name>.md, .csv, .html and .png."""

    REPLACING: ClassVar[tuple[str, ...]] = (
        "width", "epochs", "batch_images", "stage2_batch_images", "augment", "calibration_fraction",
    )  # fmt: skip
    PASSED: ClassVar[tuple[str, ...]] = (
        "backbone", "weights", "tune", "backbone_precision", "backbone_stages", "backbone_fit", "backbone_mean",
        "backbone_std", "backbone_layout", "feature_views", "learning_rate", "on",
    )  # fmt: skip

    name: CliPositionalArg[str]
    """comparison, ablation, per-set, balance, long-tail, or pretrained, which joins data sets and backbones."""
    budget: Literal["full", "small"] = "small"
    """full: ResNet-18, 200 epochs, PASCL's recipe. small: width 16, 12 epochs, hours on two CPU cores. A pretrained
    backbone has its own recipe in both, that of `train`."""
    methods: list[str] = []
    """Train these rows alone, msp,oe say; the others are shown where an earlier call finished them."""
    seeds: Annotated[int, Field(ge=1)] = 1
    """Seeds per row; in the small budget of MSP, OE, PASCL and TailGuard, the others have one."""
    out: Path = Path("runs/tables")
    """Runs go to <out>/runs, where another table finds them again."""
    dataset: Literal["cifar10", "cifar100", "folder", "digits"] = "cifar10"
    data: Path | None = None
    """As in `train`, as are outliers, image_size_px, augment, calibration_fraction and device."""
    imbalance: Annotated[float | None, Field(gt=1)] = None
    """Cut the training set to this tail; not given: 100 for the CIFARs, as published, and none for other data."""
    outliers: Path | None = None
    image_size_px: int | None = None
    augment: Literal["none", "flip", "crop", "paper", "photo"] | None = None
    calibration_fraction: float | None = None
    device: str = "auto"
    backbone: str = CIFAR_RESNET
    """The backbone of every run, as in `train`, as are the next ones."""
    weights: Path | None = None
    tune: Tune | None = None
    backbone_precision: Literal["fp32", "int8"] | None = None
    backbone_stages: bool = False
    backbone_fit: Literal["crop", "square", "stretch"] | None = None
    backbone_mean: RGB | None = None
    backbone_std: RGB | None = None
    backbone_layout: Literal["NCHW", "NHWC"] | None = None
    feature_views: int | None = None
    learning_rate: float | None = None
    feature_cache: Path | None = None
    """Features that the runs share; not given: <out>/features."""
    on: Literal["here", "ray"] = "here"
    """Who computes them, as in `train`."""
    ood: list[Path] = []
    """OOD test sets, as in `evaluate`."""
    width: int | None = None
    """Replaces the budget's, as do epochs and the batches of both stages."""
    epochs: int | None = None
    batch_images: int | None = None
    stage2_batch_images: int | None = None
    at_once: Annotated[int, Field(ge=1)] = 1
    """Runs trained side by side on the device; one CIFAR run does not fill a large GPU, or two cores."""
    threads: int | None = None
    """CPU threads per run; not given: the cores shared out."""
    results: Path | None = None
    """Also write each run's result, without paths, to this folder. The table pretrained joins those that lie there;
    not given, those in the project's training/results."""
    mlflow: str | None = None
    """Also send each finished run to this MLflow, sqlite:///mlflow.db or http://host:5000 say; each is there once."""
    tensorboard: Path | None = None
    """Also write each finished run as a folder of events into this one, for TensorBoard."""
    render_only: bool = False
    """Train nothing: print what the finished runs say."""

    def cli_cmd(self) -> None:
        from training import tables, tracking
        from training.runs import several
        from training.runs.files import write_json
        from training.tables import jobs as planned
        from training.tables.compact import compact

        table = tables.find(self.name)
        self._require_data(table)
        tracking.require(self.mlflow, self.tensorboard, self.out / "runs")
        jobs = [job for imbalance in table.imbalances for job in self._jobs(table, imbalance)]
        if not self.render_only:
            trained = [job for i in table.imbalances for job in self._jobs(table, i, self.methods)]
            threads = self.threads or max(1, (os.cpu_count() or 1) // self.at_once)
            try:
                several.run(trained, self.ood, at_once=self.at_once, threads=threads)
            except several.Interrupted:
                sys.exit("interrupted; what was trained is kept: give the same command again to go on")
        results = planned.results(jobs, self.budget)
        named = {job.folder.name: r for job, r in zip([j for j in jobs if j.done], results, strict=True)}
        if self.results:
            self.results.mkdir(parents=True, exist_ok=True)
            for run, result in named.items():
                write_json(self.results / f"{run}.json", compact(result))
        if table is tables.PRETRAINED:
            results = list((planned.kept(self.results or RESULTS) | named).values())
        print(tables.write(self.name, results, planned.outputs(jobs), self.out))
        for run, result in named.items():
            for line in tracking.send(self.out / "runs" / run, result, self.mlflow, self.tensorboard):
                print(line, file=sys.stderr)

    def _require_data(self, table: Any) -> None:
        """ValueError before anything is trained when the table's runs would lack data, a device or a folder."""
        from training.methods.methods import find
        from training.network import on_ray
        from training.network.device import find_device
        from training.places import require_writable

        rows = dict.fromkeys(need.method for need in table.needs)
        if unknown := [method for method in self.methods if method not in rows]:
            raise ValueError(
                f"--methods {','.join(unknown)}: table {self.name} has no such row; it has {', '.join(rows)}"
            )
        find_device(self.device)
        on_ray.require(self.on, self.backbone != CIFAR_RESNET and self.tune in (None, "frozen"))
        require_writable(self.out, "--out")
        if self.results:
            require_writable(self.results, "--results")
        if self._cut is None and 1 in table.imbalances:
            raise ValueError(
                f"table {self.name} compares a long tail with balanced data, which no cut makes of data that are taken "
                "as they are: give --imbalance with data that have as many images of every class"
            )
        if self.weights and not self.weights.is_file():
            raise ValueError(f"--weights {self.weights}: there is no such file")
        if self.dataset == "digits":  # brings its own outliers and OOD set
            return
        if self.render_only and (self.name == "pretrained" or self.dataset != "folder"):
            return  # nothing is read of the data; runs of photographs are found by the name of their folder
        if self.data is None:
            raise ValueError(f"--dataset {self.dataset} needs --data DIR")
        if self.outliers is None and (names := [m for m in self.methods or rows if find(m).needs_outliers]):
            raise ValueError(f"table {self.name} trains {', '.join(names)} on outliers: give --outliers")
        if not self.ood and table.on_ood:
            raise ValueError(
                f"table {self.name} measures OOD detection: give --ood, an array or a folder, once or more"
            )

    @property
    def _cut(self) -> float | None:
        published = 100 if self.dataset in ("cifar10", "cifar100") else None
        return self.imbalance or published

    def _jobs(self, table: Any, imbalance: float, only: Sequence[str] = ()) -> list[Any]:
        """The runs that the table needs on data of this imbalance, or those that the rows `only` need."""
        from training.tables import jobs

        balanced, scratch = imbalance <= 1, self.backbone == CIFAR_RESNET
        settings: dict[str, Any] = {"imbalance": 1 if balanced else self._cut}
        if scratch:
            settings |= jobs.BUDGETS[self.budget]
        if balanced and scratch:
            settings["epochs"] = jobs.BALANCED_EPOCHS[self.budget]
        settings |= {k: v for k in (*self.REPLACING, *self.PASSED) if (v := getattr(self, k)) not in (None, False)}
        settings |= {k: getattr(self, k) for k in ("dataset", "data", "outliers", "image_size_px", "device")}
        base = Config(**settings, views=table.views)
        if base.frozen or self.feature_cache:
            base = Config(**settings, views=table.views, feature_cache=self.feature_cache or self.out / "features")
        methods = [n.method for n in table.needs if n.imbalance == imbalance and (not only or n.method in only)]
        return jobs.plan(base, methods, self.seeds, self.budget, self.out)


class WithoutOod(OnRun):
    """A run for what looks at its calibration split alone."""

    def _last_ood_sets(self) -> list[Path]:
        return []


class Pareto(BaseModel, use_attribute_docstrings=True):
    """Compare runs by size, speed and quality on the calibration split, to choose what ships."""

    runs: CliPositionalArg[list[Path]]
    out: Path = Path("pareto.json")

    def cli_cmd(self) -> None:
        from training.export import candidates
        from training.places import require_file

        records = [calibrated(folder) for folder in self.runs]  # before hours of work
        require_file(self.out, "--out")
        rows = []
        for folder, calibration in zip(self.runs, records, strict=True):
            asked = WithoutOod(run=folder, score=calibration["score"])
            run, data, _, _ = asked.prepare()
            rows.append(candidates.candidate(folder.name, run, data, calibration, asked._frozen))
        write_json(self.out, rows)  # type: ignore[arg-type]
        print(candidates.table(rows))
