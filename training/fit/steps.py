"""The steps of `fit`, each by the function behind the single command, each skipped where it is done."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from service.contract import bundle
from service.contract.calibration.groups import group_classes
from training import trainer
from training.audit import timing
from training.config import program
from training.data.listing import some
from training.data.notes import said_once
from training.data.photographs import CACHE, SCAN_FILE
from training.data.splits import FEWEST_IMAGES
from training.evaluation import left_out
from training.evaluation.cross_fit import FOLDS, CrossFit
from training.export.promises import by_share
from training.finished import AUTO, Calibrate, Evaluate, Export
from training.fit import alike, begun
from training.fit import plan as plans
from training.fit.command import Fit
from training.fit.plan import Plan
from training.layout import columns, curl_file, several, span
from training.network import frozen, on_ray, pretrained
from training.places import require_outside, require_writable
from training.runs import checkpoint, reserved
from training.runs.exported import last
from training.runs.files import CALIBRATION_FILE
from training.runs.steps import alone_in, is_measured, logged, quietly, step


def fit(given: Fit) -> Path:
    """The folder of the bundle. Raises ValueError where something does not do, KeyboardInterrupt or Interrupted."""
    require_writable(given.out, "--out")
    require_writable(given.work or Path("runs"), "--work")
    if given.feature_cache:
        require_writable(given.feature_cache, "--feature-cache")
    written = {"--out": given.out, "--work": given.work or Path("runs")}
    require_outside(written, plans.place(given.data.resolve()), outliers=given.outliers)
    on_ray.require(given.on, given.frozen)
    if given.frozen and not pretrained.find(given.backbone):  # before all photographs are read; kept for `prepare`
        frozen.load(given.with_absolute_paths(), given.work or Path("runs"))
    plan = plans.make(given)
    print(look(plan))
    plans.require_held_back(plan)
    with alone_in(plan.work), said_once(plan.files.notes):
        if not begun.begin(plan, given):
            _made(plan, given)
    print(f"\n{finished(plan)}")
    return plan.target


def _made(plan: Plan, given: Fit) -> None:
    try:
        prepare(plan, given)
    except ValueError:
        begun.forget(plan)
        raise
    runs = [head(plan, name, given) for name in plan.heads]
    best = choose(plan, runs)
    record = calibration(best)
    if not is_measured(best, record["score"]):
        folds = plans.folds_of(plan.config, plan.files)
        step(f"measure, {folds.figures}" if folds else "measure on the test images")
        quietly(plan.work, Evaluate(
            run=best, score=record["score"], ood=list(given.ood), device=given.device, on=given.on
        ))  # fmt: skip
    step(f"export {plan.target}")
    if plan.target.exists():
        raise ValueError(f"{plan.target} was made by something else meanwhile: export the finished run under another "
                         f"name or version, `{program()} export {shlex.quote(str(best))} --out "
                         f"{shlex.quote(str(given.out))} --name {plan.target.parent.name} --version ...`")  # fmt: skip
    quietly(plan.work, Export(
        run=best, out=given.out, name=plan.target.parent.name, version=plan.target.name, ood=list(given.ood),
        precision=plan.config.backbone_precision, device=given.device, on=given.on, thumbnails=given.thumbnails,
        data_licence=given.data_licence,
    ))  # fmt: skip
    reserved.release(plan.target)


def look(plan: Plan) -> str:
    """The short audit, and the table of choices."""
    files = plan.files
    counts = files.train.counts + files.calibration.counts
    outliers = sum(map(plans.length, (files.outliers, files.calibration_outliers)))
    few = int((files.calibration.counts == 0).sum())
    groups = group_classes(counts)
    named = {
        g: [c for c, of in zip(files.train.classes, groups.of_class, strict=True) if of == g] for g in groups.names
    }
    lines = [
        f"{counts.sum()} images of {len(counts)} classes to learn from and to calibrate on ({counts.max()} to "
        f"{counts.min()} each), {len(files.test.paths) or 'none'} to test on"
        + (f", {outliers} outliers" if outliers else ""),
        *(f"{name} {several(len(own), 'class')}: {some(own)}" for name, own in named.items()),
        *files.notes,
        *alike.notes(files, plan.work / CACHE / SCAN_FILE),
    ]  # fmt: skip
    if few and plans.folds_of(plan.config, files) is not CrossFit:  # by which all images count
        why = "no validation image" if files.validated else f"1 to {FEWEST_IMAGES - 1} images, or all in one group"
        lines.append(f"{several(few, 'class')} without an image to calibrate on ({why}): trained on, and judged by the "
                     "thresholds of their group")  # fmt: skip
    return "\n".join([*lines, "", *chosen(plan)])


def chosen(plan: Plan) -> list[str]:
    """Each choice in a line, its reason below it."""
    rows = columns([[c.option, str(c.value)] for c in plan.choices])
    width = max(len(c.option) for c in plan.choices) + 2
    return [line for row, c in zip(rows, plan.choices, strict=True) for line in (row, f"{'':{width}}({c.reason})")]


def prepare(plan: Plan, given: Fit) -> None:
    """Weights and backbone, room on the disk, and how long it will take."""
    if wanted := pretrained.find(plan.config.backbone):
        step("weights")
        if not plan.config.weights:
            pretrained.fetch(wanted)
    if not plan.config.frozen:
        return
    loaded = frozen.load(plan.config, plan.work)
    size = loaded.target.height_px
    plans.require_room(plan, loaded.backbone.features)
    files = plan.files
    others = len(files.calibration.paths) + len(files.test.paths) + plans.length(files.calibration_outliers)
    work = timing.Work(
        train=len(files.train.paths), outliers=plans.length(files.outliers), others=others,
        classes=len(files.train.classes), files=files.train.paths,
    )  # fmt: skip
    config = plan.config.model_copy(update={"method": plan.heads[0]}).with_schedule(work.train)
    found = timing.frozen_estimate(config, work, loaded.cache.graph, loaded.backbone.features, size,
                                   trainings(plan, given.score))  # fmt: skip
    print(f"\nabout {span(found.seconds)}, and the export: {', '.join(found.made_of)}", flush=True)


def trainings(plan: Plan, score: str) -> int:
    """How many heads learn: those that are compared and, to judge each, one for every part of the classes that is left
    out and, where there is no test part, one for every fold."""
    files, judging = plan.files, 0
    if score == AUTO and np.count_nonzero(files.calibration.counts) >= left_out.FEWEST_CLASSES:
        judging += len(left_out.folds(files.train.counts))
    if plans.folds_of(plan.config, files) is CrossFit:
        judging += FOLDS
    return len(plan.heads) * (1 + judging)


def head(plan: Plan, name: str, given: Fit) -> Path:
    """A trained and calibrated run; what is done is not done again."""
    run = plan.work / name
    _share(plan.work / CACHE, run / CACHE)
    config = plan.config.model_copy(update={"method": name})
    begun = (run / checkpoint.CHECKPOINT_FILE).is_file()
    if not begun or checkpoint.load(run)["stage"] != "done":
        step(f"train {name}")
        if begun:
            config = checkpoint.resumed(run, config, set())
        with logged(plan.work):
            trainer.train(config, run, resume=begun)
    if not (run / CALIBRATION_FILE).is_file():
        step(f"calibrate {name}")
        quietly(plan.work, Calibrate(
            run=run, score=given.score, ood=list(given.ood), device=given.device, on=given.on
        ))  # fmt: skip
    return run


def choose(plan: Plan, runs: list[Path]) -> Path:
    """The run that does best on calibration images; class-mean accuracy and AUROC count alike."""
    rows = [["HEAD", "accuracy", "class mean", "AUROC", "score"]]
    for run in runs:
        record = calibration(run)
        split, auroc = record["evaluation"]["calibration_split"], detection(record)
        shown = [split["accuracy"], split["mean_class_accuracy"], auroc]
        rows.append([run.name, *("-" if v is None else f"{v:.1%}" for v in shown), record["score"]])
    worth = {run: quality(calibration(run)) for run in runs}
    best = max(runs, key=worth.__getitem__)  # of equals the first
    equals = sum(value == worth[best] for value in worth.values()) > 1
    why = "no head does better on calibration images" if equals else "it does best on calibration images"
    print("\n" + "\n".join([*columns(rows), f"{best.name} is taken: {why}"]), flush=True)
    return best


def quality(record: dict[str, Any]) -> float:
    """The mean of class-mean accuracy and, where it is known, of AUROC, on calibration images."""
    parts = [record["evaluation"]["calibration_split"]["mean_class_accuracy"], detection(record)]
    known = [part for part in parts if part is not None]
    return float(sum(known) / len(known))


def detection(record: dict[str, Any]) -> float | None:
    """The AUROC of the deciding score by which it was chosen, or against held-back outliers; None where unknown."""
    chosen = record.get("score_choice") or {}
    worth = {row["score"]: row["mean_auroc"] for row in chosen.get("candidates", [])}
    found: float | None = worth.get(record["score"], record["evaluation"]["calibration_split"].get("auroc"))
    return found


def finished(plan: Plan) -> str:
    """What was made, and the line that serves it."""
    manifest = bundle.read(plan.target)
    found = manifest.evaluation
    lines = [
        f"{plan.target}: {manifest.provenance.method}, score {manifest.deciding_score}, "
        f"accuracy {found['accuracy']:.1%} on {found['images']} images, {found.get('figures', 'the test part')}"
    ]
    lines += by_share(manifest)
    if "mean" in found:
        lines.append("unknown things, AUROC: " + ", ".join(f"{k} {v['auroc']:.1%}" for k, v in found["ood"].items()))
    point = manifest.operating_points[manifest.default_operating_point]
    if point.group_cost.test:
        lines.append(f"{manifest.default_operating_point} rejects {point.group_cost.test.id_rejected:.1%} of "
                     f"them; more in {plan.target / 'CARD.md'}")  # fmt: skip
    serve = "tailguard serve" if program() == "tailguard" else "python -m service serve"
    example = next(iter(plan.files.test.paths or plan.files.train.paths), "photo.jpg")
    lines += ["", "serve it, and ask:", f"  TAILGUARD_BUNDLE={shlex.quote(str(plan.target))} {serve}",
              f"  curl -F {shlex.quote(curl_file(example))} 127.0.0.1:8000/classify"]  # fmt: skip
    if run := exported(plan):
        lines += ["teach it what people said of the images that it refused:",
                  f"  {program()} learn {shlex.quote(str(run))} --from REVIEWED"]  # fmt: skip
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------------- helpers


def exported(plan: Plan) -> Path | None:
    """The run that became the bundle; None where it has been exported to another place since."""
    runs = (plan.work / name for name in plan.heads)
    return next((run for run in runs if last(run) == plan.target.resolve()), None)


def calibration(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / CALIBRATION_FILE).read_text())
    return record


def _share(folder: Path, link: Path) -> None:
    """Let `link` in a run be `folder`, which all runs of a fit read and write."""
    folder.mkdir(parents=True, exist_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(folder, link.parent))
