"""The steps of `learn`, each skipped where it is done: plan, features, head, calibration, comparison, bundle."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import PrivateAttr

from service.contract import bundle
from service.contract.calibration.taxonomy import ERROR
from training import trainer
from training.data.choice import Choice
from training.data.fitted import Fitted
from training.data.loading import Data, load
from training.data.notes import said_once
from training.data.photographs import CACHE, SCAN_FILE
from training.data.readers import Images, Keys, pixel_keys
from training.finished import AUTO, Calibrate, Evaluate, Export, calibrated
from training.layout import columns
from training.learn import compare
from training.learn import plan as plans
from training.learn.alone import steps as alone
from training.learn.command import Learn
from training.learn.data import COMPARED_OUTLIERS, PLAN_FILE, SPLITS
from training.learn.plan import Plan
from training.network import frozen
from training.network.features import Known
from training.runs import checkpoint, reserved
from training.runs.files import CALIBRATION_FILE, Json, write_json
from training.runs.steps import alone_in, is_measured, logged, quietly, step
from training.scores import either

COMPARISON_FILE = "comparison.json"
BLOCK_IMAGES = 256  # in memory at once


class ExportTaught(Export):
    """Export, with what the bundle came from and how it compares."""

    _lineage: Json = PrivateAttr(default_factory=dict)

    def lineage(self) -> Json:
        return self._lineage


@said_once()
def learn(given: Learn) -> Path:
    """The folder of the bundle. ValueError where something does not do, or became worse; KeyboardInterrupt."""
    if (given.run / bundle.MANIFEST_FILE).is_file():
        return alone.learn(given)
    plan = plans.make(given)
    print("\n".join(look(plan)), flush=True)
    with alone_in(plan.work), said_once(plan.notes):
        if not plans.is_done(plan):
            reserved.reserve(plan.target, plan.work / PLAN_FILE)
            _made(plan, given)
        reserved.release(plan.target)
    print(f"\n{finished(plan)}")
    return plan.target


def _made(plan: Plan, given: Learn) -> None:
    record = calibrated(plan.old)
    old = Evaluate(
        run=plan.old, data=given.data, outliers=given.outliers, ood=given.ood, score=record["score"],
        device=given.device, on=given.on,
    )  # fmt: skip
    before = old.prepare()
    ood = plan.ood(old._paths)
    if plan.config.frozen:
        step("features of the new images")
        prepare(plan, before[1])
    teach(plan, given, record)
    new_record = calibrated(plan.run)
    if not is_measured(plan.run, new_record["score"]):
        step("measure the new run")
        quietly(plan.work, Evaluate(run=plan.run, score=new_record["score"], ood=ood, device=given.device, on=given.on))
    step("compare with the old model")
    compared = comparison(plan, given, before, ood)
    compare.refuse_worse(compared, given)
    step(f"export {plan.target}")
    export(plan, given, compared, ood)


def look(plan: Plan) -> Iterator[str]:
    """What is learned, by class."""
    rows = [["", "trained on", "calibrated on", "compared on"]]
    for title, key in (("new", "new_classes"), ("more of", "known_classes")):
        for name, counts in plan.added[key].items():
            rows.append([f"{title} {name}", *map(str, counts.values())])
    rows.append(["outliers", *map(str, plan.added["outliers"].values())])
    yield from plan.notes
    yield from columns(rows)
    for name, counts in plan.added["new_classes"].items():
        if not counts["train"]:
            raise ValueError(f"no image of the new class {name!r} is left to train on: add some")
        if not (counts["calibration"] and counts["test"]):
            missing = [w for w, k in (("calibrated", "calibration"), ("compared", "test")) if not counts[k]]
            said = f"neither {' nor '.join(missing)}" if len(missing) > 1 else f"not {missing[0]}"
            yield f"{name} has so few images (or they are one burst) that it is {said} on its own images"


def prepare(plan: Plan, old: Data) -> None:
    """Compute the features of the images that the run did not have, beside those that it has."""
    folder = plan.run / CACHE
    folder.mkdir(parents=True, exist_ok=True)
    if (scanned := plan.old / CACHE / SCAN_FILE).is_file() and not (folder / SCAN_FILE).is_file():
        shutil.copyfile(scanned, folder / SCAN_FILE)
    backbone = frozen.load(plan.config, plan.run)
    if wanted := plan.config.backbone_int8:
        backbone.take_int8(wanted, frozen.load(plan.old_config, plan.old))
    pixels = load(plan.config, plan.work, folder, target=backbone.target)
    known = backbone.at_precision(plan.config, pixels)
    known = replace(known, cache=replace(known.cache, known=Known(dict(_rows(old, plan.of_pixels)))))
    known.data(pixels)


def _rows(old: Data, of_pixels: Mapping[int, int]) -> Iterator[tuple[int, Any]]:
    """Content keys of the run's images, of their files where it was trained on arrays, with the features of each."""
    assert old.photographs is not None
    pictures = old.photographs
    sets: list[tuple[Keys, Images]] = [
        (seen.keys, featured) for seen, featured in (
            (pictures.calibration_outliers, old.calibration_outliers), (pictures.outliers, old.outliers),
            (pictures.test, old.test.images), (pictures.calibration, old.calibration.images),
            (pictures.train, old.train.images),
        )
    ]  # fmt: skip
    for keys, features in sets:
        yield from zip((of_pixels.get(key, key) for key in keys.tolist()), features, strict=True)


def teach(plan: Plan, given: Learn, record: Json) -> None:
    """Train and calibrate the new run as the old one was."""
    config, begun = plan.config, (plan.run / checkpoint.CHECKPOINT_FILE).is_file()
    if not begun or checkpoint.load(plan.run)["stage"] != "done":
        step(f"train {config.method}")
        with logged(plan.work):
            trainer.train(checkpoint.resumed(plan.run, config, set()) if begun else config, plan.run, resume=begun)
    if not (plan.run / CALIBRATION_FILE).is_file():
        step("calibrate")
        score = given.score or (AUTO if record.get("score_choice") else record["score"])
        levels = [p["level"] for p in record["operating_points"].values() if p["level"] is not None]
        mix = record["calibration"]["class_mix"]
        if mix not in ("train", "uniform"):
            print(f"the class mix {mix} says nothing of the new classes: calibrated for that of the training images")
            mix = "train"
        two = either.read(record.get("either"))
        unsure = two.unsure_part.share / two.refused if two else either.UNSURE_SHARE
        quietly(plan.work, Calibrate(
            run=plan.run, score=score, level=levels, class_mix=mix, unsure_share=unsure, device=given.device,
            on=given.on, taxonomy_error=record.get("taxonomy_error", ERROR),
            cross_fit="calibrated" in record["evaluation"],
        ))  # fmt: skip


def comparison(plan: Plan, given: Learn, before: tuple[Any, Data, Mapping[str, Images], str], ood: list[Path]) -> Json:
    """Print the table of old and new; the figures."""
    record = calibrated(plan.run)
    command = Evaluate(run=plan.run, ood=ood, score=record["score"], device=given.device, on=given.on)
    run, data, outside, _ = command.prepare()
    device = command.found_device()
    old = compare.Judge(before[0], calibrated(plan.old), before[1], device)
    new = compare.Judge(run, record, data, device)
    pictures = data.photographs or data
    sets = {"outliers held back": compare.Compared.of(
        old, new, data.calibration_outliers, pictures.calibration_outliers, _held_back(data, before[1])
    )}  # fmt: skip
    for name, images in outside.items():
        shown = command.ood_images()[name]
        sets[compare.REVIEWED if name == COMPARED_OUTLIERS else name] = compare.Compared.of(
            old, new, images, shown, _strangers(plan, shown)
        )
    limit = given.worse_points / 100
    own = np.array([plan.of_pixels.get(key, key) for key in before[1].test.keys.tolist()], np.uint64)
    tested = compare.Compared.of(old, new, data.test.images, pictures.test.images)
    found = list(compare.figures(old, data.test, tested, own, sets))
    print("\n".join(compare.table(found, limit)), flush=True)
    compared: Json = {"worse_points": given.worse_points, "figures": compare.record(found, limit)}
    write_json(plan.work / COMPARISON_FILE, compared)
    return compared


def _held_back(data: Data, before: Data) -> compare.Flags:
    """Which outliers the run before held back, without the reviewed ones that are calibrated on beside them: people
    have seen these because the old model refused them, so it would catch them all.

    They are known by their pixels: those of an array are files now.
    """
    now, then = ((one.photographs or one).calibration_outliers for one in (data, before))
    keys, own = (
        [key for start in range(0, len(seen), BLOCK_IMAGES) for key in pixel_keys(seen[start : start + BLOCK_IMAGES])]
        for seen in (now, then)
    )
    return np.isin(keys, own)


def _strangers(plan: Plan, pictures: Images) -> compare.Flags:
    """Which images of an OOD set nobody has labelled meanwhile."""
    if not isinstance(pictures, Fitted):
        return np.ones(len(pictures), bool)
    taught = Choice.read(plan.work).parts
    ours = np.concatenate([taught[name].keys for name in SPLITS])
    return ~np.isin(pictures.keys, ours)


def export(plan: Plan, given: Learn, compared: Json, ood: list[Path]) -> None:
    about, parent = plan.about, plan.parent
    if parent is not None and given.parent is None:
        print(f"its parent is {parent.name} version {parent.version}, to which {plan.old} was exported")
    config = plan.config
    command = ExportTaught(
        run=plan.run, out=given.out, name=plan.target.parent.name, version=plan.target.name, ood=ood,
        precision=config.backbone_precision if config.frozen else "auto", device=given.device, on=given.on,
        data_name=about["name"], data_licence=about["licence"], data_description=about["description"],
        licence=about["bundle_licence"],
    )  # fmt: skip
    command._lineage = {
        "parent": parent.model_dump() if parent else None, "added": plan.added, "comparison": compared,
    }  # fmt: skip
    quietly(plan.work, command)


def finished(plan: Plan) -> str:
    manifest = bundle.read(plan.target)
    found = manifest.evaluation
    held = sum(n["test"] for of in ("new_classes", "known_classes") for n in plan.added[of].values())
    # A run without a test part has no others: a figure of the whole model it is not
    which = found.get("figures", "reviewed ones" if held == found["images"] else "the test part")
    return (
        f"{plan.target}: {len(manifest.classes)} classes, score {manifest.deciding_score}, accuracy "
        f"{found['accuracy']:.1%} on {found['images']} images, {which}; compare it in "
        f"service, then put it in force: tailguard promote --shadow {plan.target}, tailguard promote; what is labelled "
        f"from then on is for {plan.run} to learn, which knows what was learned so far"
    )
