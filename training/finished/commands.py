"""Commands on a finished run: what they share, evaluate, and export; calibrate has a file of its own."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from pydantic_settings import CliPositionalArg

from training.config import program
from training.data.notes import say
from training.export.exemplars import MOST_OF_A_CLASS
from training.layout import summary
from training.runs.files import CALIBRATION_FILE, RESULTS_FILE, Json, with_suffix, write_json

DISTANCE_UNIT = "images left out"  # of Mahalanobis distances; thresholds from before there was one are 10⁶ too large


class OnRun(BaseModel, use_attribute_docstrings=True):
    run: CliPositionalArg[Path]
    """Folder of a finished run."""
    data: Path | None = None
    """Where the data set is now, when it was moved; its images are compared with those of the run."""
    outliers: Path | None = None
    """Where the training outliers are now, when they were moved."""
    ood: list[Path] = []
    """OOD test sets: an array, a folder of images or a folder of arrays, may be repeated; not given: the last ones."""
    score: str | None = None
    """Which score decides; not given: the method's. One of `tailguard methods`, the sum of two, energy+ncm, or the
    larger of one and the doubt about the class, energy|msp, so that a refusal says why. `calibrate` also takes auto."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    on: Literal["here", "ray"] = "here"
    """As in `train`, for features that are not there yet."""

    def prepare(self) -> tuple[Any, Any, dict[str, Any], str]:
        """(run, data, OOD sets, deciding score); ValueError for what would fail later, before any image is read."""
        from training.data import loading
        from training.evaluation import folding
        from training.network import on_ray
        from training.network.device import find_device
        from training.places import require_writable
        from training.runs import checkpoint
        from training.scores.either import require_score

        run = checkpoint.trained(self.run)
        on_ray.require(self.on, run.config.frozen)
        score = self.named_score() or run.method.score
        for name in (score, *self.more_scores()):
            require_score(name, run.scoring.reject is not None, len(run.classes))
        require_writable(self.run, "the run's folder")
        self._device = find_device(self.device)
        places = {key: place for key in ("data", "outliers") if (place := getattr(self, key))}
        config = run.config.model_copy(update=places)
        self._frozen = self._frozen_backbone(run)
        pretrained = self._frozen or run.tuned
        target = pretrained.target if pretrained else None
        loaded = loading.load(config, self.run, target=target)
        checkpoint.require_same_data(self.run, list(run.classes), run.train_counts, loaded)
        paths = self.ood or self._last_ood_sets()
        self._paths = [str(p.resolve()) for p in paths]
        loaded = loading.with_ood_sets(loaded, paths, config, self.run, target)
        say(loaded.notes)
        self._ood_images = dict(loaded.ood)
        if pretrained:
            loaded = pretrained.data(loaded)
        loaded = folding.with_folds(run, loaded, self._device, calibrates=self.cross_fitted())
        return run, loaded, dict(loaded.ood), score

    def _frozen_backbone(self, run: Any) -> Any:
        """The backbone that a run stands on, None for its own network; DataError when it has changed."""
        if not run.config.frozen:
            return None
        from training.network import frozen

        loaded = frozen.load(run.config.model_copy(update={"on": self.on}), self.run)
        frozen.require_same(self.run, run.provenance["backbone"], loaded.backbone)
        return loaded.as_recorded(run.provenance["backbone"])

    def found_device(self) -> Any:
        """The device that `prepare` found."""
        return self._device

    def ood_images(self) -> dict[str, Any]:
        """The OOD sets that `prepare` found, as images where those it returned are features."""
        return self._ood_images

    def named_score(self) -> str | None:
        """The score that was asked for by name."""
        return self.score

    def cross_fitted(self) -> bool:
        """Whether thresholds come from cross-fitting also where there is a test part."""
        return bool(getattr(self, "cross_fit", False))

    def more_scores(self) -> Sequence[str]:
        """Scores beside the deciding one."""
        return ()

    def _last_ood_sets(self) -> list[Path]:
        """Those of the last evaluation with the method's own score, else of one with another score."""
        results = [self.run / RESULTS_FILE, *sorted(self.run.glob("results-*.json"))]
        last = next((path for path in results if path.is_file()), None)
        return [Path(p) for p in json.loads(last.read_text())["ood_paths"]] if last else []

    _paths: list[str] = []
    _device: Any = None
    _frozen: Any = None
    _ood_images: dict[str, Any] = {}


class Evaluate(OnRun):
    """Every metric on the test images and OOD sets, into results.json; what pictures are made of, into outputs.npz.

    With another score than the method's they are results-<score>.json and outputs-<score>.npz: tables print the
    method's own.
    """

    def cli_cmd(self) -> None:
        from training.evaluation import evaluate
        from training.scores import either

        run, data, ood, score = self.prepare()
        two = either.read(calibrated(self.run).get("either")) if either.unknown_of(score) else None
        suffix = "" if score == run.method.score else f"-{score}"
        results = evaluate.evaluate_run(run, data, ood, score, self._device, suffix, two)
        write_json(with_suffix(self.run / RESULTS_FILE, suffix), results | {"ood_paths": self._paths})
        print(summary(results))


class Export(OnRun):
    """One ONNX graph with its thresholds, as a bundle <out>/<name>/<version>."""

    out: Path = Path("models")
    name: str | None = None
    """Name of the bundle; not given: the data set's."""
    version: str = "1"
    precision: Literal["auto", "fp32", "int8", "fp16"] = "auto"
    """int8 for CPUs; fp16 for GPUs, half the file (a CPU serves it, but gains nothing); auto: int8 where the graph can
    be in int8, else fp32, with the reason (a transformer)."""
    examples: Path | None = None
    """Folder of image files that travel in the bundle and are checked at load; not given: drawn ones."""
    candidates: Path | None = None
    """JSON written by `pareto`, to be shown in the card."""
    scores: list[str] = []
    """More scores for the graph to give beside energy, MSP and the deciding one; may be repeated."""
    data_name: str | None = None
    """The data set's name in the card; not given: that of the benchmark, or of the data folder."""
    data_licence: str | None = None
    """The terms of the data set, for the card."""
    data_description: str | None = None
    """A sentence about the data set, for the card: what the images show and where they come from."""
    licence: str | None = None
    """The terms of the bundle itself, for the card."""
    thumbnails: bool = False
    """Small pictures of training images travel in the bundle, for those who review; needs --data-licence."""
    exemplars_per_class: Annotated[int, Field(ge=1)] = MOST_OF_A_CLASS
    """Training images of each class that travel as embeddings, at most; with thumbnails some 4 KB each."""

    web: Path | None = None
    """Also write this new folder, a page that classifies with the bundle in the browser alone: see `tailguard web`."""

    def more_scores(self) -> Sequence[str]:
        return self.scores

    def cross_fitted(self) -> bool:
        return bool(calibrated(self.run).get("cross_fit"))

    def lineage(self) -> Json:
        """What the manifest says of where the bundle comes from: parent, added, comparison."""
        return {}

    def cli_cmd(self) -> None:
        from training.data import folders
        from training.export import bundle as export
        from training.export.about import AboutData
        from training.places import photographs, require_outside, require_writable
        from training.runs import checkpoint

        config = checkpoint.config_of(self.run)
        about = AboutData.of(config, self.data_name, self.data_licence, self.data_description)
        about.require_licence(self.thumbnails)
        target = self.out / (self.name or about.slug) / self.version
        export.require_target(target, self.name)
        require_writable(self.out, "--out")
        written = {"--out": self.out} | ({"--web": self.web} if self.web else {})
        require_outside(written, photographs(config), outliers=config.outliers)
        if self.web and self.web.exists():
            raise ValueError(f"--web {self.web} exists already: name another folder, or remove it first")
        calibration = calibrated(self.run)
        rows = _candidates(self.candidates) if self.candidates else None
        images = {p.name: p.read_bytes() for p in folders.image_files(self.examples)} if self.examples else None
        if images is not None and not images:
            raise ValueError(f"--examples {self.examples} holds no image: name a folder with some, or leave it out")
        run, data, ood, _ = self.prepare()
        manifest = export.export(
            run, data, self._ood_images if self._frozen else ood, calibration, target, precision=self.precision,
            candidates=rows, example_images=images, scores=self.scores, about=about, licence=self.licence,
            device=self._device, frozen=self._frozen, lineage=self.lineage(),
            thumbnails=self.thumbnails, exemplars_per_class=self.exemplars_per_class,
        )  # fmt: skip
        size = sum(p.stat().st_size for p in target.rglob("*") if p.is_file())
        print(f"{target}: {manifest.precision}, {size / 1e6:.2f} MB\n{summary(manifest.evaluation)}", flush=True)
        if self.web:
            write_pages(target, self.web)


def write_pages(bundle: Path, out: Path) -> None:
    """The folder that `tailguard web` writes: a program of the service, which is started and not imported."""
    given = ["web", str(bundle), "--out", str(out)]
    if subprocess.run([sys.executable, "-m", "service", *given]).returncode:
        raise ValueError(f"{bundle} is written, but not its web pages: see above, then tailguard {' '.join(given)}")


def _candidates(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"--candidates {path} cannot be read as JSON ({error})") from error


def calibrated(run: Path) -> dict[str, Any]:
    """What `calibrate` measured on the run in this folder. ValueError where it did not, or on another network."""
    from training.runs import checkpoint

    path = run / CALIBRATION_FILE
    if not path.is_file():
        raise ValueError(f"{path} does not exist: {program()} calibrate {run}")
    content = json.loads(path.read_text())
    assert isinstance(content, dict)
    distances = any(name in content.get("score", "") for name in ("mahalanobis", "rmds"))
    if "class_mix" not in content["calibration"] or (distances and content.get("distance_unit") != DISTANCE_UNIT):
        raise ValueError(f"{path} is of an earlier version: {program()} calibrate {run}")
    if content.get("networks_sha256", now := checkpoint.networks_digest(run)) != now:
        raise ValueError(f"{path} is of another run, or of this one before it was trained anew: "
                         f"{program()} calibrate {run}")  # fmt: skip
    return content
