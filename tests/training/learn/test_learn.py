"""`tailguard learn`: a run learns a new class, more of its tail and outliers; refused, killed and gone on with."""

import csv
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from service.contract import bundle
from service.contract.keys import content_key
from tests import live, warm
from tests.training.fit import test_fit as fruit
from tests.training.network.test_frozen import write_extractor
from training import __main__ as commands
from training.data.choice import Choice
from training.data.notes import say
from training.evaluation.cross_fit import NAMED
from training.learn import compare, data, plan, reviewed, steps
from training.learn.command import Learn
from training.network import features
from training.runs import checkpoint, reserved
from training.runs.exported import last
from training.runs.files import CALIBRATION_FILE, EXPORTED_FILE, EXPORTING_FILE
from training.runs.steps import alone_in

NEW = {"lime": (190, 220, 60), "sand": (210, 190, 140)}


pytestmark = pytest.mark.usefixtures("quick_export")


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ROOT/shop (a data set), ROOT/run (trained and calibrated on it), ROOT/models/shop/1, ROOT/export; to be read."""
    root = tmp_path_factory.mktemp("taught")
    fruit.COLOURS.update(NEW)
    for i, (name, count) in enumerate(fruit.COUNTS.items()):
        fruit.save(root / "shop" / "train" / name, name, count, 1000 * i)
        fruit.save(root / "shop" / "test" / name, name, 8, 1000 * i + 500)
    fruit.save(root / "junk", "sky", 24, 8000)
    write_extractor(root / "means.onnx")
    run = str(root / "run")
    commands.main(["train", "--dataset", "folder", "--data", str(root / "shop"), "--outliers", str(root / "junk"),
                   "--backbone", f"onnx:{root / 'means.onnx'}", "--method", "oe", "--epochs", "15", "--batch-images",
                   "16", "--calibration-fraction", "0.3", "--threads", "1", "--out", run])  # fmt: skip
    commands.main(["calibrate", run, "--score", "gen"])
    commands.main(["export", run, "--out", str(root / "models"), "--name", "shop", "--precision", "fp32",
                   "--data-licence", "CC0", "--licence", "MIT"])  # fmt: skip
    fruit.save(root / "export" / "train" / "lime", "lime", 16, 20_000)
    fruit.save(root / "export" / "train" / "kiwi", "kiwi", 8, 21_000)
    fruit.save(root / "export" / "outliers", "sand", 12, 22_000)
    return root


def learn(capsys: pytest.CaptureFixture[str], root: Path, into: Path, *given: object, added: Path | None = None) -> str:
    """What `learn` prints; its refusal where it refuses."""
    capsys.readouterr()
    try:
        commands.main(["learn", str(root / "run"), "--from", str(added or root / "export"), "--out",
                       str(into / "models"), "--work", str(into / "work"), *map(str, given)])  # fmt: skip
    except SystemExit as stop:
        return str(stop.code)
    return capsys.readouterr().out


def test_a_new_class_is_accepted_under_its_name(
    taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], computed: list[int]
) -> None:
    printed = learn(capsys, taught, tmp_path)
    target = tmp_path / "models" / "shop" / "1"
    assert f"{target}: 4 classes" in printed
    assert sum(computed) <= 3 * (16 + 8 + 12)  # of the added images alone: for a first look, and with their mirrors
    manifest = bundle.read(target)
    parent = bundle.read(taught / "models" / "shop" / "1")
    assert manifest.provenance.parent is not None
    assert manifest.provenance.parent.sha256 == parent.sha256
    assert manifest.provenance.added is not None
    counts = manifest.provenance.added["new_classes"]["lime"]
    assert sum(counts.values()) == 16
    assert min(counts.values()) >= 1
    card = (target / "CARD.md").read_text()
    assert "## Learned" in card
    assert "new class lime" in card
    assert "accuracy, new classes" in printed
    # the reviewed ones that are calibrated on were seen because the old model refused them: it cannot lose on them
    own = Choice.read(taught / "run").parts["calibration_outliers"].keys
    held = next(f for f in manifest.evaluation["comparison"]["figures"] if f["name"] == "caught, outliers held back")
    assert held["images"] == len(own) < len(Choice.read(tmp_path / "work").parts["calibration_outliers"].keys)
    with live.serving(target) as url:
        answers = [fruit.ask(url, fruit.photograph("lime", 30_000 + i)) for i in range(5)]
        known = fruit.ask(url, fruit.photograph("kiwi", 7))
    assert [a["label"] for a in answers] == ["lime"] * 5
    assert sum(a["decision"] == "accept" for a in answers) >= 4
    assert known["label"] == "kiwi"

    # the new run is one that can learn again, and the same command has nothing left to do
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "work").rglob("*") if p.is_file()}
    assert "4 classes" in learn(capsys, taught, tmp_path)
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "work").rglob("*") if p.is_file()}
    shutil.rmtree(tmp_path / "models")  # and yet it is known what the run was trained on before
    fruit.save(tmp_path / "more" / "train" / "lime", "lime", 6, 40_000)
    fruit.save(tmp_path / "more" / "outliers", "sand", 12, 41_000)
    compared = next(iter((tmp_path / "work" / "compared").iterdir()))
    Image.open(compared).save(tmp_path / "more" / "outliers" / "once more.webp", quality=95)
    moved = tmp_path / "again"
    commands.main(["learn", str(tmp_path / "work" / "run"), "--from", str(tmp_path / "more"), "--out",
                   str(moved / "models"), "--work", str(moved / "work"), "--name", "shop", "--version", "3",
                   "--allow-worse"])  # fmt: skip
    assert (
        "left out 1 near duplicates of outliers that the run holds back or was compared on" in capsys.readouterr().out
    )
    third = bundle.read(moved / "models" / "shop" / "3")
    assert len(third.classes) == 4
    assert third.provenance.added is not None
    for one in (manifest, third):  # of a list called data.csv, whose terms nobody had stated, the card would say
        assert (one.provenance.dataset, one.evaluation["licence"]) == ("shop", "MIT")
        assert one.evaluation["data_set"]["licence"] == "CC0"
    keys, first = third.provenance.added["trained_keys"], manifest.provenance.added["trained_keys"]
    assert {one.name for one in (tmp_path / "work" / "compared").iterdir()} < {
        one.name for one in (moved / "work" / "compared").iterdir()}  # fmt: skip
    assert len({*keys}) == len(keys) > len(first) == len({*first} & {*keys})


def test_no_image_of_the_run_is_learned_or_compared_on_twice(
    taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    added = tmp_path / "added"
    fruit.save(added / "train" / "lime", "lime", 10, 20_000)
    shop = taught / "shop"
    (added / "train" / "kiwi").mkdir(parents=True)
    shutil.copy(shop / "train" / "kiwi" / "00.png", added / "train" / "kiwi" / "had.png")
    shutil.copy(shop / "test" / "kiwi" / "00.png", added / "train" / "kiwi" / "tested.png")
    shutil.copy(shop / "train" / "plum" / "00.png", added / "train" / "kiwi" / "was-a-plum.png")
    near = fruit.photograph("kiwi", 2500)  # the test image 00 once more, in another file
    near.save(added / "train" / "kiwi" / "near.webp", quality=95)
    fruit.photograph("kiwi", 2501).save(added / "train" / "kiwi" / "test-01.bmp")  # the very pixels, in another file
    shutil.copy(added / "train" / "lime" / "00.png", added / "train" / "lime" / "twice.png")
    (added / "outliers").mkdir()
    shutil.copy(added / "train" / "lime" / "01.png", added / "outliers" / "torn.png")
    shutil.copy(taught / "junk" / "00.png", added / "train" / "lime" / "was-junk.png")
    junk = Choice.read(taught / "run").parts
    for side, name in (("calibration_outliers", "held"), ("outliers", "trained")):
        own = [i for i in range(24) if content_key((taught / "junk" / f"{i:02}.png").read_bytes()) in junk[side].keys]
        fruit.photograph("sky", 8000 + own[-1]).save(added / "outliers" / f"{name}.webp", quality=95)
    (added / "train" / "empty").mkdir()
    printed = learn(capsys, taught, tmp_path, added=added)
    for said in ("left out 2 images that the run has already", "left out 1 images that the run has under another label",
                 "left out 2 near duplicates of calibration or test images",
                 "left out 1 near duplicates of outliers that the run holds back or was compared on",
                 "left out 1 images that have two labels", "1 outliers of the run are of a class now",
                 "left out 1 classes without images (empty)"):  # fmt: skip
        assert said in printed
    before, after = Choice.read(taught / "run").parts, Choice.read(tmp_path / "work").parts
    for side in ("calibration", "test"):
        old = dict(zip(before[side].keys.tolist(), before[side].classes, strict=True))
        new = dict(zip(after[side].keys.tolist(), after[side].classes, strict=True))
        assert old.items() <= new.items()
        assert {name for key, name in new.items() if key not in old} <= {"lime"}
    sides = [set(after[name].keys.tolist()) for name in after]
    assert sum(map(len, sides)) == len(set.union(*sides))
    # less one, which is a lime now, and one of the trained ones once more
    assert len(after["outliers"].keys) + len(after["calibration_outliers"].keys) == 24


def test_what_became_worse_is_named_and_not_exported(
    taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    added = tmp_path / "added"  # a reviewer who calls everything a lime
    (added / "lime").mkdir(parents=True)
    for i in range(120):
        name = list(fruit.COUNTS)[i % 3]
        fruit.photograph(name, 50_000 + i).save(added / "lime" / f"{i}.png")
    said = learn(capsys, taught, tmp_path, added=added)
    assert said.startswith("error: nothing was exported: by more than 1 points beyond its interval this became worse:")
    assert "accuracy, test images" in said
    assert not (tmp_path / "models").exists() or not list((tmp_path / "models").rglob("manifest.json"))
    assert "4 classes" in learn(capsys, taught, tmp_path, "--allow-worse", added=added)
    card = (tmp_path / "models" / "shop" / "1" / "CARD.md").read_text()
    assert "accuracy, test images (became worse)" in card


def test_unfit_images_count_as_refused_as_they_are_in_service(
    taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    shutil.copytree(taught / "run", root / "run")
    commands.main(["calibrate", str(root / "run"), "--score", "energy|msp"])
    (tmp_path / "night").mkdir()
    for i in range(8):
        Image.new("RGB", (48, 40), (i, 0, 0)).save(tmp_path / "night" / f"{i}.png")
    accepted = SimpleNamespace(rejected=lambda scores, *_: np.zeros(len(scores), bool))
    monkeypatch.setattr(compare, "calibrate", accepted)  # whatever they score
    learn(capsys, root, tmp_path, "--ood", tmp_path / "night", added=taught / "export")
    figures = json.loads((tmp_path / "work" / "comparison.json").read_text())["figures"]
    night = next(f for f in figures if f["name"] == "caught, night")
    assert (night["images"], night["old"], night["new"]) == (8, 1, 1)
    assert next(f for f in figures if f["name"] == "refused, test images")["old"] == 0


def test_one_image_and_outliers_alone(taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fruit.save(tmp_path / "one" / "lime", "lime", 1, 20_000)
    printed = learn(capsys, taught, tmp_path, "--allow-worse", added=tmp_path / "one")
    assert "lime has so few images" in printed
    manifest = bundle.read(tmp_path / "models" / "shop" / "1")
    assert next(c for c in manifest.classes if c.name == "lime").accuracy is None
    fruit.save(tmp_path / "junk" / "outliers", "sand", 8, 22_000)
    printed = learn(capsys, taught, tmp_path / "two", "--allow-worse", added=tmp_path / "junk")
    assert "3 classes" in printed
    assert "caught, reviewed outliers" in printed


def test_thresholds_are_calibrated_as_they_were(
    taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run without a test part they came from all images by cross-fitting, of the taught one from the few that were
    held back, as the reviewed images that are compared on were taken for a test part; and its folds parted bursts."""
    shutil.copytree(taught / "shop" / "train", tmp_path / "shop")
    run = tmp_path / "run"
    commands.main(["train", "--dataset", "folder", "--data", str(tmp_path / "shop"), "--backbone",
                   f"onnx:{taught / 'means.onnx'}", "--method", "msp", "--epochs", "4", "--threads", "1", "--out",
                   str(run)])  # fmt: skip
    commands.main(["calibrate", str(run), "--score", "energy", "--taxonomy-error", "0.2"])
    shutil.copytree(taught / "export" / "train", tmp_path / "export" / "train")
    kept = {
        Path(row["path"]).name: row
        for row in csv.DictReader((run / "split.csv").read_text().splitlines())
        if row["class"] == "kiwi"
    }
    name, row = next((name, row) for name, row in kept.items() if row["part"] == "train")
    burst = tmp_path / "export" / "train" / "kiwi"
    Image.open(tmp_path / "shop" / "kiwi" / name).save(burst / "again.webp", quality=95)
    learn(capsys, tmp_path, tmp_path, "--allow-worse")
    old, new = (json.loads((folder / CALIBRATION_FILE).read_text()) for folder in (run, tmp_path / "work" / "run"))
    assert new["evaluation"]["calibrated"] == old["evaluation"]["calibrated"] == NAMED
    assert new["calibration"]["in_distribution_images"] > old["calibration"]["in_distribution_images"]
    assert new["taxonomy_error"] == old["taxonomy_error"] == 0.2
    groups = {
        Path(one["path"]).stem: one["group"]
        for one in csv.DictReader((tmp_path / "work" / "split.csv").read_text().splitlines())
    }
    again = f"{content_key((burst / 'again.webp').read_bytes()):016x}"
    assert groups[again] == row["group"]


def test_doubtful_labels_are_left_out_and_listed(
    taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    added = tmp_path / "export"
    fruit.save(added / "train" / "kiwi", "kiwi", 6, 21_000)
    fruit.save(added / "train" / "apple", "sky", 2, 31_000)  # as are the training outliers
    fruit.save(added / "train" / "lime", "lime", 8, 20_000)
    printed = learn(capsys, taught, tmp_path, "--allow-worse", added=added)
    assert "left out 2 doubtful labels (2 apple, which look like outlier)" in printed
    lines = (tmp_path / "work" / "doubtful.csv").read_text().split()
    assert lines[0] == "path,label,looks_like"
    assert sorted(lines[1:]) == [f"{added / 'train' / 'apple' / f'0{i}.png'},apple,outlier" for i in (0, 1)]
    learned = bundle.read(tmp_path / "models" / "shop" / "1").provenance.added
    assert learned is not None
    assert learned["known_classes"].keys() == {"kiwi"}

    kept = learn(capsys, taught, tmp_path / "kept", "--allow-worse", "--doubtful", "keep", added=added)
    assert "doubtful labels" not in kept
    learned = bundle.read(tmp_path / "kept" / "models" / "shop" / "1").provenance.added
    assert learned is not None
    assert learned["known_classes"]["apple"]["train"] == 2


def test_what_cannot_be_learned_from_is_refused(
    taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(name: str, classes: dict[str, str]) -> str:
        for label, colour in classes.items():
            fruit.save(tmp_path / name / "train" / label, colour, 4, 20_000)
        return learn(capsys, taught, tmp_path, added=tmp_path / name)

    assert "'Kiwi' is another spelling of 'kiwi'" in refused("case", {"Kiwi": "kiwi"})
    assert "'ｋｉｗｉ' is another spelling of 'kiwi'" in refused("wide", {"ｋｉｗｉ": "kiwi"})
    assert "'sea_lime' is another spelling" in refused("both", {"sea lime": "lime", "sea_lime": "lime"})
    assert "into outliers/" in refused("outlier", {"outlier": "sky"})
    inside = learn(capsys, taught, tmp_path / "case" / "train", added=tmp_path / "case")
    assert f"--out {tmp_path / 'case' / 'train' / 'models'} lies in" in inside
    (tmp_path / "nothing").mkdir()
    assert "holds no labelled image" in learn(capsys, taught, tmp_path, added=tmp_path / "nothing")
    assert "is missing" in learn(capsys, taught, tmp_path, added=tmp_path / "gone")
    shutil.copytree(taught / "shop" / "train" / "kiwi", tmp_path / "same" / "kiwi")
    assert "no image is left to learn from" in learn(capsys, taught, tmp_path, added=tmp_path / "same")
    shutil.copytree(taught / "run", tmp_path / "new")
    (tmp_path / "new" / CALIBRATION_FILE).unlink()
    commands_said = warm.run(
        [sys.executable, "-m", "training", "learn", str(tmp_path / "new"), "--from", str(taught / "export")],
        cwd=live.ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "calibration.json does not exist" in commands_said.stderr
    assert not (tmp_path / "work" / "learn.json").exists()


def test_a_run_whose_data_have_moved(taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    away = shutil.copytree(taught, tmp_path / "away")
    state = checkpoint.load(away / "run")
    state["config"] |= {"data": str(tmp_path / "nowhere"), "outliers": str(tmp_path / "nowhere-either")}
    checkpoint.save(away / "run", state)
    assert "nowhere" in learn(capsys, away, tmp_path)
    places = ["--data", away / "shop", "--outliers", away / "junk"]
    assert "4 classes" in learn(capsys, away, tmp_path, *places, "--allow-worse")


def test_killed_and_gone_on_with(taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work, target = tmp_path / "work", tmp_path / "models" / "shop" / "1"
    command = [sys.executable, "-m", "training", "learn", str(taught / "run"), "--from", str(taught / "export"),
               "--out", str(tmp_path / "models"), "--work", str(work)]  # fmt: skip
    process = warm.Popen(command, cwd=live.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 200
        while not (work / "run" / checkpoint.CHECKPOINT_FILE).exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert not target.exists()
    assert "4 classes" in learn(capsys, taught, tmp_path)
    note = work / "run" / EXPORTED_FILE
    kept = note.read_bytes()
    note.replace(note.with_name(EXPORTING_FILE))  # as a kill between the bundle and the note leaves it
    assert "4 classes" in learn(capsys, taught, tmp_path)
    assert last(work / "run") == target.resolve()
    assert note.read_bytes() == kept
    other = shutil.copytree(taught / "export", tmp_path / "other")
    fruit.photograph("lime", 1).save(other / "train" / "lime" / "more.png")
    assert "learns from other reviewed images" in learn(capsys, taught, tmp_path, added=other)
    again = tmp_path / "run again"  # with the same sides
    shutil.copytree(taught / "run", again)
    (work / plan.PLAN_FILE).write_text((work / plan.PLAN_FILE).read_text().replace(str(taught / "run"), str(again)))
    state = checkpoint.load(again)
    state["network"]["head.weight"] += 0.1
    checkpoint.save(again, state)
    command[4] = str(again)
    with pytest.raises(SystemExit, match="is of another run, or of this one before it was trained anew"):
        commands.main(command[3:])
    commands.main(["calibrate", str(again)])
    with pytest.raises(SystemExit, match="learns from a run that was trained anew"):
        commands.main(command[3:])
    assert bundle.read(target).provenance.added


def test_killed_at_any_moment(taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Between and within the steps: the bundle is there whole or not at all, and the same command goes on."""
    target, draw = tmp_path / "models" / "shop" / "1", random.Random(0)
    command = [sys.executable, "-m", "training", "learn", str(taught / "run"), "--from", str(taught / "export"),
               "--out", str(tmp_path / "models"), "--work", str(tmp_path / "work")]  # fmt: skip
    steps = ["features of the new images", "train", "calibrate", "measure on", "compare with", "export"]
    for begun in draw.sample(steps, 2):
        process = warm.Popen(
            command, cwd=live.ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        assert process.stdout is not None
        next((line for line in process.stdout if line.startswith(f"* {begun}")), None)
        time.sleep(draw.uniform(0, 1.5))
        process.kill()
        process.communicate()
        assert not target.exists() or len(bundle.read(target).classes) == 4
    assert "4 classes" in learn(capsys, taught, tmp_path)
    assert [path.name for path in target.parent.iterdir()] == ["1"]
    assert not list((tmp_path / "work").rglob("*.partial"))


def test_two_that_learn_at_once_do_not_meet_at_the_export(
    taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a folder of work each, both took version 1, and the second one to end failed."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as at_training:
        at_training.setattr(steps, "prepare", interrupted)
        added = tmp_path / "work" / "added"
        added.mkdir(parents=True)
        (added / f".{0:016x}.1.png").write_text("half")  # of a process that was killed while it copied
        assert "stopped" in learn(capsys, taught, tmp_path)
        assert not list(added.glob(".*"))
        other = tmp_path / "other"
        said = learn(capsys, taught, tmp_path, "--work", other, "--version", "1")
        assert f"shop/1 is being made in {tmp_path / 'work'}: give another --version" in said
        assert not other.exists() or not (other / plan.PLAN_FILE).exists()
        assert "stopped" in learn(capsys, taught, tmp_path, "--work", other)
    targets = [json.loads((work / plan.PLAN_FILE).read_text())["target"] for work in (tmp_path / "work", other)]
    assert [Path(target).name for target in targets] == ["1", "2"]
    bundles = tmp_path / "models" / "shop"
    assert reserved.first_free(bundles) == "3"  # for a bundle that learns alone
    assert f"{bundles / '1'}: 4 classes" in learn(capsys, taught, tmp_path)
    assert [mark.name for mark in bundles.glob(".*")] == [".2.made-in"]


def test_pictures_that_the_new_bundle_does_not_hold_are_named(
    taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those who review had none any more, and nothing said why."""
    commands.main(["export", str(taught / "run"), "--out", str(tmp_path), "--name", "shop", "--version", "2",
                   "--precision", "fp32", "--data-licence", "CC0", "--thumbnails"])  # fmt: skip
    (taught / "run" / EXPORTED_FILE).write_text(json.dumps({"bundle": str(taught / "models" / "shop" / "1")}))
    given = {"run": taught / "run", "from": taught / "export", "out": tmp_path / "models"}
    for parent, pictures in ((taught / "models" / "shop" / "1", False), (tmp_path / "shop" / "2", True)):
        work = tmp_path / f"work-{pictures}"
        made = plan.make(Learn.model_validate(given | {"parent": parent, "work": work}))
        named = [note for note in made.notes if "holds small pictures of training images" in note]
        assert bool(named) == pictures
    assert f"export {work / 'run'} --thumbnails --data-licence TERMS" in named[0]


def test_an_outlier_that_was_compared_on_stays_so_where_its_new_label_is_left_out(
    taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is compared on no more where its new label is learned."""
    before, added = tmp_path / "before", Path(shutil.copytree(taught / "export", tmp_path / "more"))
    shutil.copytree(taught / "run", before / "run")
    (before / plan.PLAN_FILE).write_text(json.dumps({"added": {}, "about": {}}))
    fruit.save(before / "seen", "sand", 2, 43_000)
    (before / "compared").mkdir()
    for path in sorted((before / "seen").iterdir()):
        named = before / "compared" / f"{content_key(path.read_bytes()):016x}.png"
        path.rename(named)
    other, relabelled = sorted((before / "compared").iterdir())
    shutil.copyfile(relabelled, added / "train" / "lime" / "relabelled.png")
    for kept in (False, True):
        key = int(relabelled.stem, 16)
        monkeypatch.setattr(data.doubts, "left_out", lambda found, *_, k=key, keep=kept: found.take(
            (found.keys != k) | keep))  # fmt: skip
        given = {"run": before / "run", "from": added, "out": tmp_path / "models", "work": tmp_path / f"work-{kept}"}
        plan.make(Learn.model_validate(given))
        names = {path.name for path in (tmp_path / f"work-{kept}" / "compared").iterdir()}
        assert (other.name in names, relabelled.name in names) == (True, not kept)


def test_two_that_begin_at_once_do_not_write_into_one_folder(
    taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both wrote the data of the new run, and each removed what the other had linked."""
    with alone_in(tmp_path / "work"):
        assert "another process is at work there" in learn(capsys, taught, tmp_path)
        assert not (tmp_path / "work" / plan.DATA_FILE).exists()


def test_known_features_are_taken_as_they_are() -> None:
    known = features.Known({7: np.ones((2, 3), np.float32), 8: np.full((1, 3), 5, np.float32)})
    into = np.zeros((3, 2, 3), np.float32)
    assert known.fill(np.array([7, 8, 9], np.uint64), into).tolist() == [True, False, False]  # 8 has one view of two
    assert into[0].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert not into[1:].any()


def test_classes_of_a_run_that_are_spelled_alike_may_both_learn(tmp_path: Path) -> None:
    for i, label in enumerate(("sea lime", "sea_lime")):
        fruit.save(tmp_path / "export" / "train" / label, "kiwi", 2, 30_000 + 1000 * i)
    found = reviewed.read(tmp_path / "export", ["sea lime", "sea_lime"], tmp_path / "cache", [])
    assert found.classes == ["sea lime", "sea_lime"]


def test_what_few_images_of_a_new_class_are_not_used_for_is_said() -> None:
    counts = {"both": {"train": 1, "calibration": 0, "test": 0}, "one": {"train": 3, "calibration": 0, "test": 3}}
    added = {"new_classes": counts, "known_classes": {}, "outliers": {"train": 0, "calibration": 0, "test": 0}}
    *_, both, one = steps.look(SimpleNamespace(added=added, notes=()))  # type: ignore[arg-type]
    assert both.endswith("that it is neither calibrated nor compared on its own images")
    assert one.endswith("that it is not calibrated on its own images")


def test_what_was_said_of_the_data_is_not_said_again_by_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    made = SimpleNamespace(work=tmp_path, run=tmp_path, target=tmp_path / "1", notes=["left out 1 unreadable file"])
    monkeypatch.setattr(plan, "make", lambda given: made)
    monkeypatch.setattr(steps, "look", lambda plan: plan.notes)
    monkeypatch.setattr(steps, "_made", lambda plan, given: say([*plan.notes, "left out 1 more"]))
    monkeypatch.setattr(steps, "finished", lambda plan: "")
    steps.learn(SimpleNamespace(run=tmp_path))  # type: ignore[arg-type]
    printed = capfd.readouterr()
    assert (printed.out.strip(), printed.err.strip()) == ("left out 1 unreadable file", "left out 1 more")
