"""The data of the new run: a list of images with their sides, a folder of outliers, and the settings of the old run.

WORK/learn.json          what is learned, from what, written last
WORK/data.csv            path, label, split: the run's images and the added ones, which lie in WORK/added
WORK/outliers/           links to the run's outliers, and the added ones
WORK/compared/           added outliers that old and new are compared on
WORK/split.csv           which image is on which side
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.contract import bundle
from service.contract.manifest import Parent
from training.config import Config, flag, program
from training.data.folders import set_places
from training.data.loading import has_mirrors
from training.data.photographs import CACHE, list_files
from training.export.about import AboutData
from training.export.bundle import require_target
from training.finished import calibrated
from training.learn import arrays
from training.learn import reviewed as reading
from training.learn.command import Learn
from training.learn.data import COMPARED_OUTLIERS, DATA_FILE, OUTLIERS, PLAN_FILE, write
from training.learn.reviewed import Reviewed
from training.network import on_ray
from training.network.frozen import CACHE_FOLDER
from training.network.weights import content_digest
from training.places import photographs, require_outside, require_writable
from training.runs import checkpoint, reserved
from training.runs.exported import last
from training.runs.files import Json, write_json
from training.runs.steps import alone_in


@dataclass(frozen=True)
class Plan:
    """`old` is the run, `config` that of the new one in `run`; `added` says what is learned, for card and manifest."""

    old: Path
    old_config: Config  # with the places where its data are now
    config: Config
    work: Path
    target: Path
    parent: Parent | None
    about: Json  # name, licence and description of the data set, and licence of the bundle, as the parent states them
    added: Json
    notes: list[str]
    of_pixels: Mapping[int, int]  # the key of each file by that of its pixels, of a run on arrays

    @property
    def run(self) -> Path:
        return self.work / self.old.name

    @property
    def compared_outliers(self) -> Path | None:
        """The folder of added outliers that were kept for the comparison, None where there are none."""
        folder = self.work / COMPARED_OUTLIERS
        return folder if folder.is_dir() and any(folder.iterdir()) else None

    def ood(self, known: Sequence[str]) -> list[Path]:
        """OOD sets to compare on: those `known`, and the reviewed outliers, among which are those of the time before.

        DataError where two have one name.
        """
        taught, now = (self.old.parent / PLAN_FILE).is_file(), self.compared_outliers
        before = (self.old.parent / COMPARED_OUTLIERS).resolve() if taught else None
        paths = [path for path in map(Path, known) if path != before] + ([now] if now else [])
        set_places(paths)
        return paths


def make(given: Learn) -> Plan:
    """Read, check, decide what becomes of each image, and write the data of the new run, unless that is done.

    ValueError or DataError with the remedy, before anything is computed.
    """
    config = checkpoint.config_of(given.run)
    record = calibrated(given.run)
    places = {key: place.resolve() for key in ("data", "outliers") if (place := getattr(given, key))}
    on_ray.require(given.on, config.frozen)
    config = config.model_copy(update={**places, "on": given.on})
    manifest, before_it = _parent(given)
    parent = Parent(name=manifest.name, version=manifest.version, sha256=manifest.sha256) if manifest else None
    name = given.name or (parent.name if parent else AboutData.of(config).slug)
    require_writable(given.out, "--out")
    work = given.work or Path("runs") / "-".join(["learn", name, *([given.version] if given.version else [])])
    require_writable(work, "--work")
    require_outside({"--out": given.out, "--work": work}, photographs(config), given.added, outliers=config.outliers)
    target = given.out / name / (given.version or _version(work / PLAN_FILE, given.out / name))
    if not (work / PLAN_FILE).is_file():
        require_target(target, name)
        reserved.require_free(target, work / PLAN_FILE)
    notes: list[str] = []
    of_pixels: Mapping[int, int] = {}
    if config.dataset == "folder":
        files = list_files(config, given.run)
    else:
        files, of_pixels = arrays.as_files(config, given.run, work)
    notes += files.notes
    notes += _pictures_note(manifest, work / given.run.name)
    found = reading.read(given.added, files.train.classes, work / CACHE / "scan-added.npz", notes)
    now: Json = {
        "run": str(given.run.resolve()), "run_sides": _sha256(given.run / "split.csv"),
        "run_network": content_digest(checkpoint.load(given.run)["network"]), "target": str(target.resolve()),
        "images": _digest(found), "compare_share": given.compare_share, "score": given.score,
        "doubtful": given.doubtful,
    }  # fmt: skip
    about = _about(given, manifest, config)
    with alone_in(work):  # two that began together wrote into each other's folders
        if not (before := _begun(work, now)):
            added = write(work, given, config, files, found, notes)
            added["trained_keys"] = [*dict.fromkeys([*before_it, *added["trained_keys"]])]
            before = now | {"begun": datetime.now(UTC).isoformat(), "about": about, "added": added, "notes": notes}
            write_json(work / PLAN_FILE, before)
    new = _config(config, record, work.resolve(), given)
    about = before.get("about", about)
    return Plan(given.run, config, new, work, target, parent, about, before["added"], before["notes"], of_pixels)


def is_done(plan: Plan) -> bool:
    """Whether the bundle is there already and of this plan; ValueError where it is of another."""
    if not plan.target.exists():
        return False
    begun = json.loads((plan.work / PLAN_FILE).read_text())["begun"]
    reserved.require_made_since(plan.target, begun, [plan.run], "work")
    return True


# ---- The bundle before ----


def _parent(given: Learn) -> tuple[bundle.Manifest | None, list[str]]:
    """The bundle that was last made of the run, where it is still there, None where that is not known; and the keys of
    reviewed images that the run was trained on when it learned itself."""
    plan = given.run.parent / PLAN_FILE
    taught: list[str] = json.loads(plan.read_text())["added"].get("trained_keys", []) if plan.is_file() else []
    folder = given.parent or last(given.run)
    if folder is None or (given.parent is None and not (folder / bundle.MANIFEST_FILE).is_file()):
        return None, taught
    manifest = bundle.read(folder)
    taught += (manifest.provenance.added or {}).get("trained_keys", ())
    return manifest, taught


def _pictures_note(parent: bundle.Manifest | None, run: Path) -> list[str]:
    if parent is None or parent.exemplars is None or not parent.exemplars.thumbnails:
        return []
    return [f"{parent.name} version {parent.version} holds small pictures of training images, the new bundle none, "
            "as nobody has stated the terms of the reviewed ones. With such terms, `"
            f"{program()} export {run} --thumbnails --data-licence TERMS` makes one that does"]  # fmt: skip


def _about(given: Learn, parent: bundle.Manifest | None, config: Config) -> Json:
    """What is stated of the data set and of the bundle's terms: by the parent, else by what the run learned itself."""
    if parent is not None and (stated := parent.evaluation.get("data_set")):
        return {**stated, "bundle_licence": parent.evaluation.get("licence")}
    plan = given.run.parent / PLAN_FILE
    known: Json = json.loads(plan.read_text()).get("about", {}) if plan.is_file() else {}
    return known or {**AboutData.of(config).record(), "bundle_licence": None}


def _version(plan_file: Path, bundles: Path) -> str:
    if plan_file.is_file():
        return Path(json.loads(plan_file.read_text())["target"]).name
    return reserved.first_free(bundles, plan_file)


# ---- Going on, and refusing to ----


def _begun(work: Path, now: Json) -> Json | None:
    """What was begun here; None where nothing was. ValueError where it was something else."""
    path = work / PLAN_FILE
    if not path.is_file():
        return None
    before: Json = json.loads(path.read_text())
    for key, value in now.items():
        if before.get(key, value) != value:  # an earlier version may not have written it down
            anew = "a run that was trained anew"
            what = {"images": "other reviewed images", "run_sides": anew, "run_network": anew}.get(
                key, f"{flag(key)} {before.get(key)!r} instead of {value!r}"
            )
            raise ValueError(f"{work} learns from {what}: go on with that, give another --work or --version, or remove "
                             "the folder")  # fmt: skip
    return before


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest(found: Reviewed) -> str:
    rows = sorted(zip(found.keys.tolist(), found.labels.tolist(), found.given.tolist(), strict=True))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _config(old: Config, record: Json, work: Path, given: Learn) -> Config:
    """The settings of the run, on the new data; its int8 backbone stays the very same."""
    changed: dict[str, Any] = {
        "data": work / DATA_FILE, "outliers": work / OUTLIERS if (work / OUTLIERS).is_dir() else None,
        "split_from": work, "stage1_from": None, "imbalance": None, "class_level": None, "device": given.device,
    }  # fmt: skip
    if old.dataset != "folder":  # of its small pictures nothing was cut away
        changed |= {"dataset": "folder", "backbone_fit": old.backbone_fit or "square"}
        if not has_mirrors(old):  # a folder's have, unless the augmentation says otherwise
            changed["augment"] = "crop"
    if given.threads:
        changed["threads"] = given.threads
    if old.frozen:
        changed["feature_cache"] = work / CACHE_FOLDER
        backbone = checkpoint.load(given.run)["provenance"]["backbone"]
        changed["backbone_int8"] = backbone.get("int8_sha256")
    return old.model_copy(update=changed)
